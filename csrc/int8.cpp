// The CPU operators around products of int8 matrices, as torch calls them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "threads.h"

namespace {

using mp::require;
using mp::require_dtype;
using mp::RowIndex;
using mp::rows_per_thread;
using mp::shape_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A contiguous float32 vector of that many elements.
Tensor float_vector(const char* op, const char* name, const Tensor& x, int64_t length) {
  require_dtype(op, name, x, ScalarType::Float, "float32");
  require(x.dim() == 1 && x.size(0) == length, op, ": ", name, " must be [", length, "]; got ", shape_of(x));
  return torch::stable::contiguous(x);
}

Tensor matrix(const char* op, const char* name, const Tensor& x, ScalarType dtype, const char* dtype_name) {
  require(x.dim() == 2, op, ": ", name, " must be [rows, width]; got ", shape_of(x));
  require_dtype(op, name, x, dtype, dtype_name);
  return torch::stable::contiguous(x);
}

// New int8 rows with their scales.
struct NewInt8Rows {
  Tensor rows, scales;
  NewInt8Rows(const Tensor& like, int64_t count, int64_t width)
      : rows(torch::stable::new_empty(like, {count, width}, ScalarType::Char)),
        scales(torch::stable::new_empty(like, {count}, ScalarType::Float)) {}
  mp::Int8Rows pointers() { return {static_cast<int8_t*>(rows.data_ptr()), scales.mutable_data_ptr<float>()}; }
};

struct Product {
  Tensor product, row_scales, column_scales, bias;
  mp::Int8Product pointers;

  Product(const char* op, const Tensor& product_in, const Tensor& row_scales_in, const Tensor& column_scales_in,
          const std::optional<Tensor>& bias_in)
      : product(matrix(op, "product", product_in, ScalarType::Int, "int32")),
        row_scales(float_vector(op, "row_scales", row_scales_in, product.size(0))),
        column_scales(float_vector(op, "column_scales", column_scales_in, product.size(1))) {
    if (bias_in) bias = float_vector(op, "bias", *bias_in, product.size(1));
    pointers = {product.const_data_ptr<int32_t>(), row_scales.const_data_ptr<float>(),
                column_scales.const_data_ptr<float>(), bias_in ? bias.const_data_ptr<float>() : nullptr,
                product.size(1)};
  }
  int64_t rows() const { return product.size(0); }
};

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x, std::optional<Tensor> index) {
  const char* op = "quantize_rows";
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const RowIndex rows(op, "index", index, source.size(0));
  const int64_t width = source.size(1);
  NewInt8Rows result(source, rows.rows(), width);
  const mp::Int8Rows out = result.pointers();
  torch::stable::parallel_for(0, rows.rows(), rows_per_thread(width * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().quantize_rows(source.const_data_ptr<float>(), rows.data(), width, out, begin, end);
  });
  return {result.rows, result.scales};
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

Tensor dequantize(const Tensor& product, const Tensor& row_scales, const Tensor& column_scales,
                  std::optional<Tensor> bias) {
  const Product from("dequantize", product, row_scales, column_scales, bias);
  Tensor result = torch::stable::new_empty(from.row_scales, {from.rows(), from.pointers.width});
  float* out = result.mutable_data_ptr<float>();
  torch::stable::parallel_for(
      0, from.rows(), rows_per_thread(from.pointers.width * 4),
      [&](int64_t begin, int64_t end) { mp::kernels().dequantize(from.pointers, out, begin, end); });
  return result;
}

std::tuple<Tensor, Tensor> dequantize_gelu(const Tensor& product, const Tensor& row_scales, const Tensor& column_scales,
                                           std::optional<Tensor> bias) {
  const Product from("dequantize_gelu", product, row_scales, column_scales, bias);
  NewInt8Rows result(from.row_scales, from.rows(), from.pointers.width);
  const mp::Int8Rows out = result.pointers();
  torch::stable::parallel_for(
      0, from.rows(), rows_per_thread(from.pointers.width * 4),
      [&](int64_t begin, int64_t end) { mp::kernels().dequantize_gelu(from.pointers, out, begin, end); });
  return {result.rows, result.scales};
}

Tensor dequantize_add_layer_norm(const Tensor& product, const Tensor& row_scales, const Tensor& column_scales,
                                 std::optional<Tensor> bias, const Tensor& residual, std::optional<Tensor> index,
                                 const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const char* op = "dequantize_add_layer_norm";
  const Product from(op, product, row_scales, column_scales, bias);
  const int64_t width = from.pointers.width;
  const Tensor residuals = matrix(op, "residual", residual, ScalarType::Float, "float32");
  require(residuals.size(1) == width, op, ": product and residual must have one width; got ", shape_of(product),
          " and ", shape_of(residual));
  const RowIndex residual_rows(op, "index", index, residuals.size(0));
  require(residual_rows.rows() == from.rows(), op, ": product and residual must have the same rows, after index; got ",
          from.rows(), " and ", residual_rows.rows());
  const Tensor weight = float_vector(op, "norm_weight", norm_weight, width);
  const Tensor offset = float_vector(op, "norm_bias", norm_bias, width);
  Tensor result = torch::stable::new_empty(from.row_scales, {from.rows(), width});
  const mp::LayerNorm norm{
      mp::Dtype::kFloat32, nullptr,           nullptr, residuals.data_ptr(),   residual_rows.data(), weight.data_ptr(),
      offset.data_ptr(),   result.data_ptr(), width,   static_cast<float>(eps)};
  torch::stable::parallel_for(0, from.rows(), rows_per_thread(width * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().dequantize_add_layer_norm(from.pointers, norm, begin, end);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("quantize_rows", TORCH_BOX(&quantize_rows));
  m.impl("dequantize_rows", TORCH_BOX(&dequantize_rows));
  m.impl("dequantize", TORCH_BOX(&dequantize));
  m.impl("dequantize_gelu", TORCH_BOX(&dequantize_gelu));
  m.impl("dequantize_add_layer_norm", TORCH_BOX(&dequantize_add_layer_norm));
}
