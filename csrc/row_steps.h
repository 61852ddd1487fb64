// Rows that go through several steps. Few rows share the outputs of a layer among the threads, which are woken once for
// all steps; of many, each thread takes some through all steps, so that nothing of them leaves the cache in between.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/dtype.h"
#include "threads.h"

namespace mp {

// Takes arrays out of memory one after the other; without memory it only counts.
class Taker {
 public:
  explicit Taker(float* memory) : memory_(memory) {}
  float* floats(int64_t count) {
    constexpr size_t kLine = 16;  // floats
    float* taken = memory_ ? memory_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) + kLine - 1) / kLine * kLine;
    return taken;
  }
  BFloat16* halves(int64_t count) { return reinterpret_cast<BFloat16*>(floats((count + 1) / 2)); }
  int8_t* bytes(int64_t count) { return reinterpret_cast<int8_t*>(floats((count + 3) / 4)); }
  size_t used() const { return used_; }

 private:
  float* memory_;
  size_t used_ = 0;
};

// Rows, of `count` in all, that a thread takes at a time: enough for a weight that is larger than the cache, few enough
// for every thread to get some.
inline int64_t rows_at_a_time(int64_t count, int64_t weight_bytes) {
  constexpr int64_t kLeast = 32, kMost = 128, kCached = 1 << 20;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t rows = weight_bytes > kCached ? kMost : kMost / 2;
  while (threads > 1 && rows > kLeast && count < 2 * rows * threads) rows /= 2;
  return rows;
}

// Whether all threads share the outputs of rows.
inline bool share_outputs(int64_t count, int64_t weight_bytes) {
  const int64_t threads = torch::stable::get_num_threads();
  return threads > 1 && count <= rows_at_a_time(count, weight_bytes) * threads;
}

// Runs steps that threads share; steps_of(memory) are those of all rows.
template <typename StepsOf>
void run_shared(const torch::stable::Tensor& like, size_t scratch, const StepsOf& steps_of) {
  Taker counter(nullptr);
  steps_of(counter);
  torch::stable::Tensor memory =
      torch::stable::new_empty(like, {static_cast<int64_t>(counter.used())}, torch::headeronly::ScalarType::Float);
  Taker taker(memory.mutable_data_ptr<float>());
  run_steps(steps_of(taker), scratch);
}

// Runs tasks, each by one thread through all its steps, steps_of(memory, task). most(memory): the steps that take the
// most memory; scratch: floats that steps need beside it.
template <typename Most, typename StepsOf>
void run_tasks(int64_t tasks, size_t scratch, const Most& most, const StepsOf& steps_of) {
  Taker counter(nullptr);
  most(counter);
  const size_t floats = counter.used();
  run_in_order(tasks, floats + scratch, [&](int64_t task, float* memory) {
    Taker taker(memory);
    for (const Step& step : steps_of(taker, task)) step.work(0, step.units, memory + floats);
  });
}

// Computes rows by steps: steps_of(memory, first, count) are those of some of the rows. scratch_for(rows): memory of a
// thread for steps of so many. weight_bytes: of the largest weight.
template <typename ScratchFor, typename StepsOf>
void run_rows(int64_t count, const torch::stable::Tensor& like, int64_t weight_bytes, const ScratchFor& scratch_for,
              const StepsOf& steps_of) {
  if (share_outputs(count, weight_bytes)) {
    run_shared(like, scratch_for(count), [&](Taker& memory) { return steps_of(memory, 0, count); });
    return;
  }
  const int64_t at_a_time = rows_at_a_time(count, weight_bytes), most = std::min(at_a_time, count);
  run_tasks((count + at_a_time - 1) / at_a_time, scratch_for(most), [&](Taker& memory) { steps_of(memory, 0, most); },
            [&](Taker& memory, int64_t task) {
              const int64_t first = task * at_a_time;
              return steps_of(memory, first, std::min(at_a_time, count - first));
            });
}

}  // namespace mp
