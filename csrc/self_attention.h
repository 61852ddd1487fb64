// Attention of packed rows over the rows of the same sample, for operators that compute a whole layer.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "row_steps.h"
#include "threads.h"

namespace mp {

class SelfAttention {
 public:
  // first_only: whether the first row of each sample asks alone, else all do. width: of queries, as of keys and of
  // values.
  SelfAttention(const char* op, const torch::stable::Tensor& cu_seqlens, int64_t max_seqlen, int64_t total,
                int64_t heads, int64_t width, bool first_only = false)
      : starts_(op, "cu_seqlens", cu_seqlens, total), total_(total), heads_(heads), width_(width) {
    require(heads > 0 && width > 0 && width % heads == 0, op, ": projections must be of ", heads, " heads; got ", width,
            " outputs for the queries");
    require(max_seqlen >= starts_.longest(), op, ": max_seqlen must be at least the longest sample, ",
            starts_.longest(), "; got ", max_seqlen);
    if (!first_only) return;
    for (int64_t b = 0; b < starts_.batch(); ++b) {
      require(starts_.length(b) > 0, op, ": each sample must have a row; got none for sample ", b);
      first_rows_.push_back(starts_.data()[b]);
    }
    counted_.resize(first_rows_.size() + 1);
    std::iota(counted_.begin(), counted_.end(), 0);
  }
  int64_t width() const { return width_; }
  int64_t queries() const { return counted_.empty() ? total_ : starts_.batch(); }
  const std::vector<int64_t>& first_rows() const { return first_rows_; }
  int64_t sums() const { return heads_ * queries(); }  // floats that forward() needs beside its results
  size_t scratch() const { return kernels().attention_forward_scratch(starts_.longest(), width_ / heads_); }

  // The kernels' arguments: rows of queries, keys and values, [total, 3 * width], and context [queries, width].
  AttentionForward forward(Dtype dtype, void* rows, void* context, float* sums) const {
    return forward(dtype, part(dtype, rows, 0, 3), part(dtype, rows, 1, 3), part(dtype, rows, 2, 3), context, sums);
  }
  // With queries [queries, width] that lie apart from keys and values, [total, 2 * width].
  AttentionForward forward(Dtype dtype, void* queries, void* rows, void* context, float* sums) const {
    return forward(dtype, part(dtype, queries, 0, 1), part(dtype, rows, 0, 2), part(dtype, rows, 1, 2), context, sums);
  }

  // All of it as one of several steps. Heads come before samples, so that threads get alike parts of samples that
  // differ.
  Step step(const AttentionForward& f) const {
    const int64_t batch = starts_.batch(), rows = total_ / std::max<int64_t>(1, batch);
    return {heads_ * batch, rows * 4 * f.shape.head_dim * bytes_of(f.shape.dtype),
            [this, f, batch](int64_t begin, int64_t end, float* scratch) {
              for (; begin < end; ++begin) one(f, begin % batch, begin / batch, scratch);
            }};
  }

  // Consecutive samples in groups of no more rows than that, or of one sample: the first one of each group, and the
  // number of all. Empty where groups would be too long for the cache, or too few for threads to get alike parts.
  std::vector<int64_t> groups(int64_t rows) const {
    constexpr int64_t kGroupsOfAThread = 4;
    if (starts_.longest() > 2 * rows) return {};
    std::vector<int64_t> firsts{0};
    for (int64_t b = 1; b <= starts_.batch(); ++b)
      if (b == starts_.batch() || first_row(b + 1) - first_row(firsts.back()) > rows) firsts.push_back(b);
    const int64_t threads = torch::stable::get_num_threads(), count = static_cast<int64_t>(firsts.size()) - 1;
    return threads > 1 && count < kGroupsOfAThread * threads ? std::vector<int64_t>() : firsts;
  }

  // Runs the steps of a whole layer for groups of samples, each by one thread, so that nothing leaves the cache in
  // between. steps_of(memory, first, count, attend) are those of some of the rows, where attend(forward) is the step of
  // attention. scratch_for(rows): memory of a thread for the other steps of so many.
  template <typename ScratchFor, typename StepsOf>
  void run_by_groups(const std::vector<int64_t>& firsts, const ScratchFor& scratch_for, const StepsOf& steps_of) const {
    const auto count = static_cast<int64_t>(firsts.size()) - 1;
    int64_t most = 0;
    for (int64_t g = 0; g < count; ++g) most = std::max(most, first_row(firsts[g + 1]) - first_row(firsts[g]));
    const auto steps_from = [&](Taker& memory, int64_t begin, int64_t end, int64_t first, int64_t some) {
      return steps_of(memory, first, some, [=, this](const AttentionForward& f) {
        return Step{end - begin, 0, [=, this](int64_t, int64_t, float* scratch) { run(f, begin, end, scratch); }};
      });
    };
    run_tasks(
        count, std::max(scratch_for(most), scratch()), [&](Taker& memory) { steps_from(memory, 0, 0, 0, most); },
        [&](Taker& memory, int64_t task) {
          const int64_t begin = firsts[task], end = firsts[task + 1], first = first_row(begin);
          return steps_from(memory, begin, end, first, first_row(end) - first);
        });
  }

  // All of it by free threads.
  void run(const AttentionForward& f) const {
    const std::vector<int32_t> order = by_falling_cost(starts_, starts_);
    run_in_order(starts_.batch() * heads_, scratch(), [&](int64_t task, float* scratch) {
      one(f, order[static_cast<size_t>(task / heads_)], task % heads_, scratch);
    });
  }

 private:
  // One of several matrices of the width that lie side by side.
  Heads part(Dtype dtype, void* rows, int64_t number, int64_t of) const {
    return {static_cast<char*>(rows) + number * width_ * bytes_of(dtype), of * width_, width_ / heads_};
  }

  AttentionForward forward(Dtype dtype, Heads q, Heads k, Heads v, void* context, float* sums) const {
    const int64_t head_dim = width_ / heads_;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
    const int32_t* starts_q = counted_.empty() ? starts_.data() : counted_.data();
    const AttentionShape shape{dtype, starts_q, starts_.data(), heads_, head_dim, queries(), total_, scale};
    return {shape, q, k, v, {context, width_, head_dim}, nullptr, sums};
  }

  int64_t first_row(int64_t sample) const { return starts_.data()[sample]; }

  // Some samples, by this thread.
  void run(const AttentionForward& f, int64_t begin, int64_t end, float* scratch) const {
    for (int64_t sample = begin; sample < end; ++sample)
      for (int64_t head = 0; head < heads_; ++head) one(f, sample, head, scratch);
  }

  void one(const AttentionForward& f, int64_t sample, int64_t head, float* scratch) const {
    if (starts_.length(sample)) kernels().attention_forward(f, sample, head, scratch);
  }

  SequenceStarts starts_;
  int64_t total_, heads_, width_;
  std::vector<int64_t> first_rows_;
  std::vector<int32_t> counted_;  // the first query of each sample, where each has one
};

}  // namespace mp
