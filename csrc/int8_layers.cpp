// The CPU operators of int8 layers from floats to floats, as torch calls them: rows are quantised on their way into
// each product.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "int8_arguments.h"
#include "row_steps.h"
#include "self_attention.h"
#include "threads.h"

namespace {

using mp::Columns;
using mp::float_vector;
using mp::Int8Weight;
using mp::joined;
using mp::kInt8Panel;
using mp::matrix;
using mp::require;
using mp::RowIndex;
using mp::run_shared;
using mp::shape_of;
using mp::Step;
using mp::Taker;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A linear layer of int8 for rows of floats.
class Layer {
 public:
  // parts: weight, scales and bias; where columns of the rows are kept as floats, also these and their weight.
  Layer(const char* op, const char* name, const std::vector<Tensor>& parts)
      : parts_(checked(op, name, parts)),
        weight_(op, parts_[0]),
        scales_(float_vector(op, "a layer's scale", parts_[1], outputs())),
        bias_(float_vector(op, "a layer's bias", parts_[2], outputs())),
        columns_(op, parts_.size() > 3 ? std::optional(parts_[3]) : std::nullopt, features()) {
    if (parts_.size() > 3) kept_weight_ = mp::by_column(op, parts_[4], outputs(), columns_.count());
    const mp::Kernels& kernels = mp::kernels();
    in_panels_ = kernels.takes_int8_weight && kernels.takes_int8_weight(outputs(), features());
    prepared_ = in_panels_ ? weight_.packed_for(kernels) : weight_.unpacked();
  }
  int64_t outputs() const { return weight_.outputs(); }
  int64_t features() const { return weight_.features(); }

  // Room for that many rows.
  mp::Int8Rows rows_from(Taker& memory, int64_t count) const {
    int8_t* rows = memory.bytes(count * features());
    float* scales = memory.floats(count);
    return {
        rows, scales, columns_.data(), columns_.others(), memory.floats(count * columns_.count()), columns_.count()};
  }

  size_t scratch(int64_t count) const { return in_panels_ ? mp::kernels().int8_scratch(count, features()) : 0; }

  // The step that multiplies rows, [count, features], into elements, [count, outputs].
  Step product(const mp::Int8Rows& rows, int64_t count, int32_t* elements) const {
    const int64_t unit = in_panels_ ? kInt8Panel : 1;
    return {outputs() / unit, unit * features(), [=](int64_t begin, int64_t end, float* scratch) {
              const int8_t* weight = Int8Weight::elements_of(prepared_) + begin * unit * features();
              int32_t* out = elements + begin * unit;
              if (in_panels_)
                mp::kernels().multiply_int8(rows.rows, count, features(), weight, (end - begin) * unit, out, outputs(),
                                            scratch);
              else
                multiply_plainly(rows.rows, count, weight, end - begin, out);
            }};
  }

  // The elements of a product as floats.
  mp::Int8Product floats_of(const int32_t* elements, const mp::Int8Rows& rows) const {
    return {elements,
            0,
            rows.scales,
            scales_.const_data_ptr<float>(),
            bias_.const_data_ptr<float>(),
            outputs(),
            rows.kept,
            kept_weight_ ? kept_weight_->const_data_ptr<float>() : nullptr,
            rows.kept_columns};
  }

 private:
  static const std::vector<Tensor>& checked(const char* op, const char* name, const std::vector<Tensor>& parts) {
    require(parts.size() == 3 || parts.size() == 5, op, ": ", name,
            " must be [weight, scale, bias] or [weight, scale, bias, columns, kept_weight]; got ", parts.size(),
            " tensors");
    return parts;
  }

  void multiply_plainly(const int8_t* rows, int64_t count, const int8_t* weight, int64_t some, int32_t* out) const {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t output = 0; output < some; ++output) {
        int32_t sum = 0;
        for (int64_t i = 0; i < features(); ++i)
          sum += static_cast<int32_t>(rows[row * features() + i]) * weight[output * features() + i];
        out[row * outputs() + output] = sum;
      }
  }

  std::vector<Tensor> parts_;
  Int8Weight weight_;
  Tensor scales_, bias_;
  Columns columns_;
  std::optional<Tensor> kept_weight_;
  bool in_panels_ = false;
  Tensor prepared_;
};

// The largest of the layers' weights.
int64_t largest_of(const std::vector<const Layer*>& layers) {
  int64_t largest = 0;
  for (const Layer* layer : layers) largest = std::max(largest, layer->outputs() * layer->features());
  return largest;
}

// The scratch memory of the layers' products.
size_t scratch_of(const std::vector<const Layer*>& layers, int64_t rows) {
  size_t floats = 0;
  for (const Layer* layer : layers) floats = std::max(floats, layer->scratch(rows));
  return floats;
}

