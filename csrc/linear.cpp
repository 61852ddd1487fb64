// The CPU operators for linear layers and the steps around them, as torch calls them.
#include "linear.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace mp {

using torch::stable::Tensor;

namespace {

// Calls work(begin, end, scratch) for all rows, as many at a time as fit the cache with all that becomes of them, few
// enough for every thread to get some.
template <typename Work>
void run_in_blocks(int64_t rows, int64_t features, int64_t grown, int64_t outputs, const Work& work) {
  constexpr int64_t kLeast = 32, kMost = 128;
  const int64_t threads = torch::stable::get_num_threads();
  int64_t step = kMost;
  while (threads > 1 && step > kLeast && rows < step * threads) step /= 2;
  const size_t scratch = kernels().linear_scratch(std::min(step, rows), features, grown, outputs);
  run_in_order((rows + step - 1) / step, scratch,
               [&](int64_t task, float* memory) { work(task * step, std::min((task + 1) * step, rows), memory); });
}

HalfRows rows_of(const Tensor& x) {
  return {halves(x), x.stride(0)};
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias) {
  Linear layer("linear", x, x.size(1), weight, bias);
  if (!layer.in_blocks()) return torch::stable::to(layer.product(x), x.scalar_type());
  const Tensor source = with_rows_together(x);
  Tensor result = torch::stable::new_empty(source, {x.size(0), layer.outputs()});
  auto* out = static_cast<BFloat16*>(result.data_ptr());
  if (layer.shares_halves(x.size(0))) {
    run_shared(x, kernels().half_outputs_scratch,
               [&](Taker& memory) { return layer.half_steps(memory, rows_of(source), x.size(0), false, out); });
    return result;
  }
  const HalfLinear blocks = layer.blocks_for(x.size(0));
  run_in_blocks(x.size(0), layer.features(), 0, 0, [&](int64_t begin, int64_t end, float* scratch) {
    kernels().linear(blocks, rows_of(source), out, begin, end, scratch);
  });
  return result;
}

Tensor linear_add_layer_norm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& residual,
                             std::optional<Tensor> index, const Tensor& norm_weight, const Tensor& norm_bias,
                             double eps) {
  const char* op = "linear_add_layer_norm";
  Linear layer(op, x, x.size(1), weight, bias);
  const int64_t rows = x.size(0), width = layer.outputs();
  const Norm norm(op, x, width, norm_weight, norm_bias, eps);
  const Residual entered(op, x, rows, width, residual, index);
  if (layer.in_steps(rows)) {
    const Tensor source = torch::stable::contiguous(x);
    Tensor result = torch::stable::new_empty(source, {rows, width});
    const float* from = source.const_data_ptr<float>();
    float* out = result.mutable_data_ptr<float>();
    run_in_steps(rows, source, layer.weight_bytes(), [&](Taker& memory, int64_t first, int64_t count) {
      float* some = out + first * width;
      const LayerNorm last = norm.over(some, entered.floats_from(first), entered.index_from(first));
      return joined({layer.steps(from + first * layer.features(), count, memory.floats(layer.panels(count)), some),
                     {norm_step(last, count)}});
    });
    return result;
  }
  if (!layer.in_blocks()) return norm.of(layer.product(x), entered.rows(), entered.index());
  const Tensor source = with_rows_together(x);
  Tensor result = torch::stable::new_empty(source, {rows, width});
  const LayerNorm step = norm.into(result.data_ptr(), entered.rows().data_ptr(), entered.index());
  if (layer.shares_halves(rows)) {
    run_shared(x, 0, [&](Taker& memory) { return layer.half_steps(memory, rows_of(source), rows, step); });
    return result;
  }
  const HalfLinear blocks = layer.blocks_for(rows);
  run_in_blocks(rows, layer.features(), 0, width, [&](int64_t begin, int64_t end, float* scratch) {
    kernels().linear_add_layer_norm(blocks, rows_of(source), step, begin, end, scratch);
  });
  return result;
}

Tensor feed_forward(const Tensor& x, const Tensor& grow_weight, std::optional<Tensor> grow_bias, const Tensor& weight,
                    std::optional<Tensor> bias, const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const char* op = "feed_forward";
  const int64_t rows = x.size(0);
  FeedForward layers(op, x, x.size(1), grow_weight, grow_bias, weight, bias, norm_weight, norm_bias, eps);
  Linear &grow = layers.grow, &shrink = layers.shrink;
  const Residual entered(op, x, rows, shrink.outputs(), x, std::nullopt);
  if (layers.in_steps(rows)) {
    const Tensor& source = entered.rows();
    Tensor result = torch::stable::new_empty(source, {rows, shrink.outputs()});
    float* out = result.mutable_data_ptr<float>();
    run_in_steps(rows, source, layers.weight_bytes(), [&](Taker& memory, int64_t first, int64_t count) {
      float* panels = memory.floats(layers.panels(count));
      return layers.steps(memory, entered.floats_from(first), count, panels, out + first * shrink.outputs());
    });
    return result;
  }
  if (!grow.in_blocks() || !shrink.in_blocks()) {
    const Tensor grown = grow.product(x);
    torch::stable::parallel_for(0, rows, rows_per_thread(grow.outputs() * 4), [&](int64_t begin, int64_t end) {
      kernels().bias_gelu(Dtype::kFloat32, grown.data_ptr(), nullptr, grown.data_ptr(), grow.outputs(), begin, end);
    });
    return layers.norm.of(shrink.product(torch::stable::to(grown, x.scalar_type())), entered.rows(), nullptr);
  }
  if (layers.shares_halves(rows)) {
    Tensor result = torch::stable::new_empty(entered.rows(), {rows, shrink.outputs()});
    run_shared(x, kernels().half_outputs_scratch, [&](Taker& memory) {
      return layers.half_steps(memory, entered.halves(), rows, static_cast<BFloat16*>(result.data_ptr()));
    });
    return result;
  }
  const Tensor source = with_rows_together(x);
  Tensor result = torch::stable::new_empty(source, {rows, shrink.outputs()});
  const HalfLinear growing = grow.blocks_for(rows), shrinking = shrink.blocks_for(rows);
  const LayerNorm step = layers.norm.into(result.data_ptr(), entered.rows().data_ptr(), nullptr);
  run_in_blocks(rows, grow.features(), grow.outputs(), shrink.outputs(),
                [&](int64_t begin, int64_t end, float* scratch) {
                  kernels().feed_forward(growing, shrinking, rows_of(source), step, begin, end, scratch);
                });
  return result;
}

}  // namespace mp

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("linear", TORCH_BOX(&mp::linear));
  m.impl("linear_add_layer_norm", TORCH_BOX(&mp::linear_add_layer_norm));
  m.impl("feed_forward", TORCH_BOX(&mp::feed_forward));
}

// For mp_kernels/products.py: whether weights [outputs, features] of bfloat16 are multiplied in tiles here.
extern "C" __attribute__((visibility("default"))) bool mp_multiplies_bfloat16(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_half_weight && kernels.takes_half_weight(outputs, features);
}

// For mp_kernels/products.py: rows up to which weights [outputs, features] of float32 are multiplied faster here than
// by torch.
extern "C" __attribute__((visibility("default"))) int64_t mp_float_rows(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_float_weight(outputs, features) ? kernels.float_rows : 0;
}
