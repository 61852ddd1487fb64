// Linear layers and the LayerNorms that follow them, as the CPU operators compute them: bfloat16 in blocks, float32 in
// panels of rows. On processors without these, and of other types or widths, they run in plain loops, in float32 until
// what the operators round; there mp_kernels/products.py calls torch's own product.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "row_steps.h"
#include "threads.h"

// Whether weights [outputs, features] of bfloat16 are multiplied in blocks here.
extern "C" bool mp_multiplies_bfloat16(int64_t outputs, int64_t features);
// Rows up to which weights [outputs, features] of float32 are multiplied faster here than by torch.
extern "C" int64_t mp_float_rows(int64_t outputs, int64_t features);

namespace mp {

// x in float32, contiguous.
inline torch::stable::Tensor wide(const torch::stable::Tensor& x) {
  return torch::stable::contiguous(torch::stable::to(x, torch::headeronly::ScalarType::Float));
}

// Memory of a tensor of bfloat16.
inline const BFloat16* halves(const torch::stable::Tensor& x) {
  return static_cast<const BFloat16*>(x.data_ptr());
}

// A contiguous vector of that many elements, of x's type.
inline torch::stable::Tensor vector_like(const char* op, const char* name, const torch::stable::Tensor& vector,
                                         const torch::stable::Tensor& x, int64_t length) {
  require(vector.scalar_type() == x.scalar_type() && vector.dim() == 1 && vector.size(0) == length, op, ": ", name,
          " must be [", length, "] of x's dtype; got ", shape_of(vector));
  return torch::stable::contiguous(vector);
}

// Nothing that is done before a step.
inline void nothing(int64_t, int64_t) {}

// Computes rows of float32 by steps, as run_rows does.
template <typename StepsOf>
void run_in_steps(int64_t count, const torch::stable::Tensor& like, int64_t weight_bytes, const StepsOf& steps_of) {
  run_rows(count, like, weight_bytes, [](int64_t) { return kernels().float_scratch; }, steps_of);
}

// A linear layer.
class Linear {
 public:
  // x: what is multiplied, or something of its dtype.
  Linear(const char* op, const torch::stable::Tensor& x, int64_t features, const torch::stable::Tensor& weight,
         const std::optional<torch::stable::Tensor>& bias)
      : dtype_(floating_dtype(op, "x", x)), weight_(torch::stable::contiguous(weight)) {
    require(x.dim() == 2 && weight.dim() == 2 && weight.size(1) == features && weight.scalar_type() == x.scalar_type(),
            op, ": a weight must be [outputs, ", features, "] of x's dtype, and x [rows, features]; got ",
            shape_of(weight), " and ", shape_of(x));
    if (bias) bias_ = vector_like(op, "bias", *bias, x, outputs());
  }
  int64_t outputs() const { return weight_.size(0); }
  int64_t features() const { return weight_.size(1); }
  int64_t weight_bytes() const { return outputs() * features() * bytes_of(dtype_); }

  // Whether blocks take the layer.
  bool in_blocks() const { return dtype_ == Dtype::kBFloat16 && mp_multiplies_bfloat16(outputs(), features()); }

  // The layer for products with that many rows in all, after its weight was packed where that is less work than to pack
  // the rows and to turn their sums.
  HalfLinear blocks_for(int64_t rows) {
    if (rows * (features() + 2 * outputs()) >= outputs() * features()) pack();
    HalfLinear layer = unpacked();
    if (packed_) layer.packed = halves(*packed_);
    return layer;
  }

  // Whether rows of float32 are multiplied in steps.
  bool in_steps(int64_t rows) const {
    const int64_t most = mp_float_rows(outputs(), features());
    return dtype_ == Dtype::kFloat32 && most > 0 && rows <= most;
  }

  // Whether threads share the outputs of rows of bfloat16.
  bool shares_halves(int64_t rows) const {
    return in_blocks() && kernels().pack_half_rows && share_outputs(rows, weight_bytes());
  }

  // The steps of the product of x, `count` rows of bfloat16, with or without GELU.
  std::vector<Step> half_steps(Taker& memory, HalfRows x, int64_t count, bool gelu, BFloat16* out) const {
    BFloat16* panels = memory.halves(half_panels(count) * kHalfPanel * features());
    return {half_packing(x, count, panels),
            {half_blocks(), features() * kHalfBlock * 2,
             [=, layer = unpacked()](int64_t begin, int64_t end, float* scratch) {
               kernels().half_outputs(layer, panels, count, gelu, out, begin, end, scratch);
             }}};
  }