// Whether all threads share the outputs of rows.
bool share(int64_t count, const std::vector<const Layer*>& layers) {
  return mp::share_outputs(count, largest_of(layers));
}

// Computes rows by steps: steps_of(memory, first, count) are those of some of the rows.
template <typename StepsOf>
void run(int64_t count, const Tensor& like, const std::vector<const Layer*>& layers, const StepsOf& steps_of) {
  mp::run_rows(count, like, largest_of(layers), [&](int64_t rows) { return scratch_of(layers, rows); }, steps_of);
}

// The steps of one layer, from rows of floats, x[index] or x, to rows of floats.
std::vector<Step> linear_steps(const Layer& layer, Taker& memory, const float* from, float* out, int64_t count,
                               const int64_t* index = nullptr) {
  const mp::Int8Rows rows = layer.rows_from(memory, count);
  auto* elements = reinterpret_cast<int32_t*>(memory.floats(count * layer.outputs()));
  const auto quantise = [=, &layer](int64_t begin, int64_t end, float*) {
    mp::kernels().quantize_rows(from, index, layer.features(), rows, begin, end);
  };
  const auto finish = [=, &layer](int64_t begin, int64_t end, float*) {
    mp::kernels().dequantize(layer.floats_of(elements, rows), out, begin, end);
  };
  return {{count, layer.features() * 4, quantise},
          layer.product(rows, count, elements),
          {count, layer.outputs() * 4, finish}};
}

Tensor int8_dynamic_linear(const Tensor& x, std::vector<Tensor> parts) {
  const char* op = "int8_dynamic_linear";
  const Layer layer(op, "layer", parts);
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  require(source.size(1) == layer.features(), op, ": x must be [rows, ", layer.features(), "]; got ", shape_of(x));
  Tensor result = torch::stable::new_empty(source, {source.size(0), layer.outputs()});
  const float* from = source.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  run(source.size(0), source, {&layer}, [&](Taker& memory, int64_t first, int64_t count) {
    return linear_steps(layer, memory, from + first * layer.features(), out + first * layer.outputs(), count);
  });
  return result;
}

// A LayerNorm's weight and bias.
struct Norm {
  Tensor weight, bias;
  float eps;
  Norm(const char* op, const std::vector<Tensor>& parts, double eps, int64_t width)
      : weight(float_vector(op, "a LayerNorm's weight", checked(op, parts)[0], width)),
        bias(float_vector(op, "a LayerNorm's bias", parts[1], width)),
        eps(static_cast<float>(eps)) {}
  static const std::vector<Tensor>& checked(const char* op, const std::vector<Tensor>& parts) {
    require(parts.size() == 2, op, ": a LayerNorm must be [weight, bias]; got ", parts.size(), " tensors");
    return parts;
  }
  mp::LayerNorm of(const float* residual, const int64_t* index, float* out) const {
    return {mp::Dtype::kFloat32, nullptr,         nullptr, residual,       index,
            weight.data_ptr(),   bias.data_ptr(), out,     weight.size(0), eps};
  }
};

// All that follows attention in a layer that normalises after each residual.
class Rest {
 public:
  Rest(const char* op, const std::vector<Tensor>& dense, const std::vector<Tensor>& dense_norm, double dense_eps,
       const std::vector<Tensor>& grow, const std::vector<Tensor>& shrink, const std::vector<Tensor>& norm, double eps)
      : dense_(op, "dense", dense),
        grow_(op, "grow", grow),
        shrink_(op, "shrink", shrink),
        dense_norm_(op, dense_norm, dense_eps, width()),
        norm_(op, norm, eps, width()) {
    require(grow_.features() == width() && shrink_.features() == grow_.outputs() && shrink_.outputs() == width(), op,
            ": the layers must fit each other; got weights ", shape_of(dense[0]), ", ", shape_of(grow[0]), " and ",
            shape_of(shrink[0]));
  }
  int64_t features() const { return dense_.features(); }
  int64_t width() const { return dense_.outputs(); }
  std::vector<const Layer*> layers() const { return {&dense_, &grow_, &shrink_}; }

