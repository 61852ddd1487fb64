// Attention of packed rows over the rows of the same sample, for operators that compute a whole layer.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "threads.h"

namespace mp {

class SelfAttention {
 public:
  // Of `total` rows of queries, keys and values, [total, 3 * width].
  SelfAttention(const char* op, const torch::stable::Tensor& cu_seqlens, int64_t max_seqlen, int64_t total,
                int64_t heads, int64_t outputs)
      : starts_(op, "cu_seqlens", cu_seqlens, total), total_(total), heads_(heads), width_(outputs / 3) {
    require(heads > 0 && outputs > 0 && outputs % (3 * heads) == 0, op,
            ": projections must be queries, keys and values of ", heads, " heads; got ", outputs, " outputs");
    require(max_seqlen >= starts_.longest(), op, ": max_seqlen must be at least the longest sample, ",
            starts_.longest(), "; got ", max_seqlen);
  }
  int64_t width() const { return width_; }
  int64_t sums() const { return heads_ * total_; }  // floats that forward() needs beside its results
  size_t scratch() const { return kernels().attention_forward_scratch(starts_.longest(), width_ / heads_); }

  // The kernels' arguments: rows [total, 3 * width], context [total, width].
  AttentionForward forward(Dtype dtype, void* rows, void* context, float* sums) const {
    const int64_t head_dim = width_ / heads_, bytes = bytes_of(dtype);
    const auto part = [&](int64_t number) {
      return Heads{static_cast<char*>(rows) + number * width_ * bytes, 3 * width_, head_dim};
    };
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
    return {{dtype, starts_.data(), starts_.data(), heads_, head_dim, total_, total_, scale},
            part(0),
            part(1),
            part(2),
            {context, width_, head_dim},
            nullptr,
            sums};
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

  // All of it by free threads.
  void run(const AttentionForward& f) const {
    const std::vector<int32_t> order = by_falling_cost(starts_, starts_);
    run_in_order(starts_.batch() * heads_, scratch(), [&](int64_t task, float* scratch) {
      one(f, order[static_cast<size_t>(task / heads_)], task % heads_, scratch);
    });
  }

 private:
  void one(const AttentionForward& f, int64_t sample, int64_t head, float* scratch) const {
    if (starts_.length(sample)) kernels().attention_forward(f, sample, head, scratch);
  }

  SequenceStarts starts_;
  int64_t total_, heads_, width_;
};

}  // namespace mp
