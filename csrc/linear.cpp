// The CPU operators for linear layers of bfloat16 and the steps around them, as torch calls them. On processors without
// tiles, and of other types or widths, they run in plain loops; mp_kernels/products.py calls torch's own product there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "threads.h"

extern "C" bool mp_multiplies_in_tiles(int64_t outputs, int64_t features);

namespace {

using mp::require;
using mp::RowIndex;
using mp::rows_per_thread;
using mp::shape_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Memory of a tensor of bfloat16.
const mp::BFloat16* halves(const Tensor& x) {
  return static_cast<const mp::BFloat16*>(x.data_ptr());
}

// A contiguous vector of that many elements, of x's type.
Tensor vector_like(const char* op, const char* name, const Tensor& vector, const Tensor& x, int64_t length) {
  require(vector.scalar_type() == x.scalar_type() && vector.dim() == 1 && vector.size(0) == length, op, ": ", name,
          " must be [", length, "] of x's dtype; got ", shape_of(vector));
  return torch::stable::contiguous(vector);
}

// A linear layer and the rows that it multiplies.
class Linear {
 public:
  // x: what is multiplied, or something of its dtype.
  Linear(const char* op, const Tensor& x, int64_t features, const Tensor& weight, const std::optional<Tensor>& bias)
      : dtype_(mp::floating_dtype(op, "x", x)), weight_(torch::stable::contiguous(weight)) {
    require(x.dim() == 2 && weight.dim() == 2 && weight.size(1) == features && weight.scalar_type() == x.scalar_type(),
            op, ": a weight must be [outputs, ", features, "] of x's dtype, and x [rows, features]; got ",
            shape_of(weight), " and ", shape_of(x));
    if (bias) bias_ = vector_like(op, "bias", *bias, x, outputs());
  }
  int64_t outputs() const { return weight_.size(0); }
  int64_t features() const { return weight_.size(1); }

  // Whether tiles take the layer.
  bool in_tiles() const { return dtype_ == mp::Dtype::kBFloat16 && mp_multiplies_in_tiles(outputs(), features()); }

  // The layer for products with that many rows in all, after its weight was packed where that is less work than to pack
  // the rows and to turn their sums.
  mp::TileLinear tiles(int64_t rows) {
    if (rows * (features() + 2 * outputs()) >= outputs() * features()) pack();
    return {halves(weight_), packed_ ? halves(*packed_) : nullptr, bias_ ? halves(*bias_) : nullptr, outputs(),
            features()};
  }

  // The layer's product with x in plain loops.
  Tensor in_loops(const Tensor& x) const {
    const Tensor source = torch::stable::contiguous(x);
    Tensor result = torch::stable::new_empty(source, {x.size(0), outputs()});
    const mp::Dense layer{
        dtype_,    source.data_ptr(), weight_.data_ptr(), bias_ ? bias_->data_ptr() : nullptr, result.data_ptr(),
        x.size(0), features(),        outputs()};
    torch::stable::parallel_for(0, outputs(), rows_per_thread(features() * 4),
                                [&](int64_t begin, int64_t end) { mp::kernels().dense(layer, begin, end); });
    return result;
  }

 private:
  void pack() {
    constexpr int64_t kPack = 16;
    packed_ = torch::stable::new_empty(weight_, {outputs(), features()});
    auto* packed = static_cast<mp::BFloat16*>(packed_->data_ptr());
    torch::stable::parallel_for(0, outputs() / kPack, rows_per_thread(kPack * features() * 2),
                                [&](int64_t begin, int64_t end) {
                                  mp::kernels().pack_half_weight(halves(weight_), features(), packed, begin, end);
                                });
  }

  mp::Dtype dtype_;
  Tensor weight_;
  std::optional<Tensor> bias_, packed_;
};

// The residual and LayerNorm that follow a linear layer.
class Norm {
 public:
  Norm(const char* op, const Tensor& x, int64_t width, const Tensor& residual, const std::optional<Tensor>& index,
       const Tensor& weight, const Tensor& bias, double eps)
      : residual_(torch::stable::contiguous(residual)),
        weight_(vector_like(op, "norm_weight", weight, x, width)),
        bias_(vector_like(op, "norm_bias", bias, x, width)),
        result_(torch::stable::new_empty(x, {x.size(0), width})),
        rows_(op, "index", index, residual.size(0)),
        norm_{mp::floating_dtype(op, "x", x),
              nullptr,
              nullptr,
              residual_.data_ptr(),
              rows_.data(),
              weight_.data_ptr(),
              bias_.data_ptr(),
              result_.data_ptr(),
              width,
              static_cast<float>(eps)} {
    require(residual.dim() == 2 && residual.size(1) == width && residual.scalar_type() == x.scalar_type(), op,
            ": residual must be [any, ", width, "] of x's dtype; got ", shape_of(residual));
    require(rows_.rows() == x.size(0), op, ": x and residual must have the same rows, after index; got ", x.size(0),
            " and ", rows_.rows());
  }
  const mp::LayerNorm& norm() const { return norm_; }
  Tensor result() const { return result_; }

