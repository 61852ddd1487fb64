// Arguments of the CPU operators of int8 models.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "row_steps.h"
#include "threads.h"

namespace mp {

// A contiguous float32 vector of that many elements.
inline torch::stable::Tensor float_vector(const char* op, const char* name, const torch::stable::Tensor& x,
                                          int64_t length) {
  require_dtype(op, name, x, torch::headeronly::ScalarType::Float, "float32");
  require(x.dim() == 1 && x.size(0) == length, op, ": ", name, " must be [", length, "]; got ", shape_of(x));
  return torch::stable::contiguous(x);
}

inline torch::stable::Tensor matrix(const char* op, const char* name, const torch::stable::Tensor& x,
                                    torch::headeronly::ScalarType dtype, const char* dtype_name) {
  require(x.dim() == 2, op, ": ", name, " must be [rows, width]; got ", shape_of(x));
  require_dtype(op, name, x, dtype, dtype_name);
  return torch::stable::contiguous(x);
}

// Columns of rows that are kept as floats; none where there is no tensor.
class Columns {
 public:
  Columns(const char* op, const std::optional<torch::stable::Tensor>& columns, int64_t width)
      : index_(op, "columns", columns, width), others_(columns ? width : 0, 1.0f) {
    for (int64_t k = 0; k < count(); ++k) others_[index_.data()[k]] = 0.0f;
  }
  int64_t count() const { return index_.data() ? index_.rows() : 0; }
  const int64_t* data() const { return index_.data(); }
  const float* others() const { return others_.data(); }

 private:
  RowIndex index_;
  std::vector<float> others_;
};

// The weight of kept columns, [outputs, columns], as its products read it: [columns, outputs].
inline torch::stable::Tensor by_column(const char* op, const torch::stable::Tensor& kept_weight, int64_t outputs,
                                       int64_t columns) {
  const torch::stable::Tensor by_output =
      matrix(op, "kept_weight", kept_weight, torch::headeronly::ScalarType::Float, "float32");
  require(by_output.size(0) == outputs && by_output.size(1) == columns, op,
          ": kept_weight must be [outputs, columns], [", outputs, ", ", columns, "]; got ", shape_of(by_output));
  torch::stable::Tensor turned = torch::stable::new_empty(by_output, {columns, outputs});
  const float* from = by_output.const_data_ptr<float>();
  float* to = turned.mutable_data_ptr<float>();
  for (int64_t output = 0; output < outputs; ++output)
    for (int64_t k = 0; k < columns; ++k) to[k * outputs + output] = *from++;
  return turned;
}

// New int8 rows with their scales, and what is kept of them as floats.
struct NewInt8Rows {
  torch::stable::Tensor rows, scales, kept;
  NewInt8Rows(const torch::stable::Tensor& like, int64_t count, int64_t width, const Columns& columns)
      : rows(torch::stable::new_empty(like, {count, width}, torch::headeronly::ScalarType::Char)),
        scales(torch::stable::new_empty(like, {count}, torch::headeronly::ScalarType::Float)),
        kept(torch::stable::new_empty(like, {count, columns.count()}, torch::headeronly::ScalarType::Float)) {}
  Int8Rows pointers(const Columns& columns) {
    return {static_cast<int8_t*>(rows.data_ptr()),
            scales.mutable_data_ptr<float>(),
            columns.data(),
            columns.others(),
            kept.mutable_data_ptr<float>(),
            columns.count()};
  }
};

constexpr int64_t kInt8Panel = 16;  // outputs that lie together in a packed weight

// A weight [outputs, features], as it is or as a build of the kernels packs it, [outputs / 16, features / group, 16,
// group].
class Int8Weight {
 public:
  Int8Weight(const char* op, const torch::stable::Tensor& weight) : data_(torch::stable::contiguous(weight)) {
    require_dtype(op, "weight", weight, torch::headeronly::ScalarType::Char, "int8");
    const bool packed = weight.dim() == 4 && weight.size(2) == kInt8Panel && weight.size(3) > 0;
    require(weight.dim() == 2 || packed, op,
            ": weight must be [outputs, features], or packed [outputs / 16, features / ", "group, 16, group]; got ",
            shape_of(weight));
    if (packed) group_ = weight.size(3);
    outputs_ = weight.size(0) * (packed ? kInt8Panel : 1);
    features_ = weight.size(1) * (packed ? group_ : 1);
  }
  int64_t outputs() const { return outputs_; }
  int64_t features() const { return features_; }

  // The weight as these kernels pack it.
  torch::stable::Tensor packed_for(const Kernels& kernels) const {
    if (group_ == kernels.int8_group) return data_;
    const torch::stable::Tensor plain = unpacked();
    torch::stable::Tensor packed = torch::stable::new_empty(plain, {outputs_, features_});
    const int8_t* from = elements_of(plain);
    int8_t* to = static_cast<int8_t*>(packed.data_ptr());
    torch::stable::parallel_for(
        0, outputs_ / kInt8Panel, rows_per_thread(kInt8Panel * features_),
        [&](int64_t begin, int64_t end) { kernels.pack_int8_weight(from, features_, to, begin, end); });
    return packed;
  }

  // The weight as it is, [outputs, features].
  torch::stable::Tensor unpacked() const {
    if (group_ == 0) return data_;
    torch::stable::Tensor plain = torch::stable::new_empty(data_, {outputs_, features_});
    const int8_t* from = elements_of(data_);
    int8_t* to = static_cast<int8_t*>(plain.data_ptr());
    torch::stable::parallel_for(0, outputs_, rows_per_thread(features_), [&](int64_t begin, int64_t end) {
      for (int64_t output = begin; output < end; ++output) {
        const int8_t* group = from + output / kInt8Panel * kInt8Panel * features_ + output % kInt8Panel * group_;
        for (int64_t i = 0; i < features_; i += group_, group += kInt8Panel * group_)
          std::copy_n(group, group_, to + output * features_ + i);
      }
    });
    return plain;
  }

  static const int8_t* elements_of(const torch::stable::Tensor& weight) {
    return static_cast<const int8_t*>(weight.data_ptr());
  }

 private:
  torch::stable::Tensor data_;
  int64_t outputs_ = 0, features_ = 0, group_ = 0;
};

}  // namespace mp