  // The same with a LayerNorm after it.
  std::vector<Step> half_steps(Taker& memory, HalfRows x, int64_t count, const LayerNorm& norm) const {
    BFloat16* panels = memory.halves(half_panels(count) * kHalfPanel * features());
    float* sums = memory.floats(kernels().half_sums(count, outputs()));
    return {half_packing(x, count, panels),
            {half_blocks(), features() * kHalfBlock * 2,
             [=, layer = unpacked()](int64_t begin, int64_t end, float*) {
               kernels().sum_half_outputs(layer, panels, count, sums, begin, end);
             }},
            {count, outputs() * 4, [=, layer = unpacked()](int64_t begin, int64_t end, float*) {
               kernels().norm_half_sums(layer, norm, sums, count, begin, end);
             }}};
  }

  // Floats of memory for the steps of that many rows, which may serve one layer after the other.
  int64_t panels(int64_t rows) const {
    const int64_t panel = kernels().float_panel;
    return packs(rows) ? (rows + panel - 1) / panel * panel * features() : 0;
  }

  // The steps of the product of x [count, features] in float32, after `before` was done with x's rows.
  template <typename Before>
  std::vector<Step> steps(const float* x, int64_t count, float* panels, float* out, const Before& before) const {
    const float *weight = weight_.const_data_ptr<float>(), *bias = bias_ ? bias_->const_data_ptr<float>() : nullptr;
    if (!packs(count)) {
      const Dense dense{Dtype::kFloat32, x, weight, bias, out, count, features(), outputs()};
      return {
          {count, features() * 4, [=](int64_t begin, int64_t end, float*) { before(begin, end); }},
          {outputs(), features() * 4, [=](int64_t begin, int64_t end, float*) { kernels().dense(dense, begin, end); }}};
    }
    const FloatLinear layer{x, count, features(), outputs(), features(), weight, bias, panels, out};
    const int64_t panel = kernels().float_panel, strip = kernels().float_strip;
    return {{(count + panel - 1) / panel, features() * panel * 4,
             [=](int64_t begin, int64_t end, float*) {
               before(begin * panel, std::min(end * panel, count));
               kernels().pack_float_rows(layer, begin, end);
             }},
            {(outputs() + strip - 1) / strip, features() * strip * 4, [=](int64_t begin, int64_t end, float* scratch) {
               kernels().multiply_float_rows(layer, begin, end, scratch);
             }}};
  }
  std::vector<Step> steps(const float* x, int64_t count, float* panels, float* out) const {
    return steps(x, count, panels, out, nothing);
  }

  // The product of x, float32, by the kernels for it or in plain loops.
  torch::stable::Tensor product(const torch::stable::Tensor& x) const {
    if (!in_steps(x.size(0))) return in_loops(x);
    const torch::stable::Tensor source = torch::stable::contiguous(x);
    torch::stable::Tensor result = torch::stable::new_empty(source, {x.size(0), outputs()});
    const float* from = source.const_data_ptr<float>();
    float* out = result.mutable_data_ptr<float>();
    run_in_steps(x.size(0), source, weight_bytes(), [&](Taker& memory, int64_t first, int64_t count) {
      return steps(from + first * features(), count, memory.floats(panels(count)), out + first * outputs());
    });
    return result;
  }

 private:
  static constexpr int64_t kHalfPanel = 16, kHalfBlock = 32;

  static int64_t half_panels(int64_t rows) { return (rows + kHalfPanel - 1) / kHalfPanel; }
  int64_t half_blocks() const { return (outputs() + kHalfBlock - 1) / kHalfBlock; }
  HalfLinear unpacked() const {
    return {halves(weight_), nullptr, bias_ ? halves(*bias_) : nullptr, outputs(), features()};
  }

  Step half_packing(HalfRows x, int64_t count, BFloat16* panels) const {
    return {half_panels(count), features() * kHalfPanel * 2,
            [=, width = features()](int64_t begin, int64_t end, float*) {
              kernels().pack_half_rows(x, count, width, panels, begin, end);
            }};
  }

  // Whether rows are packed; the plain loops of fewer wait for the weight alone.
  static bool packs(int64_t rows) {
    constexpr int64_t kFewest = 4;
    return rows >= kFewest;
  }