  // The result where the product, before the residual, is there already.
  Tensor of(const Tensor& product) {
    norm_.x = product.data_ptr();
    torch::stable::parallel_for(0, product.size(0), rows_per_thread(norm_.width * 4),
                                [&](int64_t begin, int64_t end) { mp::kernels().add_layer_norm(norm_, begin, end); });
    return result_;
  }

 private:
  Tensor residual_, weight_, bias_, result_;
  RowIndex rows_;
  mp::LayerNorm norm_;
};

// Calls work(begin, end, scratch) for all rows, as many at a time as fit the cache with all that becomes of them, few
// enough for every thread to get some.
template <typename Work>
void run_in_tiles(int64_t rows, int64_t features, int64_t grown, int64_t outputs, const Work& work) {
  constexpr int64_t kLeast = 32, kMost = 128;
  int64_t step = kMost;
  while (step > kLeast && rows < step * torch::stable::get_num_threads()) step /= 2;
  const size_t scratch = mp::kernels().linear_scratch(std::min(step, rows), features, grown, outputs);
  mp::run_in_order((rows + step - 1) / step, scratch,
                   [&](int64_t task, float* memory) { work(task * step, std::min((task + 1) * step, rows), memory); });
}

mp::HalfRows rows_of(const Tensor& x) {
  return {halves(x), x.stride(0)};
}

Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias) {
  Linear layer("linear", x, x.size(1), weight, bias);
  if (!layer.in_tiles()) return layer.in_loops(x);
  const Tensor source = mp::with_rows_together(x);
  Tensor result = torch::stable::new_empty(source, {x.size(0), layer.outputs()});
  const mp::TileLinear tiles = layer.tiles(x.size(0));
  auto* out = static_cast<mp::BFloat16*>(result.data_ptr());
  run_in_tiles(x.size(0), layer.features(), 0, 0, [&](int64_t begin, int64_t end, float* scratch) {
    mp::kernels().linear(tiles, rows_of(source), out, begin, end, scratch);
  });
  return result;
}

Tensor linear_add_layer_norm(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& residual,
                             std::optional<Tensor> index, const Tensor& norm_weight, const Tensor& norm_bias,
                             double eps) {
  const char* op = "linear_add_layer_norm";
  Linear layer(op, x, x.size(1), weight, bias);
  Norm norm(op, x, layer.outputs(), residual, index, norm_weight, norm_bias, eps);
  if (!layer.in_tiles()) return norm.of(layer.in_loops(x));
  const Tensor source = mp::with_rows_together(x);
  const mp::TileLinear tiles = layer.tiles(x.size(0));
  run_in_tiles(x.size(0), layer.features(), 0, layer.outputs(), [&](int64_t begin, int64_t end, float* scratch) {
    mp::kernels().linear_add_layer_norm(tiles, rows_of(source), norm.norm(), begin, end, scratch);
  });
  return norm.result();
}

Tensor feed_forward(const Tensor& x, const Tensor& grow_weight, std::optional<Tensor> grow_bias, const Tensor& weight,
                    std::optional<Tensor> bias, const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const char* op = "feed_forward";
  Linear grow(op, x, x.size(1), grow_weight, grow_bias), shrink(op, x, grow.outputs(), weight, bias);
  Norm norm(op, x, shrink.outputs(), x, std::nullopt, norm_weight, norm_bias, eps);
  if (!grow.in_tiles() || !shrink.in_tiles()) {
    const Tensor grown = grow.in_loops(x);
    torch::stable::parallel_for(0, x.size(0), rows_per_thread(grow.outputs() * 4), [&](int64_t begin, int64_t end) {
      mp::kernels().bias_gelu(norm.norm().dtype, grown.data_ptr(), nullptr, grown.data_ptr(), grow.outputs(), begin,
                              end);
    });
    return norm.of(shrink.in_loops(grown));
  }
  const Tensor source = mp::with_rows_together(x);
  const mp::TileLinear growing = grow.tiles(x.size(0)), shrinking = shrink.tiles(x.size(0));
  run_in_tiles(x.size(0), grow.features(), grow.outputs(), shrink.outputs(),
               [&](int64_t begin, int64_t end, float* scratch) {
                 mp::kernels().feed_forward(growing, shrinking, rows_of(source), norm.norm(), begin, end, scratch);
               });
  return norm.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_add_layer_norm", TORCH_BOX(&linear_add_layer_norm));
  m.impl("feed_forward", TORCH_BOX(&feed_forward));
}

// For mp_kernels/products.py: whether weights [outputs, features] of bfloat16 are multiplied in tiles here.
extern "C" __attribute__((visibility("default"))) bool mp_multiplies_in_tiles(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_half_weight && kernels.takes_half_weight(outputs, features);
}