  // The steps from contexts [count, features], whose entering states are residual[index], to out [count, width].
  std::vector<Step> steps(Taker& memory, const float* from, const float* residual, const int64_t* index, float* out,
                          int64_t count) const {
    const mp::Int8Rows context = dense_.rows_from(memory, count), attended_rows = grow_.rows_from(memory, count),
                       grown = shrink_.rows_from(memory, count);
    float* attended = memory.floats(count * width());
    auto* elements = reinterpret_cast<int32_t*>(memory.floats(count * std::max(width(), grow_.outputs())));
    const mp::LayerNorm middle = dense_norm_.of(residual, index, attended), last = norm_.of(attended, nullptr, out);
    const mp::Kernels& kernels = mp::kernels();
    const auto quantise = [=, this, &kernels](int64_t begin, int64_t end, float*) {
      kernels.quantize_rows(from, nullptr, features(), context, begin, end);
    };
    const auto attend = [=, this, &kernels](int64_t begin, int64_t end, float*) {
      kernels.dequantize_add_layer_norm(dense_.floats_of(elements, context), middle, begin, end);
      kernels.quantize_rows(attended, nullptr, width(), attended_rows, begin, end);
    };
    const auto activate = [=, this, &kernels](int64_t begin, int64_t end, float*) {
      kernels.dequantize_gelu(grow_.floats_of(elements, attended_rows), grown, begin, end);
    };
    const auto finish = [=, this, &kernels](int64_t begin, int64_t end, float*) {
      kernels.dequantize_add_layer_norm(shrink_.floats_of(elements, grown), last, begin, end);
    };
    return {{count, features() * 4, quantise},
            dense_.product(context, count, elements),
            {count, width() * 4, attend},
            grow_.product(attended_rows, count, elements),
            {count, grow_.outputs() * 4, activate},
            shrink_.product(grown, count, elements),
            {count, width() * 4, finish}};
  }

  // All rows of contexts, by the threads that are free.
  void run(int64_t rows, const Tensor& like, const float* from, const float* residual, const int64_t* index,
           float* out) const {
    ::run(rows, like, layers(), [&](Taker& memory, int64_t first, int64_t count) {
      const int64_t* some = index ? index + first : nullptr;
      const float* entered = some ? residual : residual + first * width();
      return steps(memory, from + first * features(), entered, some, out + first * width(), count);
    });
  }

 private:
  Layer dense_, grow_, shrink_;
  Norm dense_norm_, norm_;
};

