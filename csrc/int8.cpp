// The CPU operators around products of int8 matrices, as torch calls them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/kernels.h"
#include "int8_arguments.h"
#include "threads.h"

namespace {

using mp::Columns;
using mp::float_vector;
using mp::Int8Weight;
using mp::kInt8Panel;
using mp::matrix;
using mp::NewInt8Rows;
using mp::require;
using mp::RowIndex;
using mp::rows_per_thread;
using mp::shape_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The product of quantised rows with a weight, whose elements become floats in `finish`.
class Linear {
 public:
  Linear(const char* op, const Tensor& rows, const Tensor& row_scales, const Tensor& weight,
         const Tensor& column_scales, const std::optional<Tensor>& bias, const std::optional<Tensor>& kept,
         const std::optional<Tensor>& kept_weight)
      : rows_(matrix(op, "rows", rows, ScalarType::Char, "int8")),
        weight_(op, weight),
        row_scales_(float_vector(op, "row_scales", row_scales, count())),
        column_scales_(float_vector(op, "column_scales", column_scales, width())) {
    require(rows_.size(1) == features(), op, ": rows and weight must have the same features; got ", shape_of(rows),
            " and ", shape_of(weight));
    if (bias) bias_ = float_vector(op, "bias", *bias, width());
    require(kept.has_value() == kept_weight.has_value(), op, ": kept and kept_weight must be given together");
    if (!kept) return;
    kept_ = matrix(op, "kept", *kept, ScalarType::Float, "float32");
    require(kept_->size(0) == count(), op, ": kept must be [rows, columns]; got ", shape_of(*kept));
    kept_weight_ = mp::by_column(op, *kept_weight, width(), kept_->size(1));
  }
  int64_t count() const { return rows_.size(0); }
  int64_t width() const { return weight_.outputs(); }
  Tensor new_floats() const { return torch::stable::new_empty(row_scales_, {count(), width()}); }
  NewInt8Rows new_rows(const Columns& columns) const { return NewInt8Rows(row_scales_, count(), width(), columns); }

  // Calls finish(product, begin, end) for all rows of the product.
  template <typename Finish>
  void run(const Finish& finish) const {
    const mp::Kernels& kernels = mp::kernels();
    if (!kernels.takes_int8_weight || !kernels.takes_int8_weight(width(), features()))
      run_in_torch(finish);
    else if (count() > rows_at_a_time())
      run_in_blocks(kernels, finish);
    else
      run_by_outputs(kernels, finish);
  }

 private:
  int64_t features() const { return weight_.features(); }

  mp::Int8Product product(const int32_t* elements, int64_t first) const {
    return {elements,
            first,
            row_scales_.const_data_ptr<float>(),
            column_scales_.const_data_ptr<float>(),
            bias_ ? bias_->const_data_ptr<float>() : nullptr,
            width(),
            kept_ ? kept_->const_data_ptr<float>() : nullptr,
            kept_ ? kept_weight_->const_data_ptr<float>() : nullptr,
            kept_ ? kept_->size(1) : 0};
  }

  template <typename Finish>
  void run_in_torch(const Finish& finish) const {
    const Tensor all = mp::call_torch("aten::_int_mm", rows_, torch::stable::transpose(weight_.unpacked(), 0, 1));
    run_finish(all, finish);
  }

  // All rows at once, where every thread would not get some: each takes some of the outputs.
  template <typename Finish>
  void run_by_outputs(const mp::Kernels& kernels, const Finish& finish) const {
    const Tensor packed = weight_.packed_for(kernels);
    const int8_t* panels = Int8Weight::elements_of(packed);
    const auto* rows = static_cast<const int8_t*>(rows_.data_ptr());
    Tensor all = torch::stable::new_empty(rows_, {count(), width()}, ScalarType::Int);
    auto* elements = all.mutable_data_ptr<int32_t>();
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t outputs = (width() / kInt8Panel + threads - 1) / threads * kInt8Panel;
    const size_t floats = kernels.int8_scratch(count(), features());
    mp::run_in_order((width() + outputs - 1) / outputs, floats, [&](int64_t task, float* scratch) {
      const int64_t begin = task * outputs, end = std::min(begin + outputs, width());
      kernels.multiply_int8(rows, count(), features(), panels + begin * features(), end - begin, elements + begin,
                            width(), scratch);
    });
    run_finish(all, finish);
  }

  // The floats of a product that is there.
  template <typename Finish>
  void run_finish(const Tensor& all, const Finish& finish) const {
    torch::stable::parallel_for(0, count(), rows_per_thread(width() * 4), [&](int64_t begin, int64_t end) {
      finish(product(all.const_data_ptr<int32_t>(), 0), begin, end);
    });
  }

  // Some rows at a time, whose int32 elements stay in the cache until they are floats.
  template <typename Finish>
  void run_in_blocks(const mp::Kernels& kernels, const Finish& finish) const {
    const Tensor packed = weight_.packed_for(kernels);
    const int8_t* panels = Int8Weight::elements_of(packed);
    const int64_t step = rows_at_a_time();
    const auto* rows = static_cast<const int8_t*>(rows_.data_ptr());
    const size_t floats = static_cast<size_t>(step * width()) + kernels.int8_scratch(step, features());
    mp::run_in_order((count() + step - 1) / step, floats, [&](int64_t task, float* scratch) {
      const int64_t begin = task * step, end = std::min(begin + step, count());
      auto* elements = reinterpret_cast<int32_t*>(scratch);
      float* more = scratch + step * width();
      kernels.multiply_int8(rows + begin * features(), end - begin, features(), panels, width(), elements, width(),
                            more);
      finish(product(elements, begin), begin, end);
    });
  }