  // The product in plain loops, float32.
  torch::stable::Tensor in_loops(const torch::stable::Tensor& x) const {
    const torch::stable::Tensor source = wide(x), weight = wide(weight_), bias = bias_ ? wide(*bias_) : weight;
    torch::stable::Tensor result = torch::stable::new_empty(source, {x.size(0), outputs()});
    const Dense layer{Dtype::kFloat32,   source.data_ptr(), weight.data_ptr(), bias_ ? bias.data_ptr() : nullptr,
                      result.data_ptr(), x.size(0),         features(),        outputs()};
    torch::stable::parallel_for(0, outputs(), rows_per_thread(features() * 4),
                                [&](int64_t begin, int64_t end) { kernels().dense(layer, begin, end); });
    return result;
  }

  void pack() {
    constexpr int64_t kPack = 16;
    packed_ = torch::stable::new_empty(weight_, {outputs(), features()});
    auto* packed = static_cast<BFloat16*>(packed_->data_ptr());
    torch::stable::parallel_for(0, outputs() / kPack, rows_per_thread(kPack * features() * 2),
                                [&](int64_t begin, int64_t end) {
                                  kernels().pack_half_weight(halves(weight_), features(), packed, begin, end);
                                });
  }

  Dtype dtype_;
  torch::stable::Tensor weight_;
  std::optional<torch::stable::Tensor> bias_, packed_;
};

// The LayerNorm after a residual.
class Norm {
 public:
  // x: something of the dtype.
  Norm(const char* op, const torch::stable::Tensor& x, int64_t width, const torch::stable::Tensor& weight,
       const torch::stable::Tensor& bias, double eps)
      : dtype_(floating_dtype(op, "x", x)),
        weight_(vector_like(op, "norm_weight", weight, x, width)),
        bias_(vector_like(op, "norm_bias", bias, x, width)),
        eps_(static_cast<float>(eps)) {}

  // The step into `out`, of products that are added up where it finds them.
  LayerNorm into(void* out, const void* residual, const int64_t* index) const {
    return step(dtype_, nullptr, residual, index, weight_, bias_, out);
  }

  // The step for products of float32 that it finds in the result.
  LayerNorm over(float* product, const float* residual, const int64_t* index) const {
    return step(Dtype::kFloat32, product, residual, index, weight_, bias_, product);
  }

  // The result where the product is there already, in float32; it is overwritten.
  torch::stable::Tensor of(torch::stable::Tensor product, const torch::stable::Tensor& residual,
                           const int64_t* index) const {
    const torch::stable::Tensor entered = wide(residual), weight = wide(weight_), bias = wide(bias_);
    const LayerNorm norm =
        step(Dtype::kFloat32, product.data_ptr(), entered.data_ptr(), index, weight, bias, product.data_ptr());
    torch::stable::parallel_for(0, product.size(0), rows_per_thread(norm.width * 4),
                                [&](int64_t begin, int64_t end) { kernels().add_layer_norm(norm, begin, end); });
    return torch::stable::to(product, residual.scalar_type());
  }

 private:
  LayerNorm step(Dtype dtype, const void* x, const void* residual, const int64_t* index,
                 const torch::stable::Tensor& weight, const torch::stable::Tensor& bias, void* out) const {
    return {dtype, x, nullptr, residual, index, weight.data_ptr(), bias.data_ptr(), out, weight.size(0), eps_};
  }

  Dtype dtype_;
  torch::stable::Tensor weight_, bias_;
  float eps_;
};

// The rows that are added to a product before its LayerNorm: residual, or residual[index].
class Residual {
 public:
  // x: of the product's dtype; rows: of the product.
  Residual(const char* op, const torch::stable::Tensor& x, int64_t rows, int64_t width,
           const torch::stable::Tensor& residual, const std::optional<torch::stable::Tensor>& index)
      : rows_(torch::stable::contiguous(residual)), places_(op, "index", index, residual.size(0)) {
    require(residual.dim() == 2 && residual.size(1) == width && residual.scalar_type() == x.scalar_type(), op,
            ": residual must be [any, ", width, "] of x's dtype; got ", shape_of(residual));
    require(places_.rows() == rows, op, ": x and residual must have the same rows, after index; got ", rows, " and ",
            places_.rows());
  }
  const torch::stable::Tensor& rows() const { return rows_; }
  const int64_t* index() const { return places_.data(); }

