// Arguments of the CPU operators. They are checked where they are constructed, so that no caller can make a kernel
// reach outside its tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"

namespace mp {

inline Dtype floating_dtype(const char* op, const char* name, const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::Half: return Dtype::kFloat16;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    default: break;
  }
  require(false, op, ": ", name, " must be float32, float16 or bfloat16; got dtype number ",
          static_cast<int>(x.scalar_type()));
  return {};
}

// cu_seqlens: int32 [batch + 1], starts at 0, never decreases, ends at total.
class SequenceStarts {
 public:
  SequenceStarts(const char* op, const char* name, const torch::stable::Tensor& x, int64_t total) {
    require(x.dim() == 1 && x.size(0) >= 1, op, ": ", name, " must have shape [batch + 1]; got ", shape_of(x));
    require_dtype(op, name, x, torch::headeronly::ScalarType::Int, "int32");
    tensor_ = torch::stable::contiguous(x);
    data_ = tensor_.const_data_ptr<int32_t>();
    batch_ = x.size(0) - 1;
    require(data_[0] == 0, op, ": ", name, " must start with 0; got ", data_[0]);
    for (int64_t b = 0; b < batch_; ++b) {
      const int64_t length = static_cast<int64_t>(data_[b + 1]) - data_[b];
      require(length >= 0, op, ": ", name, " must not decrease; got ", data_[b + 1], " after ", data_[b],
              " at position ", b + 1);
      longest_ = std::max(longest_, length);
    }
    require(data_[batch_] == total, op, ": the last entry of ", name, " must be the number of rows, ", total, "; got ",
            data_[batch_]);
  }
  const int32_t* data() const { return data_; }
  int64_t batch() const { return batch_; }
  int64_t length(int64_t b) const { return data_[b + 1] - data_[b]; }
  int64_t longest() const { return longest_; }

 private:
  torch::stable::Tensor tensor_;
  const int32_t* data_;
  int64_t batch_, longest_ = 0;
};

// The samples by falling cost.
inline std::vector<int32_t> by_falling_cost(const SequenceStarts& queries, const SequenceStarts& keys) {
  std::vector<int32_t> order(static_cast<size_t>(keys.batch()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return queries.length(a) * keys.length(a) > queries.length(b) * keys.length(b);
  });
  return order;
}

// The samples that stay: bool [batch], or none where all do.
class Stays {
 public:
  Stays(const char* op, const std::optional<torch::stable::Tensor>& x, int64_t batch) {
    if (!x) return;
    require_dtype(op, "stays", *x, torch::headeronly::ScalarType::Bool, "bool");
    require(x->dim() == 1 && x->size(0) == batch, op, ": stays must be [batch], ", batch, "; got ", shape_of(*x));
    tensor_ = torch::stable::contiguous(*x);
    data_ = tensor_.const_data_ptr<bool>();
  }
  const bool* data() const { return data_; }
  bool operator[](int64_t sample) const { return !data_ || data_[sample]; }

 private:
  torch::stable::Tensor tensor_;
  const bool* data_ = nullptr;
};

// The place of each row's token in its text: int32 [total], rising within each sample from 0 or more; or, where there
// is none, the rows' own order.
class Positions {
 public:
  Positions(const char* op, const char* name, const std::optional<torch::stable::Tensor>& x,
            const SequenceStarts& starts) {
    const int32_t* begin = starts.data();
    const int64_t total = begin[starts.batch()];
    if (!x) {
      own_order_.resize(static_cast<size_t>(total));
      data_ = own_order_.data();
      for (int64_t b = 0; b < starts.batch(); ++b)
        std::iota(own_order_.begin() + begin[b], own_order_.begin() + begin[b + 1], 0);
      return;
    }
    require_dtype(op, name, *x, torch::headeronly::ScalarType::Int, "int32");
    require(x->dim() == 1 && x->size(0) == total, op, ": ", name, " must be [", total, "]; got ", shape_of(*x));
    tensor_ = torch::stable::contiguous(*x);
    data_ = tensor_.const_data_ptr<int32_t>();
    for (int64_t b = 0; b < starts.batch(); ++b)
      for (int64_t i = begin[b], before = -1; i < begin[b + 1]; before = data_[i++])
        require(data_[i] > before, op, ": ", name, " must rise from 0 or more within each sample; got ", data_[i],
                i == begin[b] ? " first" : " after " + std::to_string(before), " in sample ", b);
  }
  const int32_t* data() const { return data_; }

 private:
  torch::stable::Tensor tensor_;
  std::vector<int32_t> own_order_;
  const int32_t* data_;
};

