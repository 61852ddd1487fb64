// The CPU operators for layers that normalise after each residual, as torch calls them: whole, or what follows
// attention.
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
#include "linear.h"
#include "row_steps.h"
#include "self_attention.h"
#include "threads.h"

namespace {

using mp::FeedForward;
using mp::joined;
using mp::Linear;
using mp::Norm;
using mp::require;
using mp::Residual;
using mp::Step;
using mp::Taker;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// All that follows attention in a layer that normalises after each residual.
class Rest {
 public:
  // x: something of the dtype; features: of the context.
  Rest(const char* op, const Tensor& x, int64_t features, const std::vector<Tensor>& dense,
       const std::vector<Tensor>& dense_norm, double dense_eps, const std::vector<Tensor>& grow,
       const std::vector<Tensor>& shrink, const std::vector<Tensor>& norm, double eps)
      : op_(op),
        dense_parts_(dense),
        dense_norm_parts_(dense_norm),
        grow_parts_(grow),
        shrink_parts_(shrink),
        norm_parts_(norm),
        dense_eps_(dense_eps),
        eps_(eps),
        dense_bias_(bias_of(op, "dense", dense)),
        grow_bias_(bias_of(op, "grow", grow)),
        shrink_bias_(bias_of(op, "shrink", shrink)),
        dense_(op, x, features, dense[0], dense_bias_),
        dense_norm_(op, x, width(), norm_of(op, dense_norm)[0], dense_norm[1], dense_eps),
        feed_forward_(op, x, width(), grow[0], grow_bias_, shrink[0], shrink_bias_, norm_of(op, norm)[0], norm[1],
                      eps) {}
  int64_t features() const { return dense_.features(); }
  int64_t width() const { return dense_.outputs(); }
  int64_t weight_bytes() const { return std::max(dense_.weight_bytes(), feed_forward_.weight_bytes()); }
  bool in_steps(int64_t rows) const { return dense_.in_steps(rows) && feed_forward_.in_steps(rows); }

  // The steps from contexts [count, features], whose entering states are residual[index], to out [count, width].
  std::vector<Step> steps(Taker& memory, const float* context, const float* residual, const int64_t* index,
                          int64_t count, float* out) const {
    float* panels = memory.floats(std::max(dense_.panels(count), feed_forward_.panels(count)));
    float* attended = memory.floats(count * width());
    const mp::LayerNorm middle = dense_norm_.over(attended, residual, index);
    const auto attend = [=](int64_t begin, int64_t end) { mp::kernels().add_layer_norm(middle, begin, end); };
    return joined({dense_.steps(context, count, panels, attended),
                   feed_forward_.steps(memory, attended, count, panels, out, attend)});
  }

  bool shares_halves(int64_t rows) const { return dense_.shares_halves(rows) && feed_forward_.shares_halves(rows); }

  // The same steps for rows of bfloat16.
  std::vector<Step> half_steps(Taker& memory, mp::HalfRows context, const mp::BFloat16* residual, const int64_t* index,
                               int64_t count, mp::BFloat16* out) const {
    mp::BFloat16* attended = memory.halves(count * width());
    return joined({dense_.half_steps(memory, context, count, dense_norm_.into(attended, residual, index)),
                   feed_forward_.half_steps(memory, attended, count, out)});
  }

  // The result of contexts whose entering states are residual[index].
  Tensor of(const Tensor& context, const Tensor& residual, const std::optional<Tensor>& index = std::nullopt) const {
    const int64_t rows = context.size(0);
    if (shares_halves(rows)) {
      const Residual entered(op_, context, rows, width(), residual, index);
      const Tensor source = mp::with_rows_together(context);
      Tensor result = torch::stable::new_empty(source, {rows, width()});
      mp::run_shared(context, mp::kernels().half_outputs_scratch, [&](Taker& memory) {
        return half_steps(memory, {mp::halves(source), source.stride(0)}, entered.halves(), entered.index(), rows,
                          static_cast<mp::BFloat16*>(result.data_ptr()));
      });
      return result;
    }
    if (!in_steps(rows)) {
      const Tensor attended = mp::linear_add_layer_norm(context, dense_parts_[0], dense_bias_, residual, index,
                                                        dense_norm_parts_[0], dense_norm_parts_[1], dense_eps_);
      return mp::feed_forward(attended, grow_parts_[0], grow_bias_, shrink_parts_[0], shrink_bias_, norm_parts_[0],
                              norm_parts_[1], eps_);
    }
    const Residual entered(op_, context, rows, width(), residual, index);
    const Tensor source = torch::stable::contiguous(context);
    Tensor result = torch::stable::new_empty(source, {rows, width()});
    const float* from = source.const_data_ptr<float>();
    float* out = result.mutable_data_ptr<float>();
    mp::run_in_steps(rows, source, weight_bytes(), [&](Taker& memory, int64_t first, int64_t count) {
      return steps(memory, from + first * features(), entered.floats_from(first), entered.index_from(first), count,
                   out + first * width());
    });
    return result;
  }

