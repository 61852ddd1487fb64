// The CPU operators for linear layers and the steps around them, as torch calls them: bfloat16 in the processor's
// tiles, and float32 of few rows. On processors without these, and of other types or widths, they run in plain loops,
// in float32 until what the operators round; there mp_kernels/products.py calls torch's own product.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/kernels.h"
#include "self_attention.h"
#include "threads.h"

extern "C" bool mp_multiplies_in_tiles(int64_t outputs, int64_t features);
extern "C" int64_t mp_few_rows(int64_t outputs, int64_t features);

namespace {

using mp::joined;
using mp::require;
using mp::RowIndex;
using mp::rows_per_thread;
using mp::shape_of;
using mp::Step;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Memory of a tensor of bfloat16.
const mp::BFloat16* halves(const Tensor& x) {
  return static_cast<const mp::BFloat16*>(x.data_ptr());
}

// x in float32, contiguous.
Tensor wide(const Tensor& x) {
  return torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
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

  // The layer's product with x, float32.
  Tensor product(const Tensor& x) const { return are_few(x.size(0)) ? of_few(x) : in_loops(x); }

  // Whether rows are few, but more than those whose plain loops wait for the weight alone.
  bool are_few(int64_t rows) const {
    constexpr int64_t kFewest = 4;
    return dtype_ == mp::Dtype::kFloat32 && rows >= kFewest && rows <= mp_few_rows(outputs(), features());
  }

  // Room for few rows of x in panels.
  Tensor panels_for(const Tensor& x) const {
    const int64_t panel = mp::kernels().few_rows_panel;
    return torch::stable::new_empty(x, {(x.size(0) + panel - 1) / panel * panel, features()});
  }

  // The product of few rows; x's rows lie together.
  mp::FewRows few(const Tensor& x, Tensor& packed, Tensor& result) const {
    return {x.const_data_ptr<float>(),
            x.size(0),
            features(),
            outputs(),
            x.stride(0),
            weight_.const_data_ptr<float>(),
            bias_ ? bias_->const_data_ptr<float>() : nullptr,
            packed.mutable_data_ptr<float>(),
            result.mutable_data_ptr<float>()};
  }

  // Whether rows are multiplied in steps that threads share.
  bool in_steps(int64_t rows) const {
    const int64_t most = mp_few_rows(outputs(), features());
    return dtype_ == mp::Dtype::kFloat32 && most > 0 && rows <= most;
  }

  // The steps of x's product, after `before` was done with x's rows; panels: of panels_for(x). x's rows lie one after
  // the other.
  template <typename Before>
  std::vector<Step> steps(const Tensor& x, Tensor& panels, Tensor& result, const Before& before) const {
    const mp::FewRows layer = few(x, panels, result);
    if (are_few(layer.rows)) return {packing(layer, before), product(layer)};
    const mp::Dense dense{mp::Dtype::kFloat32, layer.x,    layer.weight,   layer.bias,
                          layer.out,           layer.rows, layer.features, layer.outputs};
    return {{layer.rows, layer.features * 4, [=](int64_t begin, int64_t end, float*) { before(begin, end); }},
            {layer.outputs, layer.features * 4,
             [=](int64_t begin, int64_t end, float*) { mp::kernels().dense(dense, begin, end); }}};
  }
  std::vector<Step> steps(const Tensor& x, Tensor& panels, Tensor& result) const {
    return steps(x, panels, result, [](int64_t, int64_t) {});
  }

  // The step that packs the rows of a product, after another step on the rows of each panel.
  template <typename Before>
  static Step packing(const mp::FewRows& layer, const Before& before) {
    const int64_t panel = mp::kernels().few_rows_panel;
    return {(layer.rows + panel - 1) / panel, layer.features * panel * 4, [=](int64_t begin, int64_t end, float*) {
              before(begin * panel, std::min(end * panel, layer.rows));
              mp::kernels().pack_few_rows(layer, begin, end);
            }};
  }
  static Step packing(const mp::FewRows& layer) {
    return packing(layer, [](int64_t, int64_t) {});
  }

  // The step that multiplies packed rows.
  static Step product(const mp::FewRows& layer) {
    const int64_t strip = mp::kernels().few_rows_strip;
    return {(layer.outputs + strip - 1) / strip, layer.features * strip * 4,
            [=](int64_t begin, int64_t end, float* scratch) {
              mp::kernels().multiply_few_rows(layer, begin, end, scratch);
            }};
  }

 private:
  // By the kernels for few rows of float32.
  Tensor of_few(const Tensor& x) const {
    const Tensor source = mp::with_rows_together(x);
    Tensor packed = panels_for(source), result = torch::stable::new_empty(source, {x.size(0), outputs()});
    const mp::FewRows layer = few(source, packed, result);
    mp::run_steps({packing(layer), product(layer)}, mp::kernels().few_rows_scratch);
    return result;
  }

  // In plain loops, float32.
  Tensor in_loops(const Tensor& x) const {
    const Tensor source = wide(x), weight = wide(weight_), bias = bias_ ? wide(*bias_) : weight;
    Tensor result = torch::stable::new_empty(source, {x.size(0), outputs()});
    const mp::Dense layer{mp::Dtype::kFloat32, source.data_ptr(), weight.data_ptr(), bias_ ? bias.data_ptr() : nullptr,
                          result.data_ptr(),   x.size(0),         features(),        outputs()};
    torch::stable::parallel_for(0, outputs(), rows_per_thread(features() * 4),
                                [&](int64_t begin, int64_t end) { mp::kernels().dense(layer, begin, end); });
    return result;
  }

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
      : dtype_(mp::floating_dtype(op, "x", x)),
        residual_(torch::stable::contiguous(residual)),
        weight_(vector_like(op, "norm_weight", weight, x, width)),
        bias_(vector_like(op, "norm_bias", bias, x, width)),
        rows_(op, "index", index, residual.size(0)),
        eps_(static_cast<float>(eps)) {
    require(residual.dim() == 2 && residual.size(1) == width && residual.scalar_type() == x.scalar_type(), op,
            ": residual must be [any, ", width, "] of x's dtype; got ", shape_of(residual));
    require(rows_.rows() == x.size(0), op, ": x and residual must have the same rows, after index; got ", x.size(0),
            " and ", rows_.rows());
  }

  Tensor new_result() const { return torch::stable::new_empty(residual_, {rows_.rows(), weight_.size(0)}); }

  // The step for products that are added up where it finds them, into a result.
  mp::LayerNorm into(Tensor& result) const { return step(dtype_, nullptr, residual_, weight_, bias_, result); }

  // The step for a product of float32 that it finds in the result.
  mp::LayerNorm over(Tensor& product) const {
    return step(mp::Dtype::kFloat32, product.data_ptr(), residual_, weight_, bias_, product);
  }

  // The result where the product, before the residual, is there already, in float32; it is overwritten.
  Tensor of(Tensor product) const {
    const Tensor residual = wide(residual_), weight = wide(weight_), bias = wide(bias_);
    const mp::LayerNorm norm = step(mp::Dtype::kFloat32, product.data_ptr(), residual, weight, bias, product);
    torch::stable::parallel_for(0, product.size(0), rows_per_thread(norm.width * 4),
                                [&](int64_t begin, int64_t end) { mp::kernels().add_layer_norm(norm, begin, end); });
    return torch::stable::to(product, residual_.scalar_type());
  }

 private:
  mp::LayerNorm step(mp::Dtype dtype, const void* x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                     Tensor& result) const {
    return {dtype,           x,
            nullptr,         residual.data_ptr(),
            rows_.data(),    weight.data_ptr(),
            bias.data_ptr(), result.data_ptr(),
            weight.size(0),  eps_};
  }

  mp::Dtype dtype_;
  Tensor residual_, weight_, bias_;
  RowIndex rows_;
  float eps_;
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
  if (!layer.in_tiles()) return torch::stable::to(layer.product(x), x.scalar_type());
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
  const Norm norm(op, x, layer.outputs(), residual, index, norm_weight, norm_bias, eps);
  if (!layer.in_tiles()) return norm.of(layer.product(x));
  const Tensor source = mp::with_rows_together(x);
  Tensor result = norm.new_result();
  const mp::TileLinear tiles = layer.tiles(x.size(0));
  const mp::LayerNorm step = norm.into(result);
  run_in_tiles(x.size(0), layer.features(), 0, layer.outputs(), [&](int64_t begin, int64_t end, float* scratch) {
    mp::kernels().linear_add_layer_norm(tiles, rows_of(source), step, begin, end, scratch);
  });
  return result;
}

Tensor feed_forward(const Tensor& x, const Tensor& grow_weight, std::optional<Tensor> grow_bias, const Tensor& weight,
                    std::optional<Tensor> bias, const Tensor& norm_weight, const Tensor& norm_bias, double eps) {
  const char* op = "feed_forward";
  Linear grow(op, x, x.size(1), grow_weight, grow_bias), shrink(op, x, grow.outputs(), weight, bias);
  const Norm norm(op, x, shrink.outputs(), x, std::nullopt, norm_weight, norm_bias, eps);
  if (!grow.in_tiles() || !shrink.in_tiles()) {
    const Tensor grown = grow.product(x);
    torch::stable::parallel_for(0, x.size(0), rows_per_thread(grow.outputs() * 4), [&](int64_t begin, int64_t end) {
      mp::kernels().bias_gelu(mp::Dtype::kFloat32, grown.data_ptr(), nullptr, grown.data_ptr(), grow.outputs(), begin,
                              end);
    });
    return norm.of(shrink.product(torch::stable::to(grown, x.scalar_type())));
  }
  const Tensor source = mp::with_rows_together(x);
  Tensor result = norm.new_result();
  const mp::TileLinear growing = grow.tiles(x.size(0)), shrinking = shrink.tiles(x.size(0));
  const mp::LayerNorm step = norm.into(result);
  run_in_tiles(x.size(0), grow.features(), grow.outputs(), shrink.outputs(),
               [&](int64_t begin, int64_t end, float* scratch) {
                 mp::kernels().feed_forward(growing, shrinking, rows_of(source), step, begin, end, scratch);
               });
  return result;
}

// The parts of a layer, [weight, bias] or [weight].
std::optional<Tensor> bias_of(const char* op, const char* name, const std::vector<Tensor>& parts) {
  require(parts.size() == 1 || parts.size() == 2, op, ": ", name, " must be [weight, bias] or [weight]; got ",
          parts.size(), " tensors");
  return parts.size() == 2 ? std::optional(parts[1]) : std::nullopt;
}

// Certain rows of a contiguous matrix.
Tensor rows_at(const Tensor& x, const std::vector<int64_t>& rows) {
  Tensor result = torch::stable::new_empty(x, {static_cast<int64_t>(rows.size()), x.size(1)});
  const size_t bytes = static_cast<size_t>(x.size(1) * mp::bytes_of(mp::floating_dtype("rows_at", "x", x)));
  const auto* from = static_cast<const char*>(x.data_ptr());
  auto* to = static_cast<char*>(result.data_ptr());
  for (int64_t row : rows) std::memcpy(to, from + static_cast<size_t>(row) * bytes, bytes), to += bytes;
  return result;
}

// A LayerNorm's weight and bias.
const std::vector<Tensor>& norm_of(const char* op, const std::vector<Tensor>& parts) {
  require(parts.size() == 2, op, ": a LayerNorm must be [weight, bias]; got ", parts.size(), " tensors");
  return parts;
}

// The weights of all that follows attention in a layer that normalises after each residual.
struct Rest {
  // x: what is multiplied, or something of its dtype; features: of the context.
  Rest(const char* op_name, const Tensor& x, int64_t features, const std::vector<Tensor>& dense_parts,
       const std::vector<Tensor>& dense_norm_parts, double dense_epsilon, const std::vector<Tensor>& grow_parts,
       const std::vector<Tensor>& shrink_parts, const std::vector<Tensor>& norm_parts, double epsilon)
      : op(op_name),
        dense_bias(bias_of(op, "dense", dense_parts)),
        grow_bias(bias_of(op, "grow", grow_parts)),
        shrink_bias(bias_of(op, "shrink", shrink_parts)),
        dense_norm(norm_of(op, dense_norm_parts)),
        norm(norm_of(op, norm_parts)),
        dense_eps(dense_epsilon),
        eps(epsilon),
        dense_weight(dense_parts[0]),
        grow_weight(grow_parts[0]),
        shrink_weight(shrink_parts[0]),
        dense(op, x, features, dense_weight, dense_bias),
        grow(op, x, dense.outputs(), grow_weight, grow_bias),
        shrink(op, x, grow.outputs(), shrink_weight, shrink_bias) {}

