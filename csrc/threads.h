// Work spread over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mp {

// Calls work(task, scratch of the thread) for tasks 0..tasks - 1. A free thread takes the next task, so the threads are
// balanced if tasks go from long to short. The result of a task does not depend on the thread that runs it.
template <typename Work>
void run_in_order(int64_t tasks, size_t scratch_floats, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    // Kept between calls, as fresh pages would cost more than a small batch's attention.
    thread_local std::vector<float> memory;
    constexpr size_t kAlignment = 64;
    memory.resize(std::max(memory.size(), scratch_floats + kAlignment / sizeof(float)));
    const size_t misaligned = reinterpret_cast<uintptr_t>(memory.data()) % kAlignment;
    float* scratch = memory.data() + (misaligned ? (kAlignment - misaligned) / sizeof(float) : 0);
    for (; begin < end; ++begin)
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, scratch);
  });
}

// Number of rows that is worth a thread of its own.
inline int64_t rows_per_thread(int64_t row_bytes) {
  constexpr int64_t kWorthAThread = 32 * 1024;
  return std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, row_bytes));
}

}  // namespace mp