 private:
  const char* op_;
  const std::vector<Tensor>&dense_parts_, &dense_norm_parts_, &grow_parts_, &shrink_parts_, &norm_parts_;
  double dense_eps_, eps_;
  std::optional<Tensor> dense_bias_, grow_bias_, shrink_bias_;
  Linear dense_;
  Norm dense_norm_;
  FeedForward feed_forward_;
};

Tensor post_norm_rest(const Tensor& x, const Tensor& residual, std::optional<Tensor> index, std::vector<Tensor> dense,
                      std::vector<Tensor> dense_norm, double dense_eps, std::vector<Tensor> grow,
                      std::vector<Tensor> shrink, std::vector<Tensor> norm, double eps) {
  const Rest rest("post_norm_rest", x, x.size(1), dense, dense_norm, dense_eps, grow, shrink, norm, eps);
  return rest.of(x, residual, index);
}

// Whether all threads share the outputs of that many rows.
bool share(int64_t rows, const Linear& projection, const Rest& rest) {
  return mp::share_outputs(rows, std::max(projection.weight_bytes(), rest.weight_bytes()));
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
  Tensor sums = torch::stable::new_empty(x, {attention.sums()}, ScalarType::Float);
  const auto forward = [&](void* projected, void* contexts) {
    return attention.forward(dtype, projected, contexts, sums.mutable_data_ptr<float>());
  };
  if (projection.shares_halves(rows) && rest.shares_halves(rows)) {
    const Residual entered(op, x, rows, rest.width(), x, std::nullopt);
    Tensor result = torch::stable::new_empty(entered.rows(), {rows, rest.width()});
    mp::run_shared(x, std::max(mp::kernels().half_outputs_scratch, attention.scratch()), [&](Taker& memory) {
      mp::BFloat16 *projected = memory.halves(rows * outputs), *contexts = memory.halves(rows * attention.width());
      return joined({projection.half_steps(memory, {entered.halves(), x.size(1)}, rows, false, projected),
                     {attention.step(forward(projected, contexts))},
                     rest.half_steps(memory, {contexts, attention.width()}, entered.halves(), nullptr, rows,
                                     static_cast<mp::BFloat16*>(result.data_ptr()))});
    });
    return result;
  }
  // Where each thread has rows of its own, samples would not fill its panels of rows.
  if (!projection.in_steps(rows) || !rest.in_steps(rows) || !share(rows, projection, rest)) {
    const Tensor projected = mp::linear(x, projections[0], bias);
    Tensor context = torch::stable::new_empty(x, {rows, attention.width()});
    attention.run(forward(projected.data_ptr(), context.data_ptr()));
    return rest.of(context, x);
  }
  const Residual entered(op, x, rows, rest.width(), x, std::nullopt);
  Tensor result = torch::stable::new_empty(entered.rows(), {rows, rest.width()});
  const float* from = entered.floats_from(0);
  float* out = result.mutable_data_ptr<float>();
  mp::run_shared(x, std::max(mp::kernels().float_scratch, attention.scratch()), [&](Taker& memory) {
    float *panels = memory.floats(projection.panels(rows)), *projected = memory.floats(rows * outputs);
    float* contexts = memory.floats(rows * attention.width());
    return joined({projection.steps(from, rows, panels, projected),
                   {attention.step(forward(projected, contexts))},
                   rest.steps(memory, contexts, from, nullptr, rows, out)});
  });
  return result;
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
  const auto forward = [&](void* of_first, void* of_all) {
    return attention.forward(dtype, of_first, of_all, context.data_ptr(), sums.mutable_data_ptr<float>());
  };
  if (answering.shares_halves(total) && asking.shares_halves(batch) && rest.shares_halves(batch)) {
    const Residual residual(op, x, batch, rest.width(), entered, std::nullopt);
    Tensor result = torch::stable::new_empty(source, {batch, rest.width()});
    const mp::BFloat16 *from = mp::halves(source), *first = residual.halves();
    mp::run_shared(source, std::max(mp::kernels().half_outputs_scratch, attention.scratch()), [&](Taker& memory) {
      mp::BFloat16 *of_all = memory.halves(total * answering.outputs()),
                   *of_first = memory.halves(batch * asking.outputs());
      return joined({answering.half_steps(memory, {from, source.size(1)}, total, false, of_all),
                     asking.half_steps(memory, {first, source.size(1)}, batch, false, of_first),
                     {attention.step(forward(of_first, of_all))},
                     rest.half_steps(memory, {mp::halves(context), attention.width()}, first, nullptr, batch,
                                     static_cast<mp::BFloat16*>(result.data_ptr()))});
    });
    return result;
  }
  if (!answering.in_steps(total) || !asking.in_steps(batch) || !rest.in_steps(batch) ||
      !share(total, answering, rest)) {
    const Tensor of_first = mp::linear(entered, queries[0], asking_bias),
                 of_all = mp::linear(source, keys_values[0], bias);
    attention.run(forward(of_first.data_ptr(), of_all.data_ptr()));
    return rest.of(context, entered);
  }
  const Residual residual(op, x, batch, rest.width(), entered, std::nullopt);
  Tensor result = torch::stable::new_empty(source, {batch, rest.width()});
  const float *from = source.const_data_ptr<float>(), *first = residual.floats_from(0);
  float *contexts = context.mutable_data_ptr<float>(), *out = result.mutable_data_ptr<float>();
  mp::run_shared(source, std::max(mp::kernels().float_scratch, attention.scratch()), [&](Taker& memory) {
    float* panels = memory.floats(std::max(answering.panels(total), asking.panels(batch)));
    float *of_all = memory.floats(total * answering.outputs()), *of_first = memory.floats(batch * asking.outputs());
    return joined({answering.steps(from, total, panels, of_all),
                   asking.steps(first, batch, panels, of_first),
                   {attention.step(forward(of_first, of_all))},
                   rest.steps(memory, contexts, first, nullptr, batch, out)});
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("post_norm_rest", TORCH_BOX(&post_norm_rest));
  m.impl("post_norm_layer", TORCH_BOX(&post_norm_layer));
  m.impl("post_norm_first", TORCH_BOX(&post_norm_first));
}