  int64_t rows_at_a_time() const { return mp::rows_at_a_time(count(), width() * features()); }

  Tensor rows_;
  Int8Weight weight_;
  Tensor row_scales_, column_scales_;
  std::optional<Tensor> bias_, kept_, kept_weight_;
};

std::tuple<Tensor, Tensor, Tensor> quantize_rows(const Tensor& x, std::optional<Tensor> index,
                                                 std::optional<Tensor> columns) {
  const char* op = "quantize_rows";
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const RowIndex rows(op, "index", index, source.size(0));
  const int64_t width = source.size(1);
  const Columns kept(op, columns, width);
  NewInt8Rows result(source, rows.rows(), width, kept);
  const mp::Int8Rows out = result.pointers(kept);
  torch::stable::parallel_for(0, rows.rows(), rows_per_thread(width * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().quantize_rows(source.const_data_ptr<float>(), rows.data(), width, out, begin, end);
  });
  return {result.rows, result.scales, result.kept};
}

Tensor dequantize_rows(const Tensor& rows, const Tensor& scales, std::optional<Tensor> index) {
  const char* op = "dequantize_rows";
  const Tensor source = matrix(op, "rows", rows, ScalarType::Char, "int8");
  const Tensor factors = float_vector(op, "scales", scales, source.size(0));
  const RowIndex places(op, "index", index, source.size(0));
  const int64_t width = source.size(1);
  const mp::Int8Rows from{static_cast<int8_t*>(source.data_ptr()), static_cast<float*>(factors.data_ptr())};
  Tensor result = torch::stable::new_empty(factors, {places.rows(), width});
  float* out = result.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, places.rows(), rows_per_thread(width * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().dequantize_rows(from, places.data(), width, out, begin, end);
  });
  return result;
}

Tensor int8_linear(const Tensor& rows, const Tensor& row_scales, const Tensor& weight, const Tensor& column_scales,
                   std::optional<Tensor> bias, std::optional<Tensor> kept, std::optional<Tensor> kept_weight) {
  const Linear linear("int8_linear", rows, row_scales, weight, column_scales, bias, kept, kept_weight);
  Tensor result = linear.new_floats();
  float* out = result.mutable_data_ptr<float>();
  linear.run([&](const mp::Int8Product& product, int64_t begin, int64_t end) {
    mp::kernels().dequantize(product, out, begin, end);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> int8_linear_gelu(const Tensor& rows, const Tensor& row_scales, const Tensor& weight,
                                                    const Tensor& column_scales, std::optional<Tensor> bias,
                                                    std::optional<Tensor> kept, std::optional<Tensor> kept_weight,
                                                    std::optional<Tensor> columns) {
  const char* op = "int8_linear_gelu";
  const Linear linear(op, rows, row_scales, weight, column_scales, bias, kept, kept_weight);
  const Columns kept_next(op, columns, linear.width());
  NewInt8Rows result = linear.new_rows(kept_next);
  const mp::Int8Rows out = result.pointers(kept_next);
  linear.run([&](const mp::Int8Product& product, int64_t begin, int64_t end) {
    mp::kernels().dequantize_gelu(product, out, begin, end);
  });
  return {result.rows, result.scales, result.kept};
}

Tensor int8_linear_add_layer_norm(const Tensor& rows, const Tensor& row_scales, const Tensor& weight,
                                  const Tensor& column_scales, std::optional<Tensor> bias, const Tensor& residual,
                                  std::optional<Tensor> index, const Tensor& norm_weight, const Tensor& norm_bias,
                                  double eps, std::optional<Tensor> kept, std::optional<Tensor> kept_weight) {
  const char* op = "int8_linear_add_layer_norm";
  const Linear linear(op, rows, row_scales, weight, column_scales, bias, kept, kept_weight);
  const int64_t width = linear.width();
  const Tensor residuals = matrix(op, "residual", residual, ScalarType::Float, "float32");
  require(residuals.size(1) == width, op, ": residual must be as wide as weight has rows; got ", shape_of(residual),
          " and ", shape_of(weight));
  const RowIndex residual_rows(op, "index", index, residuals.size(0));
  require(residual_rows.rows() == linear.count(), op, ": rows and residual must have the same rows, after index; got ",
          linear.count(), " and ", residual_rows.rows());
  const Tensor factor = float_vector(op, "norm_weight", norm_weight, width);
  const Tensor offset = float_vector(op, "norm_bias", norm_bias, width);
  Tensor result = linear.new_floats();
  const mp::LayerNorm norm{
      mp::Dtype::kFloat32, nullptr,           nullptr, residuals.data_ptr(),   residual_rows.data(), factor.data_ptr(),
      offset.data_ptr(),   result.data_ptr(), width,   static_cast<float>(eps)};
  linear.run([&](const mp::Int8Product& product, int64_t begin, int64_t end) {
    mp::kernels().dequantize_add_layer_norm(product, norm, begin, end);
  });
  return result;
}

}  // namespace

// For mp_kernels/extension.py: the group by which the build in use packs an int8 weight; 0: torch multiplies it.
extern "C" __attribute__((visibility("default"))) int64_t mp_int8_group(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_int8_weight && kernels.takes_int8_weight(outputs, features) ? kernels.int8_group : 0;
}

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_linear_gelu", TORCH_BOX(&int8_linear_gelu));
  m.impl("int8_linear_add_layer_norm", TORCH_BOX(&int8_linear_add_layer_norm));
}
