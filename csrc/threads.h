// Work spread over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace mp {

// Memory of a thread, of that many floats. It is kept between calls, as fresh pages would cost more than a small
// batch's attention.
inline float* scratch_of_thread(size_t floats) {
  thread_local std::vector<float> memory;
  constexpr size_t kAlignment = 64;
  memory.resize(std::max(memory.size(), floats + kAlignment / sizeof(float)));
  const size_t misaligned = reinterpret_cast<uintptr_t>(memory.data()) % kAlignment;
  return memory.data() + (misaligned ? (kAlignment - misaligned) / sizeof(float) : 0);
}

// Number of rows that is worth a thread of its own.
inline int64_t rows_per_thread(int64_t row_bytes) {
  constexpr int64_t kWorthAThread = 32 * 1024;
  return std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, row_bytes));
}

// Calls work(task, scratch of the thread) for tasks 0..tasks - 1. A free thread takes the next task, so the threads are
// balanced if tasks go from long to short. The result of a task does not depend on the thread that runs it.
template <typename Work>
void run_in_order(int64_t tasks, size_t scratch_floats, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_of_thread(scratch_floats);
    for (; begin < end; ++begin)
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) work(task, scratch);
  });
}

// One of several steps that follow each other: work on units 0..units - 1, each of which may run in another thread.
struct Step {
  int64_t units;
  int64_t unit_bytes;                                                    // memory that a unit reads or writes
  std::function<void(int64_t begin, int64_t end, float* scratch)> work;  // it throws nothing
};

inline std::vector<Step> joined(const std::vector<std::vector<Step>>& parts) {
  std::vector<Step> steps;
  for (const std::vector<Step>& part : parts) steps.insert(steps.end(), part.begin(), part.end());
  return steps;
}

// Runs steps one after the other, with threads that are woken once: to wake them again for every step of a small batch
// would take longer than the steps. All tasks have one order, in which free threads take them; a task waits until those
// of the steps before have ended, each of which some thread has taken and runs. So it does not matter how many threads
// there are, and when they come.
inline void run_steps(const std::vector<Step>& steps, size_t scratch_floats) {
  const int64_t most = torch::stable::get_num_threads();
  std::vector<int64_t> firsts{0};  // the first task of each step, and the number of all
  int64_t threads = 0;
  for (const Step& step : steps) {
    const int64_t tasks =
        std::min(most, (step.units + rows_per_thread(step.unit_bytes) - 1) / rows_per_thread(step.unit_bytes));
    firsts.push_back(firsts.back() + tasks);
    threads = std::max(threads, tasks);
  }
  std::atomic<int64_t> next{0}, ended{0};
  const auto run_some = [&] {
    float* scratch = scratch_of_thread(scratch_floats);
    size_t step = 0;
    for (int64_t task; (task = next.fetch_add(1)) < firsts.back(); ended.fetch_add(1, std::memory_order_release)) {
      while (task >= firsts[step + 1]) ++step;
      constexpr int kPatience = 10'000;
      for (int tries = 0; ended.load(std::memory_order_acquire) < firsts[step]; ++tries)
        if (tries > kPatience) std::this_thread::yield();
      const int64_t tasks = firsts[step + 1] - firsts[step], units = steps[step].units, place = task - firsts[step];
      steps[step].work(units * place / tasks, units * (place + 1) / tasks, scratch);
    }
  };
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) run_some();
  });
}

}  // namespace mp