  bool in_steps(int64_t rows) const { return dense.in_steps(rows) && grow.in_steps(rows) && shrink.in_steps(rows); }

  const char* op;
  std::optional<Tensor> dense_bias, grow_bias, shrink_bias;
  const std::vector<Tensor>&dense_norm, &norm;
  double dense_eps, eps;
  Tensor dense_weight, grow_weight, shrink_weight;
  Linear dense, grow, shrink;
};

// The same for few rows, with the memory in between.
class RestOfFew {
 public:
  // context: its rows, as those of the result.
  RestOfFew(const Rest& rest, const Tensor& context, const Tensor& residual,
            const std::optional<Tensor>& index = std::nullopt)
      : dense_(rest.dense),
        grow_(rest.grow),
        shrink_(rest.shrink),
        dense_norm_(rest.op, context, dense_.outputs(), residual, index, rest.dense_norm[0], rest.dense_norm[1],
                    rest.dense_eps),
        attended_(dense_norm_.new_result()),
        norm_(rest.op, context, shrink_.outputs(), attended_, std::nullopt, rest.norm[0], rest.norm[1], rest.eps),
        grown_(torch::stable::new_empty(attended_, {context.size(0), grow_.outputs()})),
        result_(norm_.new_result()),
        panels_{dense_.panels_for(context), grow_.panels_for(attended_), shrink_.panels_for(grown_)} {}

