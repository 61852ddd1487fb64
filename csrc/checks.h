// Checks of tensors, and views of them as rows, for the CPU and the CUDA operators.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace mp {

// Throws an error, with the parts as its message, unless the condition holds.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message << "mp_kernels.";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const torch::stable::Tensor& x) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < x.dim(); ++i) text << (i ? ", " : "") << x.size(i);
  text << ']';
  return text.str();
}

inline void require_dtype(const char* op, const char* name, const torch::stable::Tensor& x,
                          torch::headeronly::ScalarType wanted, const char* wanted_name) {
  require(x.scalar_type() == wanted, op, ": ", name, " must be ", wanted_name, "; got dtype number ",
          static_cast<int>(x.scalar_type()));
}

// x, copied unless each of its rows is contiguous. Rows need not follow each other in memory (slices of packed rows).
inline torch::stable::Tensor with_rows_together(const torch::stable::Tensor& x) {
  bool together = true;
  for (int64_t d = x.dim() - 1, step = 1; d >= 1; step *= x.size(d--))
    together = together && (x.size(d) <= 1 || x.stride(d) == step);
  return together ? x : torch::stable::contiguous(x);
}

inline int64_t row_elements(const torch::stable::Tensor& x) {
  int64_t elements = 1;
  for (int64_t d = 1; d < x.dim(); ++d) elements *= x.size(d);
  return elements;
}

// An uninitialised tensor like x with another number of rows.
inline torch::stable::Tensor new_rows(const torch::stable::Tensor& x, int64_t rows) {
  std::vector<int64_t> sizes{rows};
  for (int64_t d = 1; d < x.dim(); ++d) sizes.push_back(x.size(d));
  return torch::stable::new_empty(x, sizes);
}

// An operator of torch's with one result.
template <typename... Arguments>
torch::stable::Tensor call_torch(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

}  // namespace mp
