// The CPU operators of int8 layers from floats to floats, as torch calls them: rows are quantised on their way into
// each product. Few rows share the outputs of a layer among the threads, which are woken once for all steps; of many,
// each thread takes some through all steps, so that nothing of them leaves the cache in between.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

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
using mp::require;
using mp::RowIndex;
using mp::shape_of;
using mp::Step;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Takes arrays out of memory one after the other; without memory it only counts.
class Taker {
 public:
  explicit Taker(float* memory) : memory_(memory) {}
  float* floats(int64_t count) {
    constexpr size_t kLine = 16;  // floats
    float* taken = memory_ ? memory_ + used_ : nullptr;
    used_ += (static_cast<size_t>(count) + kLine - 1) / kLine * kLine;
    return taken;
  }
  int8_t* bytes(int64_t count) { return reinterpret_cast<int8_t*>(floats((count + 3) / 4)); }
  size_t used() const { return used_; }

 private:
  float* memory_;
  size_t used_ = 0;
};

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

// Computes rows by steps: steps_of(memory, first, count) are those of some of the rows.
template <typename StepsOf>
void run(int64_t count, const Tensor& like, const std::vector<const Layer*>& layers, const StepsOf& steps_of) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t largest_weight = 0;
  for (const Layer* layer : layers) largest_weight = std::max(largest_weight, layer->outputs() * layer->features());
  const int64_t at_a_time = mp::int8_rows_at_a_time(count, largest_weight);
  const auto floats_of = [&](int64_t rows) {
    Taker counter(nullptr);
    steps_of(counter, 0, rows);
    return counter.used();
  };
  const auto scratch_of = [&](int64_t rows) {
    size_t floats = 0;
    for (const Layer* layer : layers) floats = std::max(floats, layer->scratch(rows));
    return floats;
  };
  if (threads > 1 && count <= at_a_time * threads) {
    Tensor memory = torch::stable::new_empty(like, {static_cast<int64_t>(floats_of(count))}, ScalarType::Float);
    Taker taker(memory.mutable_data_ptr<float>());
    mp::run_steps(steps_of(taker, 0, count), scratch_of(count));
    return;
  }
  const size_t floats = floats_of(std::min(at_a_time, count));
  mp::run_in_order((count + at_a_time - 1) / at_a_time, floats + scratch_of(std::min(at_a_time, count)),
                   [&](int64_t task, float* scratch) {
                     const int64_t first = task * at_a_time;
                     Taker taker(scratch);
                     for (const Step& step : steps_of(taker, first, std::min(at_a_time, count - first)))
                       step.work(0, step.units, scratch + floats);
                   });
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
    const mp::Int8Rows rows = layer.rows_from(memory, count);
    auto* elements = reinterpret_cast<int32_t*>(memory.floats(count * layer.outputs()));
    const auto quantise = [=, &layer](int64_t begin, int64_t end, float*) {
      mp::kernels().quantize_rows(from + first * layer.features(), nullptr, layer.features(), rows, begin, end);
    };
    const auto finish = [=, &layer](int64_t begin, int64_t end, float*) {
      mp::kernels().dequantize(layer.floats_of(elements, rows), out + first * layer.outputs(), begin, end);
    };
    return std::vector<Step>{{count, layer.features() * 4, quantise},
                             layer.product(rows, count, elements),
                             {count, layer.outputs() * 4, finish}};
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

Tensor int8_post_norm_rest(const Tensor& x, const Tensor& residual, std::optional<Tensor> index,
                           std::vector<Tensor> dense_parts, std::vector<Tensor> dense_norm_parts, double dense_eps,
                           std::vector<Tensor> grow_parts, std::vector<Tensor> shrink_parts,
                           std::vector<Tensor> norm_parts, double eps) {
  const char* op = "int8_post_norm_rest";
  const Layer dense(op, "dense", dense_parts), grow(op, "grow", grow_parts), shrink(op, "shrink", shrink_parts);
  const int64_t width = dense.outputs();
  require(grow.features() == width && shrink.features() == grow.outputs() && shrink.outputs() == width, op,
          ": the layers must fit each other; got weights ", shape_of(dense_parts[0]), ", ", shape_of(grow_parts[0]),
          " and ", shape_of(shrink_parts[0]));
  const Norm dense_norm(op, dense_norm_parts, dense_eps, width), norm(op, norm_parts, eps, width);
  const Tensor source = matrix(op, "x", x, ScalarType::Float, "float32");
  const Tensor residuals = matrix(op, "residual", residual, ScalarType::Float, "float32");
  const RowIndex places(op, "index", index, residuals.size(0));
  require(source.size(1) == dense.features() && residuals.size(1) == width && places.rows() == source.size(0), op,
          ": x must be [rows, ", dense.features(), "] and residual, after index, [rows, ", width, "]; got ",
          shape_of(x), " and ", shape_of(residual));
  Tensor result = torch::stable::new_empty(source, {source.size(0), width});
  const float *from = source.const_data_ptr<float>(), *entered = residuals.const_data_ptr<float>();
  float* out = result.mutable_data_ptr<float>();
  run(source.size(0), source, {&dense, &grow, &shrink}, [&](Taker& memory, int64_t first, int64_t count) {
    const mp::Kernels& kernels = mp::kernels();
    const mp::Int8Rows context = dense.rows_from(memory, count), attended_rows = grow.rows_from(memory, count),
                       grown = shrink.rows_from(memory, count);
    float* attended = memory.floats(count * width);
    auto* elements = reinterpret_cast<int32_t*>(memory.floats(count * std::max(width, grow.outputs())));
    const int64_t* some = places.data() ? places.data() + first : nullptr;
    const mp::LayerNorm middle = dense_norm.of(some ? entered : entered + first * width, some, attended);
    const mp::LayerNorm last = norm.of(attended, nullptr, out + first * width);
    const auto quantise = [=, &kernels, &dense](int64_t begin, int64_t end, float*) {
      kernels.quantize_rows(from + first * dense.features(), nullptr, dense.features(), context, begin, end);
    };
    const auto attend = [=, &kernels, &dense](int64_t begin, int64_t end, float*) {
      kernels.dequantize_add_layer_norm(dense.floats_of(elements, context), middle, begin, end);
      kernels.quantize_rows(attended, nullptr, width, attended_rows, begin, end);
    };
    const auto activate = [=, &kernels, &grow](int64_t begin, int64_t end, float*) {
      kernels.dequantize_gelu(grow.floats_of(elements, attended_rows), grown, begin, end);
    };
    const auto finish = [=, &kernels, &shrink](int64_t begin, int64_t end, float*) {
      kernels.dequantize_add_layer_norm(shrink.floats_of(elements, grown), last, begin, end);
    };
    return std::vector<Step>{{count, dense.features() * 4, quantise},
                             dense.product(context, count, elements),
                             {count, width * 4, attend},
                             grow.product(attended_rows, count, elements),
                             {count, grow.outputs() * 4, activate},
                             shrink.product(grown, count, elements),
                             {count, width * 4, finish}};
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("int8_dynamic_linear", TORCH_BOX(&int8_dynamic_linear));
  m.impl("int8_post_norm_rest", TORCH_BOX(&int8_post_norm_rest));
}
