// The CUDA operators as torch calls them, through its stable ABI: the only file of this folder that sees tensors.
// Schemas are in mp_kernels/schemas.py.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../checks.h"
#include "gather.cuh"

// The emulator of tests/simt has no launch that could fail.
#ifndef MP_CHECK_LAUNCH
#define MP_CHECK_LAUNCH STD_CUDA_KERNEL_LAUNCH_CHECK
#endif

namespace {

using mp::require;
using mp::require_dtype;
using mp::shape_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::accelerator::DeviceGuard;

std::string device_of(const Tensor& x) {
  if (x.is_cuda()) return "cuda:" + std::to_string(x.get_device_index());
  return x.is_cpu() ? "cpu" : "another device";
}

// The dispatcher chooses these operators if any tensor is on a CUDA device; the others may still be elsewhere.
void require_device(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  require(like.is_cuda(), op, ": ", like_name, " must be on a CUDA device; got ", device_of(like));
  require(device_of(x) == device_of(like), op, ": ", name, " must be on ", device_of(like), " like ", like_name,
          "; got ", device_of(x));
}

// An index, int64 [rows], made contiguous. Its values are checked on the device: reading them here would cost a
// synchronisation.
Tensor as_index(const char* op, const char* name, const Tensor& x) {
  require(x.dim() == 1, op, ": ", name, " must be one-dimensional; got ", shape_of(x));
  require_dtype(op, name, x, ScalarType::Long, "int64");
  return torch::stable::contiguous(x);
}

cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Type in which a gradient is summed, and the numbers of that type in an element: two in a complex one.
struct Numbers {
  mp::GradType type;
  int64_t per_element;
};

Numbers numbers_of(const char* op, const Tensor& grad) {
  switch (grad.scalar_type()) {
    case ScalarType::Float: return {mp::GradType::kFloat32, 1};
    case ScalarType::Half: return {mp::GradType::kFloat16, 1};
    case ScalarType::BFloat16: return {mp::GradType::kBFloat16, 1};
    case ScalarType::Double: return {mp::GradType::kFloat64, 1};
    case ScalarType::ComplexFloat: return {mp::GradType::kFloat32, 2};
    case ScalarType::ComplexDouble: return {mp::GradType::kFloat64, 2};
    default: break;
  }
  require(false, op, ": grads must be float32, float16, bfloat16, float64, complex64 or complex128; got dtype number ",
          static_cast<int>(grad.scalar_type()));
  return {};
}

std::vector<Tensor> ragged_gather(std::vector<Tensor> xs, const Tensor& index) {
  const char* op = "ragged_gather";
  for (const Tensor& x : xs) {
    require_device(op, "x", x, "index", index);
    require(x.dim() >= 1, op, ": x must have rows; got a scalar");
  }
  const DeviceGuard guard(index.get_device_index());
  const Tensor rows = as_index(op, "index", index);
  const int64_t count = rows.size(0);
  std::vector<Tensor> sources, results;
  std::vector<mp::RowCopy> copies;
  for (const Tensor& x : xs) {
    const Tensor& source = sources.emplace_back(mp::with_rows_together(x));
    const Tensor& result = results.emplace_back(mp::new_rows(source, count));
    const int64_t element_bytes = static_cast<int64_t>(source.element_size());
    mp::RowCopy& copy = copies.emplace_back();
    copy.x = static_cast<const char*>(source.data_ptr());
    copy.out = static_cast<char*>(result.data_ptr());
    copy.rows = source.size(0);
    copy.row_bytes = mp::row_elements(source) * element_bytes;
    copy.stride_bytes = source.stride(0) * element_bytes;
  }
  mp::gather(copies.data(), copies.size(), rows.const_data_ptr<int64_t>(), count, current_stream(index));
  MP_CHECK_LAUNCH();
  return results;
}

std::vector<Tensor> ragged_gather_backward(std::vector<Tensor> grads, const Tensor& sorted_index,
                                           std::optional<Tensor> order, std::vector<int64_t> rows) {
  const char* op = "ragged_gather_backward";
  require(rows.size() == grads.size(), op, ": rows must have one number for each of ", grads.size(), " grads; got ",
          rows.size());
  const int64_t count = sorted_index.numel();
  for (size_t t = 0; t < grads.size(); ++t) {
    require_device(op, "grads", grads[t], "sorted_index", sorted_index);
    require(grads[t].dim() >= 1 && grads[t].size(0) == count, op, ": grads must be [", count,
            ", ...], a row for each entry of sorted_index; got ", shape_of(grads[t]));
    require(rows[t] >= 0, op, ": rows must not be negative; got ", rows[t]);
  }
  if (order) {
    require_device(op, "order", *order, "sorted_index", sorted_index);
    require(order->numel() == count, op, ": order must be like sorted_index, [", count, "]; got ", shape_of(*order));
  }
  const DeviceGuard guard(sorted_index.get_device_index());
  const Tensor sorted = as_index(op, "sorted_index", sorted_index);
  Tensor places;
  if (order) places = as_index(op, "order", *order);
  std::vector<Tensor> sources, results;
  std::vector<mp::RowSum> sums;
  for (size_t t = 0; t < grads.size(); ++t) {
    const Tensor& source = sources.emplace_back(mp::with_rows_together(grads[t]));
    const Tensor& result = results.emplace_back(mp::new_rows(source, rows[t]));
    const Numbers numbers = numbers_of(op, source);
    mp::RowSum& sum = sums.emplace_back();
    sum.type = numbers.type;
    sum.grad = source.data_ptr();
    sum.sum = result.data_ptr();
    sum.rows = rows[t];
    sum.width = mp::row_elements(source) * numbers.per_element;
    sum.stride = source.stride(0) * numbers.per_element;
  }
  mp::gather_backward(sums.data(), sums.size(), sorted.const_data_ptr<int64_t>(),
                      order ? places.const_data_ptr<int64_t>() : nullptr, count, current_stream(sorted_index));
  MP_CHECK_LAUNCH();
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CUDA, m) {
  m.impl("ragged_gather", TORCH_BOX(&ragged_gather));
  m.impl("ragged_gather_backward", TORCH_BOX(&ragged_gather_backward));
}