  const BFloat16* halves() const { return static_cast<const BFloat16*>(rows_.data_ptr()); }
  // Places, and floats, of what is added to a product's rows from `first` on.
  const int64_t* index_from(int64_t first) const { return index() ? index() + first : nullptr; }
  const float* floats_from(int64_t first) const {
    return rows_.const_data_ptr<float>() + (index() ? 0 : first * rows_.size(1));
  }

 private:
  torch::stable::Tensor rows_;
  RowIndex places_;
};

// The step of a LayerNorm over `count` rows.
inline Step norm_step(const LayerNorm& norm, int64_t count) {
  return {count, norm.width * 4,
          [=](int64_t begin, int64_t end, float*) { kernels().add_layer_norm(norm, begin, end); }};
}

// Two linear layers with GELU between them, and the LayerNorm after them.
struct FeedForward {
  Linear grow, shrink;
  Norm norm;

  // x: something of the dtype; features: of the rows.
  FeedForward(const char* op, const torch::stable::Tensor& x, int64_t features,
              const torch::stable::Tensor& grow_weight, const std::optional<torch::stable::Tensor>& grow_bias,
              const torch::stable::Tensor& weight, const std::optional<torch::stable::Tensor>& bias,
              const torch::stable::Tensor& norm_weight, const torch::stable::Tensor& norm_bias, double eps)
      : grow(op, x, features, grow_weight, grow_bias),
        shrink(op, x, grow.outputs(), weight, bias),
        norm(op, x, shrink.outputs(), norm_weight, norm_bias, eps) {
    require(shrink.outputs() == features, op, ": the layers must give rows as wide as they take, ", features, "; got ",
            shrink.outputs());
  }

  bool in_steps(int64_t rows) const { return grow.in_steps(rows) && shrink.in_steps(rows); }
  int64_t panels(int64_t rows) const { return std::max(grow.panels(rows), shrink.panels(rows)); }
  int64_t weight_bytes() const { return std::max(grow.weight_bytes(), shrink.weight_bytes()); }

  // The steps from x [count, features] to out [count, outputs], after `before` was done with x's rows. panels: memory
  // that nothing needs which comes before.
  template <typename Before>
  std::vector<Step> steps(Taker& memory, const float* x, int64_t count, float* panels, float* out,
                          const Before& before) const {
    const int64_t inner = grow.outputs();
    float* grown = memory.floats(count * inner);
    const auto activate = [=](int64_t begin, int64_t end) {
      kernels().bias_gelu(Dtype::kFloat32, grown, nullptr, grown, inner, begin, end);
    };
    return joined({grow.steps(x, count, panels, grown, before),
                   shrink.steps(grown, count, panels, out, activate),
                   {norm_step(norm.over(out, x, nullptr), count)}});
  }
  std::vector<Step> steps(Taker& memory, const float* x, int64_t count, float* panels, float* out) const {
    return steps(memory, x, count, panels, out, nothing);
  }

  bool shares_halves(int64_t rows) const { return grow.shares_halves(rows) && shrink.shares_halves(rows); }

  // The same steps for rows of bfloat16, one after the other.
  std::vector<Step> half_steps(Taker& memory, const BFloat16* x, int64_t count, BFloat16* out) const {
    const int64_t inner = grow.outputs();
    BFloat16* grown = memory.halves(count * inner);
    return joined({grow.half_steps(memory, {x, grow.features()}, count, true, grown),
                   shrink.half_steps(memory, {grown, inner}, count, norm.into(out, x, nullptr))});
  }
};

// The operators, on matrices whose rows are multiplied in whatever way is theirs.
torch::stable::Tensor linear(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                             std::optional<torch::stable::Tensor> bias);
torch::stable::Tensor linear_add_layer_norm(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                                            std::optional<torch::stable::Tensor> bias,
                                            const torch::stable::Tensor& residual,
                                            std::optional<torch::stable::Tensor> index,
                                            const torch::stable::Tensor& norm_weight,
                                            const torch::stable::Tensor& norm_bias, double eps);
torch::stable::Tensor feed_forward(const torch::stable::Tensor& x, const torch::stable::Tensor& grow_weight,
                                   std::optional<torch::stable::Tensor> grow_bias, const torch::stable::Tensor& weight,
                                   std::optional<torch::stable::Tensor> bias, const torch::stable::Tensor& norm_weight,
                                   const torch::stable::Tensor& norm_bias, double eps);

}  // namespace mp