// The row at which the second part of each sample begins: int64 [batch].
class Middles {
 public:
  Middles(const char* op, const char* name, const torch::stable::Tensor& x, const SequenceStarts& starts) {
    require_dtype(op, name, x, torch::headeronly::ScalarType::Long, "int64");
    require(x.dim() == 1 && x.size(0) == starts.batch(), op, ": ", name, " must be [batch], ", starts.batch(), "; got ",
            shape_of(x));
    tensor_ = torch::stable::contiguous(x);
    data_ = tensor_.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < starts.batch(); ++b)
      require(data_[b] >= starts.data()[b] && data_[b] <= starts.data()[b + 1], op, ": ", name,
              " must lie within their samples, ", starts.data()[b], "..", starts.data()[b + 1], " for sample ", b,
              "; got ", data_[b]);
  }
  const int64_t* data() const { return data_; }

 private:
  torch::stable::Tensor tensor_;
  const int64_t* data_;
};

// Bias [heads, buckets] of scores by the bucket of a distance, int32 [2 * reach + 1], as a float for each distance.
class DistanceBias {
 public:
  DistanceBias(const char* op, const torch::stable::Tensor& bias, const torch::stable::Tensor& buckets, int64_t heads)
      : buckets_(bias.dim() == 2 ? bias.size(1) : 0), distances_(buckets.numel()) {
    require(bias.dim() == 2 && bias.size(0) == heads && buckets_ > 0, op, ": bias must be [heads, buckets] with ",
            heads, " heads; got ", shape_of(bias));
    require_dtype(op, "buckets", buckets, torch::headeronly::ScalarType::Int, "int32");
    require(buckets.dim() == 1 && distances_ % 2 == 1, op, ": buckets must be [2 R + 1]; got ", shape_of(buckets));
    const torch::stable::Tensor values = torch::stable::contiguous(bias);
    tensor_ = torch::stable::contiguous(buckets);
    by_distance_.resize(static_cast<size_t>(heads * distances_));
    for (int64_t d = 0; d < distances_; ++d)
      require(bucket_of()[d] >= 0 && bucket_of()[d] < buckets_, op, ": buckets must lie in 0..", buckets_ - 1, "; got ",
              bucket_of()[d]);
    with_type(floating_dtype(op, "bias", bias), [&](auto t) {
      const auto* value = static_cast<const decltype(t)*>(values.data_ptr());
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < distances_; ++d)
          by_distance_[static_cast<size_t>(h * distances_ + d)] = to_float(value[h * buckets_ + bucket_of()[d]]);
    });
  }
  const float* by_distance() const { return by_distance_.data(); }
  const int32_t* bucket_of() const { return tensor_.const_data_ptr<int32_t>(); }
  int64_t reach() const { return distances_ / 2; }
  int64_t buckets() const { return buckets_; }

 private:
  torch::stable::Tensor tensor_;
  std::vector<float> by_distance_;
  int64_t buckets_, distances_;
};

// For each row of a result the row of a tensor that it comes from: int64 [rows], or none where it is the same row.
class RowIndex {
 public:
  RowIndex(const char* op, const char* name, const std::optional<torch::stable::Tensor>& x, int64_t source_rows)
      : rows_(x ? x->size(0) : source_rows) {
    if (!x) return;
    require(x->dim() == 1, op, ": ", name, " must be [rows]; got ", shape_of(*x));
    require_dtype(op, name, *x, torch::headeronly::ScalarType::Long, "int64");
    tensor_ = torch::stable::contiguous(*x);
    data_ = tensor_.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < rows_; ++i)
      require(data_[i] >= 0 && data_[i] < source_rows, op, ": ", name, " must lie in 0..", source_rows - 1, "; got ",
              data_[i]);
  }
  const int64_t* data() const { return data_; }
  int64_t rows() const { return rows_; }

 private:
  torch::stable::Tensor tensor_;
  const int64_t* data_ = nullptr;
  int64_t rows_;
};

// A [total, heads, head_dim] tensor with its last dimension contiguous.
inline torch::stable::Tensor as_heads(const char* op, const char* name, const torch::stable::Tensor& x) {
  require(x.dim() == 3 && x.size(1) > 0 && x.size(2) > 0, op, ": ", name, " must be [total, heads, head_dim]; got ",
          shape_of(x));
  return x.size(2) == 1 || x.stride(2) == 1 ? x : torch::stable::contiguous(x);
}

inline Heads heads_of(const torch::stable::Tensor& x) {
  return {x.data_ptr(), x.stride(0), x.stride(1)};
}

}  // namespace mp