  const Tensor& result() const { return result_; }

  // The steps from contexts, whose rows lie one after the other.
  std::vector<Step> steps(const Tensor& context) {
    const mp::LayerNorm middle = dense_norm_.over(attended_), last = norm_.over(result_);
    const mp::Kernels& kernels = mp::kernels();
    float* grown = grown_.mutable_data_ptr<float>();
    const int64_t inner = grow_.outputs();
    const auto attend = [=, &kernels](int64_t begin, int64_t end) { kernels.add_layer_norm(middle, begin, end); };
    const auto activate = [=, &kernels](int64_t begin, int64_t end) {
      kernels.bias_gelu(mp::Dtype::kFloat32, grown, nullptr, grown, inner, begin, end);
    };
    const auto finish = [=, &kernels](int64_t begin, int64_t end, float*) { kernels.add_layer_norm(last, begin, end); };
    return joined({dense_.steps(context, panels_[0], attended_),
                   grow_.steps(attended_, panels_[1], grown_, attend),
                   shrink_.steps(grown_, panels_[2], result_, activate),
                   {Step{context.size(0), last.width * 4, finish}}});
  }

 private:
  const Linear &dense_, &grow_, &shrink_;
  Norm dense_norm_;
  Tensor attended_;
  Norm norm_;
  Tensor grown_, result_;
  Tensor panels_[3];
};

// The result of contexts whose entering states are residual[index].
Tensor result_of(const Rest& rest, const Tensor& context, const Tensor& residual,
                 const std::optional<Tensor>& index = std::nullopt) {
  if (!rest.in_steps(context.size(0))) {
    const Tensor attended = linear_add_layer_norm(context, rest.dense_weight, rest.dense_bias, residual, index,
                                                  rest.dense_norm[0], rest.dense_norm[1], rest.dense_eps);
    return feed_forward(attended, rest.grow_weight, rest.grow_bias, rest.shrink_weight, rest.shrink_bias, rest.norm[0],
                        rest.norm[1], rest.eps);
  }
  RestOfFew few(rest, context, residual, index);
  mp::run_steps(few.steps(torch::stable::contiguous(context)), mp::kernels().few_rows_scratch);
  return few.result();
}

Tensor post_norm_rest(const Tensor& x, const Tensor& residual, std::optional<Tensor> index, std::vector<Tensor> dense,
                      std::vector<Tensor> dense_norm, double dense_eps, std::vector<Tensor> grow,
                      std::vector<Tensor> shrink, std::vector<Tensor> norm, double eps) {
  const Rest rest("post_norm_rest", x, x.size(1), dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  return result_of(rest, x, residual, index);
}

Tensor post_norm_layer(const Tensor& x, const Tensor& cu_seqlens, int64_t max_seqlen, int64_t heads,
                       std::vector<Tensor> projections, std::vector<Tensor> dense, std::vector<Tensor> dense_norm,
                       double dense_eps, std::vector<Tensor> grow, std::vector<Tensor> shrink, std::vector<Tensor> norm,
                       double eps) {
  const char* op = "post_norm_layer";
  const std::optional<Tensor> bias = bias_of(op, "projections", projections);
  const Linear projection(op, x, x.size(1), projections[0], bias);
  const int64_t rows = x.size(0), outputs = projection.outputs();
  require(outputs % 3 == 0, op, ": projections must be queries, keys and values; got ", outputs, " outputs");
  const mp::SelfAttention attention(op, cu_seqlens, max_seqlen, rows, heads, outputs / 3);
  const Rest rest(op, x, attention.width(), dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  const mp::Dtype dtype = mp::floating_dtype(op, "x", x);
  Tensor context = torch::stable::new_empty(x, {rows, attention.width()});
  Tensor sums = torch::stable::new_empty(x, {attention.sums()}, ScalarType::Float);
  const auto forward = [&](const Tensor& projected) {
    return attention.forward(dtype, projected.data_ptr(), context.data_ptr(), sums.mutable_data_ptr<float>());
  };
  if (!projection.in_steps(rows) || !rest.in_steps(rows)) {
    const Tensor projected = linear(x, projections[0], bias);
    attention.run(forward(projected));
    return result_of(rest, context, x);
  }
  const Tensor source = torch::stable::contiguous(x);
  RestOfFew few(rest, context, source);
  Tensor panels = projection.panels_for(source), projected = torch::stable::new_empty(source, {rows, outputs});
  mp::run_steps(
      joined({projection.steps(source, panels, projected), {attention.step(forward(projected))}, few.steps(context)}),
      std::max(mp::kernels().few_rows_scratch, attention.scratch()));
  return few.result();
}

Tensor post_norm_first(const Tensor& x, const Tensor& cu_seqlens, int64_t max_seqlen, int64_t heads,
                       std::vector<Tensor> queries, std::vector<Tensor> keys_values, std::vector<Tensor> dense,
                       std::vector<Tensor> dense_norm, double dense_eps, std::vector<Tensor> grow,
                       std::vector<Tensor> shrink, std::vector<Tensor> norm, double eps) {
  const char* op = "post_norm_first";
  const std::optional<Tensor> asking_bias = bias_of(op, "queries", queries),
                              bias = bias_of(op, "keys_values", keys_values);
  const Linear asking(op, x, x.size(1), queries[0], asking_bias), answering(op, x, x.size(1), keys_values[0], bias);
  const int64_t total = x.size(0);
  const mp::SelfAttention attention(op, cu_seqlens, max_seqlen, total, heads, asking.outputs(), true);
  require(answering.outputs() == 2 * attention.width(), op,
          ": keys_values must have twice the outputs of queries; got ", answering.outputs(), " and ", asking.outputs());
  const Rest rest(op, x, attention.width(), dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  const mp::Dtype dtype = mp::floating_dtype(op, "x", x);
  const Tensor source = torch::stable::contiguous(x), entered = rows_at(source, attention.first_rows());
  const int64_t batch = attention.queries();
  Tensor context = torch::stable::new_empty(x, {batch, attention.width()});
  Tensor sums = torch::stable::new_empty(x, {attention.sums()}, ScalarType::Float);
  const auto forward = [&](const Tensor& of_first, const Tensor& of_all) {
    return attention.forward(dtype, of_first.data_ptr(), of_all.data_ptr(), context.data_ptr(),
                             sums.mutable_data_ptr<float>());
  };
  if (!answering.in_steps(total) || !asking.in_steps(batch) || !rest.in_steps(batch)) {
    const Tensor of_first = linear(entered, queries[0], asking_bias), of_all = linear(source, keys_values[0], bias);
    attention.run(forward(of_first, of_all));
    return result_of(rest, context, entered);
  }
  RestOfFew few(rest, context, entered);
  Tensor panels = answering.panels_for(source), first_panels = asking.panels_for(entered);
  Tensor of_all = torch::stable::new_empty(source, {total, answering.outputs()}),
         of_first = torch::stable::new_empty(source, {batch, asking.outputs()});
  mp::run_steps(joined({answering.steps(source, panels, of_all),
                        asking.steps(entered, first_panels, of_first),
                        {attention.step(forward(of_first, of_all))},
                        few.steps(context)}),
                std::max(mp::kernels().few_rows_scratch, attention.scratch()));
  return few.result();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_add_layer_norm", TORCH_BOX(&linear_add_layer_norm));
  m.impl("feed_forward", TORCH_BOX(&feed_forward));
  m.impl("post_norm_rest", TORCH_BOX(&post_norm_rest));
  m.impl("post_norm_layer", TORCH_BOX(&post_norm_layer));
  m.impl("post_norm_first", TORCH_BOX(&post_norm_first));
}

// For mp_kernels/products.py: whether weights [outputs, features] of bfloat16 are multiplied in tiles here.
extern "C" __attribute__((visibility("default"))) bool mp_multiplies_in_tiles(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_half_weight && kernels.takes_half_weight(outputs, features);
}

// For mp_kernels/products.py: rows up to which weights [outputs, features] of float32 are multiplied faster here than
// by torch.
extern "C" __attribute__((visibility("default"))) int64_t mp_few_rows(int64_t outputs, int64_t features) {
  const mp::Kernels& kernels = mp::kernels();
  return kernels.takes_few_rows(outputs, features) ? kernels.few_rows : 0;
}