Tensor int8_post_norm_rest(const Tensor& x, const Tensor& residual, std::optional<Tensor> index,
                           std::vector<Tensor> dense, std::vector<Tensor> dense_norm, double dense_eps,
                           std::vector<Tensor> grow, std::vector<Tensor> shrink, std::vector<Tensor> norm, double eps) {
  const char* op = "int8_post_norm_rest";
  const Rest rest(op, dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const Tensor residuals = matrix(op, "residual", residual, ScalarType::Float, "float32");
  const RowIndex places(op, "index", index, residuals.size(0));
  require(source.size(1) == rest.features() && residuals.size(1) == rest.width() && places.rows() == source.size(0), op,
          ": x must be [rows, ", rest.features(), "] and residual, after index, [rows, ", rest.width(), "]; got ",
          shape_of(x), " and ", shape_of(residual));
  Tensor result = torch::stable::new_empty(source, {source.size(0), rest.width()});
  rest.run(source.size(0), source, source.const_data_ptr<float>(), residuals.const_data_ptr<float>(), places.data(),
           result.mutable_data_ptr<float>());
  return result;
}

Tensor int8_post_norm_layer(const Tensor& x, const Tensor& cu_seqlens, int64_t max_seqlen, int64_t heads,
                            std::vector<Tensor> projections, std::vector<Tensor> dense, std::vector<Tensor> dense_norm,
                            double dense_eps, std::vector<Tensor> grow, std::vector<Tensor> shrink,
                            std::vector<Tensor> norm, double eps) {
  const char* op = "int8_post_norm_layer";
  const Layer projection(op, "projections", projections);
  const Rest rest(op, dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const int64_t count = source.size(0), outputs = projection.outputs();
  require(outputs % 3 == 0, op, ": projections must be queries, keys and values; got ", outputs, " outputs");
  const mp::SelfAttention attention(op, cu_seqlens, max_seqlen, count, heads, outputs / 3);
  require(source.size(1) == projection.features() && source.size(1) == rest.width() && outputs == 3 * rest.features(),
          op, ": x must be [rows, width] of layers that fit each other; got x ", shape_of(x), ", projections of ",
          projection.features(), " features and ", outputs, " outputs, dense of ", rest.features(), " features and ",
          rest.width(), " outputs");
  Tensor result = torch::stable::new_empty(source, {count, rest.width()});
  const float* from = source.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  std::vector<const Layer*> layers = rest.layers();
  layers.push_back(&projection);
  if (share(count, layers)) {
    run_shared(source, std::max(scratch_of(layers, count), attention.scratch()), [&](Taker& memory) {
      float *rows = memory.floats(count * outputs), *context = memory.floats(count * rest.features());
      float* sums = memory.floats(attention.sums());
      const mp::AttentionForward forward = attention.forward(mp::Dtype::kFloat32, rows, context, sums);
      return joined({linear_steps(projection, memory, from, rows, count),
                     {attention.step(forward)},
                     rest.steps(memory, context, from, nullptr, out, count)});
    });
    return result;
  }
  Tensor sums = torch::stable::new_empty(source, {attention.sums()});
  const std::vector<int64_t> groups = attention.groups(mp::rows_at_a_time(count, largest_of(layers)));
  if (groups.empty()) {
    Tensor projected = torch::stable::new_empty(source, {count, outputs});
    Tensor context = torch::stable::new_empty(source, {count, rest.features()});
    float* rows = projected.mutable_data_ptr<float>();
    run(count, source, {&projection}, [&](Taker& memory, int64_t first, int64_t some) {
      return linear_steps(projection, memory, from + first * projection.features(), rows + first * outputs, some);
    });
    attention.run(attention.forward(mp::Dtype::kFloat32, rows, context.data_ptr(), sums.mutable_data_ptr<float>()));
    rest.run(count, source, context.const_data_ptr<float>(), from, nullptr, out);
    return result;
  }
  attention.run_by_groups(
      groups, [&](int64_t rows) { return scratch_of(layers, rows); },
      [&](Taker& memory, int64_t first, int64_t some, const auto& attend) {
        float *rows = memory.floats(some * outputs), *context = memory.floats(some * rest.features());
        const mp::AttentionForward forward =
            attention.forward(mp::Dtype::kFloat32, rows - first * outputs, context - first * rest.features(),
                              sums.mutable_data_ptr<float>());
        return joined(
            {linear_steps(projection, memory, from + first * projection.features(), rows, some),
             {attend(forward)},
             rest.steps(memory, context, from + first * rest.width(), nullptr, out + first * rest.width(), some)});
      });
  return result;
}

Tensor int8_post_norm_first(const Tensor& x, const Tensor& cu_seqlens, int64_t max_seqlen, int64_t heads,
                            std::vector<Tensor> queries_parts, std::vector<Tensor> keys_values_parts,
                            std::vector<Tensor> dense, std::vector<Tensor> dense_norm, double dense_eps,
                            std::vector<Tensor> grow, std::vector<Tensor> shrink, std::vector<Tensor> norm,
                            double eps) {
  const char* op = "int8_post_norm_first";
  const Layer queries(op, "queries", queries_parts), keys_values(op, "keys_values", keys_values_parts);
  const Rest rest(op, dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const int64_t total = source.size(0), width = queries.outputs();
  const mp::SelfAttention attention(op, cu_seqlens, max_seqlen, total, heads, width, true);
  require(source.size(1) == queries.features() && source.size(1) == keys_values.features() &&
              source.size(1) == rest.width() && keys_values.outputs() == 2 * width && width == rest.features(),
          op, ": x must be [rows, width] of layers that fit each other; got x ", shape_of(x), ", queries of ",
          queries.features(), " features and ", width, " outputs, keys_values of ", keys_values.features(),
          " features and ", keys_values.outputs(), " outputs, dense of ", rest.features(), " features and ",
          rest.width(), " outputs");
  const int64_t batch = attention.queries();
  const int64_t* first_rows = attention.first_rows().data();
  Tensor result = torch::stable::new_empty(source, {batch, rest.width()});
  const float* from = source.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  Tensor memory = torch::stable::new_empty(source, {2 * (total + batch) * width + attention.sums()});
  float* rows = memory.mutable_data_ptr<float>();
  float *asking = rows + 2 * total * width, *context = asking + batch * width, *sums = context + batch * width;
  const mp::AttentionForward forward = attention.forward(mp::Dtype::kFloat32, asking, rows, context, sums);
  std::vector<const Layer*> layers = rest.layers();
  layers.insert(layers.end(), {&queries, &keys_values});
  if (share(total, layers)) {
    run_shared(source, std::max(scratch_of(layers, total), attention.scratch()), [&](Taker& more) {
      return joined({linear_steps(keys_values, more, from, rows, total),
                     linear_steps(queries, more, from, asking, batch, first_rows),
                     {attention.step(forward)},
                     rest.steps(more, context, from, first_rows, out, batch)});
    });
    return result;
  }
  run(total, source, {&keys_values}, [&](Taker& more, int64_t first, int64_t some) {
    return linear_steps(keys_values, more, from + first * keys_values.features(), rows + first * 2 * width, some);
  });
  run(batch, source, {&queries}, [&](Taker& more, int64_t first, int64_t some) {
    return linear_steps(queries, more, from, asking + first * width, some, first_rows + first);
  });
  attention.run(forward);
  rest.run(batch, source, context, from, first_rows, out);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("int8_dynamic_linear", TORCH_BOX(&int8_dynamic_linear));
  m.impl("int8_post_norm_rest", TORCH_BOX(&int8_post_norm_rest));
  m.impl("int8_post_norm_layer", TORCH_BOX(&int8_post_norm_layer));
  m.impl("int8_post_norm_first", TORCH_BOX(&int8_post_norm_first));
}
