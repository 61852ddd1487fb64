// The CPU operators as torch calls them, through its stable ABI. Only this file and the headers beside it see tensors;
// the kernels in cpu/ work on pointers. Schemas are in mp_kernels/schemas.py, with the definitions that run where this
// library was not built.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "checks.h"
#include "cpu/compaction.h"
#include "cpu/entropy.h"
#include "cpu/kernels.h"
#include "threads.h"

namespace {

using mp::as_heads;
using mp::by_falling_cost;
using mp::DistanceBias;
using mp::floating_dtype;
using mp::heads_of;
using mp::Middles;
using mp::Positions;
using mp::require;
using mp::require_dtype;
using mp::RowIndex;
using mp::rows_per_thread;
using mp::run_in_order;
using mp::SequenceStarts;
using mp::shape_of;
using mp::Stays;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- attention ----

// The arguments of attention that depends on distances.
struct PlaceArguments {
  const std::optional<Tensor>&positions_q, &positions, &bias, &buckets;
  int64_t window;
};

struct AttentionInputs {
  Tensor q, k, v;
  SequenceStarts keys, queries;
  std::optional<Positions> key_places, query_places;
  std::optional<DistanceBias> bias;
  mp::AttentionShape shape;

  AttentionInputs(const char* op, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                  const Tensor& cu_seqlens_q, const Tensor& cu_seqlens_k, int64_t max_seqlen, double scale,
                  const PlaceArguments& places)
      : q(as_heads(op, "q", q_in)),
        k(as_heads(op, "k", k_in)),
        v(as_heads(op, "v", v_in)),
        keys(op, "cu_seqlens", cu_seqlens_k, k.size(0)),
        queries(op, "cu_seqlens_q", cu_seqlens_q, q.size(0)) {
    require(shape_of(k) == shape_of(v) && q.size(1) == k.size(1) && q.size(2) == k.size(2), op,
            ": q, k and v must agree in shape; got ", shape_of(q), ", ", shape_of(k), " and ", shape_of(v));
    require(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(), op,
            ": q, k and v must have the same dtype");
    require(queries.batch() == keys.batch(), op, ": cu_seqlens_q and cu_seqlens must describe the same batch; got ",
            queries.batch(), " and ", keys.batch(), " samples");
    require(max_seqlen >= keys.longest(), op, ": max_seqlen must be at least the longest sample, ", keys.longest(),
            "; got ", max_seqlen);
    require(places.bias.has_value() == places.buckets.has_value(), op, ": bias and buckets must be given together");
    shape = {floating_dtype(op, "q", q),
             queries.data(),
             keys.data(),
             q.size(1),
             q.size(2),
             q.size(0),
             k.size(0),
             static_cast<float>(scale),
             {}};
    if (places.bias || places.window >= 0) place(op, places);
  }

 private:
  void place(const char* op, const PlaceArguments& places) {
    query_places.emplace(op, "positions_q", places.positions_q, queries);
    key_places.emplace(op, "positions", places.positions, keys);
    shape.places.queries = query_places->data();
    shape.places.keys = key_places->data();
    shape.places.window = std::min<int64_t>(places.window, std::numeric_limits<int32_t>::max());
    if (!places.bias) return;
    bias.emplace(op, *places.bias, *places.buckets, shape.heads);
    shape.places.bias = bias->by_distance();
    shape.places.bucket_of = bias->bucket_of();
    shape.places.reach = bias->reach();
    shape.places.buckets = bias->buckets();
  }
};

std::tuple<Tensor, Tensor, Tensor> ragged_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const Tensor& cu_seqlens_q, const Tensor& cu_seqlens,
                                                    std::optional<Tensor> stays, int64_t max_seqlen, double scale,
                                                    bool need_importance, std::optional<Tensor> positions_q,
                                                    std::optional<Tensor> positions, std::optional<Tensor> bias,
                                                    std::optional<Tensor> buckets, int64_t window) {
  const char* op = "ragged_attention";
  const AttentionInputs in(op, q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale,
                           {positions_q, positions, bias, buckets, window});
  const Stays computed(op, stays, in.keys.batch());
  const int64_t heads = in.shape.heads, total = in.shape.total_k;
  Tensor out = torch::stable::new_empty(in.q, {in.q.size(0), heads, in.shape.head_dim});
  Tensor logsumexp = torch::stable::new_empty(in.q, {heads, in.shape.total_q}, ScalarType::Float);
  Tensor importance = torch::stable::new_empty(in.q, {heads, need_importance ? total : 0}, ScalarType::Float);

  const mp::Kernels& kernels = mp::kernels();
  const mp::AttentionForward forward{in.shape,
                                     heads_of(in.q),
                                     heads_of(in.k),
                                     heads_of(in.v),
                                     heads_of(out),
                                     need_importance ? importance.mutable_data_ptr<float>() : nullptr,
                                     logsumexp.mutable_data_ptr<float>()};
  const std::vector<int32_t> order = by_falling_cost(in.queries, in.keys);
  run_in_order(in.keys.batch() * heads, kernels.attention_forward_scratch(in.keys.longest(), in.shape.head_dim),
               [&](int64_t task, float* scratch) {
                 const int64_t sample = order[static_cast<size_t>(task / heads)];
                 if (computed[sample] && in.keys.length(sample))
                   kernels.attention_forward(forward, sample, task % heads, scratch);
                 else
                   mp::attention_of_absent(forward, sample, task % heads);
               });
  return {out, importance, logsumexp};
}

// The gradient of the bias, [heads, buckets], from the shares [batch, heads, buckets] of the samples, in their order.
Tensor sum_over_samples(const AttentionInputs& in, const std::vector<float>& shares) {
  const int64_t heads = in.shape.heads, buckets = in.shape.places.buckets;
  Tensor grad = torch::stable::new_empty(in.q, {heads, buckets}, ScalarType::Float);
  float* sums = grad.mutable_data_ptr<float>();
  std::fill_n(sums, heads * buckets, 0.0f);
  for (size_t i = 0; i < shares.size(); ++i) sums[i % static_cast<size_t>(heads * buckets)] += shares[i];
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ragged_attention_backward(
    const Tensor& out_grad, std::optional<Tensor> importance_grad, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& logsumexp, const Tensor& cu_seqlens_q, const Tensor& cu_seqlens, int64_t max_seqlen, double scale,
    std::optional<Tensor> positions_q, std::optional<Tensor> positions, std::optional<Tensor> bias,
    std::optional<Tensor> buckets, int64_t window) {
  const char* op = "ragged_attention_backward";
  const AttentionInputs in(op, q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale,
                           {positions_q, positions, bias, buckets, window});
  const int64_t heads = in.shape.heads;
  require(shape_of(out_grad) == shape_of(q) && out_grad.scalar_type() == q.scalar_type(), op,
          ": out_grad must be like q, ", shape_of(q), "; got ", shape_of(out_grad));
  require_dtype(op, "logsumexp", logsumexp, ScalarType::Float, "float32");
  require(logsumexp.numel() == heads * in.shape.total_q, op, ": logsumexp must be [heads, total]; got ",
          shape_of(logsumexp));
  const Tensor logsumexps = torch::stable::contiguous(logsumexp);
  Tensor importance_grads;
  if (importance_grad) {
    require_dtype(op, "importance_grad", *importance_grad, ScalarType::Float, "float32");
    require(importance_grad->numel() == heads * in.shape.total_k, op, ": importance_grad must be [heads, total]; got ",
            shape_of(*importance_grad));
    importance_grads = torch::stable::contiguous(*importance_grad);
  }
  const Tensor out_grads = as_heads(op, "out_grad", out_grad);
  Tensor q_grad = torch::stable::new_empty(in.q, {in.q.size(0), heads, in.shape.head_dim});
  Tensor k_grad = torch::stable::new_empty(in.q, {in.k.size(0), heads, in.shape.head_dim});
  Tensor v_grad = torch::stable::new_empty(in.q, {in.k.size(0), heads, in.shape.head_dim});
  std::vector<float> bias_shares(static_cast<size_t>(in.keys.batch() * heads * in.shape.places.buckets));

  const mp::Kernels& kernels = mp::kernels();
  const mp::AttentionBackward backward{in.shape,
                                       heads_of(in.q),
                                       heads_of(in.k),
                                       heads_of(in.v),
                                       heads_of(out_grads),
                                       importance_grad ? importance_grads.const_data_ptr<float>() : nullptr,
                                       logsumexps.const_data_ptr<float>(),
                                       heads_of(q_grad),
                                       heads_of(k_grad),
                                       heads_of(v_grad),
                                       bias ? bias_shares.data() : nullptr};
  const std::vector<int32_t> order = by_falling_cost(in.queries, in.keys);
  const int64_t distances = in.shape.places.distances();
  run_in_order(in.keys.batch() * heads,
               kernels.attention_backward_scratch(in.keys.longest(), in.shape.head_dim, distances),
               [&](int64_t task, float* scratch) {
                 const int64_t sample = order[static_cast<size_t>(task / heads)];
                 if (in.keys.length(sample))
                   kernels.attention_backward(backward, sample, task % heads, scratch);
                 else
                   mp::clear_queries(in.shape, backward.q_grad, sample, task % heads);
               });
  return {q_grad, k_grad, v_grad,
          bias ? sum_over_samples(in, bias_shares) : torch::stable::new_empty(in.q, {0}, ScalarType::Float)};
}

Tensor mean_over_heads(const Tensor& importance) {
  const char* op = "mean_over_heads";
  require(importance.dim() == 2 && importance.size(0) > 0, op, ": importance must be [heads, total]; got ",
          shape_of(importance));
  require_dtype(op, "importance", importance, ScalarType::Float, "float32");
  const Tensor by_head = torch::stable::contiguous(importance);
  const int64_t heads = by_head.size(0), total = by_head.size(1);
  Tensor means = torch::stable::new_empty(by_head, {total});
  torch::stable::parallel_for(0, total, rows_per_thread(heads * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().mean_over_heads(by_head.const_data_ptr<float>(), heads, total, begin, end,
                                  means.mutable_data_ptr<float>());
  });
  return means;
}

// ---- compaction ----

struct CompactionResult {
  Tensor index, cu_seqlens, samples, extents;
  CompactionResult(const Tensor& like, int64_t total, int64_t batch)
      : index(torch::stable::new_empty(like, {total}, ScalarType::Long)),
        cu_seqlens(torch::stable::new_empty(like, {batch + 1}, ScalarType::Int)),
        samples(torch::stable::new_empty(like, {batch}, ScalarType::Long)),
        extents(torch::stable::new_empty(like, {4}, ScalarType::Long)) {}
  mp::Compaction pointers() {
    return {index.mutable_data_ptr<int64_t>(), cu_seqlens.mutable_data_ptr<int32_t>(),
            samples.mutable_data_ptr<int64_t>(), extents.mutable_data_ptr<int64_t>()};
  }
  // Fills the buffers beyond the rows and samples that are kept: row 0, the last start repeated, sample 0.
  std::tuple<Tensor, Tensor, Tensor, Tensor> finish() {
    const mp::Compaction out = pointers();
    std::fill(out.index + out.extents[0], out.index + index.size(0), int64_t{0});
    std::fill(out.cu_seqlens + out.extents[1] + 1, out.cu_seqlens + cu_seqlens.size(0),
              static_cast<int32_t>(out.extents[0]));
    std::fill(out.samples + out.extents[1], out.samples + samples.size(0), int64_t{0});
    return {index, cu_seqlens, samples, extents};
  }
};

// Importance [total], from [total] or, by head, [heads, total].
Tensor importance_of_tokens(const char* op, const Tensor& importance) {
  require(importance.dim() == 1 || importance.dim() == 2, op, ": importance must be [total] or [heads, total]; got ",
          shape_of(importance));
  require_dtype(op, "importance", importance, ScalarType::Float, "float32");
  return importance.dim() == 1 ? torch::stable::contiguous(importance) : mean_over_heads(importance);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prune_tokens(const Tensor& importance, const Tensor& cu_seqlens,
                                                        std::optional<Tensor> stays, double threshold) {
  const char* op = "prune_tokens";
  const Tensor scores = importance_of_tokens(op, importance);
  const SequenceStarts starts(op, "cu_seqlens", cu_seqlens, scores.numel());
  const Stays staying(op, stays, starts.batch());
  CompactionResult result(cu_seqlens, scores.numel(), starts.batch());
  mp::prune_tokens(scores.const_data_ptr<float>(), starts.data(), starts.batch(), staying.data(),
                   static_cast<float>(threshold), result.pointers());
  return result.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> top_k_tokens(const Tensor& importance, const Tensor& cu_seqlens,
                                                        std::optional<Tensor> stays, const Tensor& k) {
  const char* op = "top_k_tokens";
  require_dtype(op, "k", k, ScalarType::Long, "int64");
  const Tensor scores = importance_of_tokens(op, importance);
  const SequenceStarts starts(op, "cu_seqlens", cu_seqlens, scores.numel());
  const Stays staying(op, stays, starts.batch());
  require(k.dim() == 1 && k.size(0) == starts.batch(), op, ": k must be [batch], ", starts.batch(), "; got ",
          shape_of(k));
  const Tensor counts = torch::stable::contiguous(k);
  for (int64_t b = 0; b < starts.batch(); ++b)
    require(counts.const_data_ptr<int64_t>()[b] >= 1, op, ": k must be at least 1 (the first token always stays); got ",
            counts.const_data_ptr<int64_t>()[b], " for sample ", b);
  CompactionResult result(cu_seqlens, scores.numel(), starts.batch());
  mp::top_k_tokens(scores.const_data_ptr<float>(), starts.data(), starts.batch(), staying.data(),
                   counts.const_data_ptr<int64_t>(), result.pointers());
  return result.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> select_samples(const Tensor& cu_seqlens, const Tensor& stays,
                                                          int64_t total) {
  const char* op = "select_samples";
  const SequenceStarts starts(op, "cu_seqlens", cu_seqlens, total);
  const Stays staying(op, stays, starts.batch());
  CompactionResult result(cu_seqlens, total, starts.batch());
  mp::select_samples(starts.data(), starts.batch(), staying.data(), result.pointers());
  return result.finish();
}

std::vector<Tensor> ragged_gather(std::vector<Tensor> xs, const Tensor& index) {
  const char* op = "ragged_gather";
  require(index.dim() == 1, op, ": index must be one-dimensional; got ", shape_of(index));
  require_dtype(op, "index", index, ScalarType::Long, "int64");
  const Tensor rows = torch::stable::contiguous(index);
  const int64_t* row = rows.const_data_ptr<int64_t>();
  const int64_t count = rows.size(0);
  const auto [lowest, highest] = std::minmax_element(row, row + count);
  std::vector<Tensor> results;
  for (size_t t = 0; t < xs.size(); ++t) {
    require(xs[t].dim() >= 1, op, ": x must have rows; got a scalar");
    if (count)
      require(*lowest >= 0 && *highest < xs[t].size(0), op, ": index must lie in 0..", xs[t].size(0) - 1, "; got ",
              *lowest < 0 ? *lowest : *highest);
    const Tensor x = mp::with_rows_together(xs[t]);
    Tensor result = mp::new_rows(x, count);
    const int64_t row_elements = mp::row_elements(x);
    const size_t bytes = static_cast<size_t>(row_elements) * x.element_size();
    const size_t stride = static_cast<size_t>(x.stride(0)) * x.element_size();
    const char* from = static_cast<const char*>(x.data_ptr());
    char* to = static_cast<char*>(result.data_ptr());
    if (bytes)
      torch::stable::parallel_for(0, count, rows_per_thread(row_elements * 4), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          std::memcpy(to + static_cast<size_t>(i) * bytes, from + static_cast<size_t>(row[i]) * stride, bytes);
      });
    results.push_back(result);
  }
  return results;
}

// ---- token-wise steps ----

Tensor ragged_mean(const Tensor& x, const Tensor& cu_seqlens) {
  const char* op = "ragged_mean";
  require(x.dim() == 2, op, ": x must be [total, width]; got ", shape_of(x));
  const mp::Dtype dtype = floating_dtype(op, "x", x);
  const SequenceStarts starts(op, "cu_seqlens", cu_seqlens, x.size(0));
  const Tensor source = torch::stable::contiguous(x);
  const int64_t width = x.size(1);
  Tensor result = torch::stable::new_empty(source, {starts.batch(), width});
  const size_t row_bytes = static_cast<size_t>(width) * x.element_size();
  torch::stable::parallel_for(0, starts.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      mp::kernels().mean_rows(dtype, source.data_ptr(),
                              static_cast<char*>(result.data_ptr()) + static_cast<size_t>(b) * row_bytes, width,
                              starts.data()[b], starts.data()[b + 1]);
  });
  return result;
}

Tensor pair_features(const Tensor& first, const Tensor& x, const Tensor& cu_seqlens, const Tensor& middles) {
  const char* op = "pair_features";
  require(x.dim() == 2, op, ": x must be [total, width]; got ", shape_of(x));
  const mp::Dtype dtype = floating_dtype(op, "x", x);
  const SequenceStarts starts(op, "cu_seqlens", cu_seqlens, x.size(0));
  const int64_t batch = starts.batch(), width = x.size(1);
  require(first.scalar_type() == x.scalar_type(), op, ": first and x must have the same dtype");
  require(first.dim() == 2 && first.size(0) == batch && first.size(1) == width, op, ": first must be [", batch, ", ",
          width, "]; got ", shape_of(first));
  const Middles middle(op, "middles", middles, starts);
  const Tensor firsts = torch::stable::contiguous(first), source = torch::stable::contiguous(x);
  Tensor result = torch::stable::new_empty(source, {batch, 4 * width});
  const size_t row_bytes = static_cast<size_t>(width) * x.element_size();
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const size_t row = static_cast<size_t>(b) * row_bytes;
      mp::kernels().pair_features({dtype, static_cast<const char*>(firsts.data_ptr()) + row, source.data_ptr(),
                                   static_cast<char*>(result.data_ptr()) + 4 * row, width, starts.data()[b],
                                   middle.data()[b], starts.data()[b + 1]});
    }
  });
  return result;
}

Tensor add_layer_norm(const Tensor& x, std::optional<Tensor> x_index, const Tensor& residual,
                      std::optional<Tensor> index, const Tensor& weight, const Tensor& bias, double eps) {
  const char* op = "add_layer_norm";
  require(x.dim() == 2 && residual.dim() == 2 && x.size(1) == residual.size(1), op,
          ": x and residual must be [rows, width] of one width; got ", shape_of(x), " and ", shape_of(residual));
  const mp::Dtype dtype = floating_dtype(op, "x", x);
  for (const Tensor* other : {&residual, &weight, &bias})
    require(other->scalar_type() == x.scalar_type(), op, ": x, residual, weight and bias must have the same dtype");
  require(weight.numel() == x.size(1) && bias.numel() == x.size(1), op, ": weight and bias must be [width], ",
          x.size(1), "; got ", shape_of(weight), " and ", shape_of(bias));
  const RowIndex x_rows(op, "x_index", x_index, x.size(0)), residual_rows(op, "index", index, residual.size(0));
  require(x_rows.rows() == residual_rows.rows(), op,
          ": x and residual must have the same rows, after their indices; got ", x_rows.rows(), " and ",
          residual_rows.rows());
  const Tensor source = torch::stable::contiguous(x), residuals = torch::stable::contiguous(residual);
  const Tensor weights = torch::stable::contiguous(weight), biases = torch::stable::contiguous(bias);
  Tensor result = torch::stable::new_empty(source, {x_rows.rows(), x.size(1)});
  const mp::LayerNorm norm{dtype,
                           source.data_ptr(),
                           x_rows.data(),
                           residuals.data_ptr(),
                           residual_rows.data(),
                           weights.data_ptr(),
                           biases.data_ptr(),
                           result.data_ptr(),
                           x.size(1),
                           static_cast<float>(eps)};
  torch::stable::parallel_for(0, x_rows.rows(), rows_per_thread(x.size(1) * 4),
                              [&](int64_t begin, int64_t end) { mp::kernels().add_layer_norm(norm, begin, end); });
  return result;
}

Tensor bias_gelu(const Tensor& x, std::optional<Tensor> bias) {
  const char* op = "bias_gelu";
  require(x.dim() == 2, op, ": x must be [rows, width]; got ", shape_of(x));
  const mp::Dtype dtype = floating_dtype(op, "x", x);
  const int64_t width = x.size(1);
  Tensor biases;
  if (bias) {
    require(bias->numel() == width && bias->scalar_type() == x.scalar_type(), op,
            ": bias must be [width] of x's dtype; got ", shape_of(*bias), " for width ", width);
    biases = torch::stable::contiguous(*bias);
  }
  const Tensor source = torch::stable::contiguous(x);
  Tensor result = torch::stable::new_empty(source, {x.size(0), width});
  torch::stable::parallel_for(0, x.size(0), rows_per_thread(width * 4), [&](int64_t begin, int64_t end) {
    mp::kernels().bias_gelu(dtype, source.data_ptr(), bias ? biases.data_ptr() : nullptr, result.data_ptr(), width,
                            begin, end);
  });
  return result;
}

Tensor gelu_gate(const Tensor& x) {
  const char* op = "gelu_gate";
  require(x.dim() == 2 && x.size(1) % 2 == 0, op, ": x must be [rows, 2 w]; got ", shape_of(x));
  const mp::Dtype dtype = floating_dtype(op, "x", x);
  const int64_t width = x.size(1) / 2;
  const Tensor source = torch::stable::contiguous(x);
  Tensor result = torch::stable::new_empty(source, {x.size(0), width});
  torch::stable::parallel_for(0, x.size(0), rows_per_thread(width * 8), [&](int64_t begin, int64_t end) {
    mp::kernels().gelu_gate(dtype, source.data_ptr(), result.data_ptr(), width, begin, end);
  });
  return result;
}

Tensor rotary_embedding(const Tensor& x, const Tensor& positions, const Tensor& cos, const Tensor& sin) {
  const char* op = "rotary_embedding";
  const Tensor source = as_heads(op, "x", x);
  const int64_t rows = x.size(0), heads = x.size(1), head_dim = x.size(2);
  require(head_dim % 2 == 0, op, ": head_dim must be even, as pairs are turned; got ", head_dim);
  require_dtype(op, "positions", positions, ScalarType::Int, "int32");
  require(positions.dim() == 1 && positions.size(0) == rows, op, ": positions must be [rows], ", rows, "; got ",
          shape_of(positions));
  require_dtype(op, "cos", cos, ScalarType::Float, "float32");
  require_dtype(op, "sin", sin, ScalarType::Float, "float32");
  require(cos.dim() == 2 && cos.size(1) == head_dim / 2 && shape_of(sin) == shape_of(cos), op,
          ": cos and sin must be [places, ", head_dim / 2, "]; got ", shape_of(cos), " and ", shape_of(sin));
  const Tensor places = torch::stable::contiguous(positions);
  const Tensor cosines = torch::stable::contiguous(cos), sines = torch::stable::contiguous(sin);
  const int32_t* place = places.const_data_ptr<int32_t>();
  for (int64_t i = 0; i < rows; ++i)
    require(place[i] >= 0 && place[i] < cos.size(0), op, ": positions must lie in 0..", cos.size(0) - 1, "; got ",
            place[i]);
  Tensor result = torch::stable::new_empty(source, {rows, heads, head_dim});
  const mp::Rotary rotary{floating_dtype(op, "x", x),    heads_of(source),  place, cosines.const_data_ptr<float>(),
                          sines.const_data_ptr<float>(), result.data_ptr(), heads, head_dim};
  torch::stable::parallel_for(0, rows, rows_per_thread(heads * head_dim * 4),
                              [&](int64_t begin, int64_t end) { mp::kernels().rotary_embedding(rotary, begin, end); });
  return result;
}

// float32 [batch], uncertainty(row, labels) of each row of logits.
template <typename Uncertainty>
Tensor uncertainty_of_rows(const char* op, const Tensor& logits, const Uncertainty& uncertainty) {
  const mp::Dtype dtype = floating_dtype(op, "logits", logits);
  const Tensor source = torch::stable::contiguous(logits);
  Tensor result = torch::stable::new_empty(source, {logits.size(0)}, ScalarType::Float);
  float* out = result.mutable_data_ptr<float>();
  mp::with_type(dtype, [&](auto t) {
    const auto* rows = static_cast<const decltype(t)*>(source.data_ptr());
    for (int64_t b = 0; b < logits.size(0); ++b) out[b] = uncertainty(rows + b * logits.size(1), logits.size(1));
  });
  return result;
}

Tensor normalized_entropy(const Tensor& logits) {
  const char* op = "normalized_entropy";
  require(logits.dim() == 2 && logits.size(1) >= 2, op,
          ": logits must be [batch, classes] with 2 classes or more; got ", shape_of(logits));
  return uncertainty_of_rows(op, logits,
                             [](auto* row, int64_t classes) { return mp::normalized_entropy(row, classes); });
}

Tensor label_entropy(const Tensor& logits) {
  const char* op = "label_entropy";
  require(logits.dim() == 2 && logits.size(1) >= 1, op, ": logits must be [batch, labels] with 1 label or more; got ",
          shape_of(logits));
  return uncertainty_of_rows(op, logits, [](auto* row, int64_t labels) { return mp::label_entropy(row, labels); });
}

// ---- heads ----

// A linear layer, row after row, for few rows.
Tensor in_order(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const Tensor source = torch::stable::contiguous(x), weights = torch::stable::contiguous(weight);
  const Tensor biases = torch::stable::contiguous(bias);
  Tensor result = torch::stable::new_empty(source, {x.size(0), weight.size(0)});
  const mp::Dense layer{floating_dtype(op, "x", x), source.data_ptr(), weights.data_ptr(), biases.data_ptr(),
                        result.data_ptr(),          x.size(0),         x.size(1),          weight.size(0)};
  torch::stable::parallel_for(0, layer.outputs, rows_per_thread(layer.features * 4),
                              [&](int64_t begin, int64_t end) { mp::kernels().dense(layer, begin, end); });
  return result;
}

Tensor ordered_linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const char* op = "ordered_linear";
  require(x.dim() == 2 && weight.dim() == 2 && weight.size(1) == x.size(1) && bias.numel() == weight.size(0), op,
          ": x, weight and bias must be [rows, features], [outputs, features] and [outputs]; got ", shape_of(x), ", ",
          shape_of(weight), " and ", shape_of(bias));
  require(weight.scalar_type() == x.scalar_type() && bias.scalar_type() == x.scalar_type(), op,
          ": x, weight and bias must have the same dtype");
  return in_order(op, x, weight, bias);
}

// A linear layer of a head; few rows take torch longer to begin than to multiply.
Tensor linear_of_head(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  constexpr int64_t kFew = 4;
  if (x.size(0) <= kFew && x.scalar_type() == ScalarType::Float) return in_order(op, x, weight, bias);
  return mp::call_torch("aten::linear", x, weight, std::optional<Tensor>(bias));
}

std::tuple<Tensor, Tensor, Tensor> exit_head(const Tensor& features, const Tensor& dense_weight,
                                             const Tensor& dense_bias, const Tensor& weight, const Tensor& bias,
                                             std::optional<Tensor> thresholds, double threshold, bool multi_label) {
  const char* op = "exit_head";
  require(features.dim() == 2 && dense_weight.dim() == 2 && weight.dim() == 2 &&
              dense_weight.size(1) == features.size(1) && weight.size(1) == dense_weight.size(0) &&
              dense_bias.numel() == dense_weight.size(0) && bias.numel() == weight.size(0),
          op,
          ": features, dense_weight, dense_bias, weight and bias must be [batch, features], [hidden, features], "
          "[hidden], [labels, hidden] and [labels]; got ",
          shape_of(features), ", ", shape_of(dense_weight), ", ", shape_of(dense_bias), ", ", shape_of(weight), " and ",
          shape_of(bias));
  for (const Tensor* x : {&dense_weight, &dense_bias, &weight, &bias})
    require(x->scalar_type() == features.scalar_type(), op, ": features, weights and biases must have the same dtype");
  const int64_t batch = features.size(0);
  require(!thresholds || thresholds->numel() == batch, op, ": thresholds must be [batch]");
  const Tensor hidden = mp::call_torch("aten::tanh", linear_of_head(op, features, dense_weight, dense_bias));
  const Tensor logits = linear_of_head(op, hidden, weight, bias);
  const Tensor uncertainty = multi_label ? label_entropy(logits) : normalized_entropy(logits);
  Tensor stays = torch::stable::new_empty(uncertainty, {batch}, ScalarType::Bool);
  const float* u = uncertainty.const_data_ptr<float>();
  bool* out = stays.mutable_data_ptr<bool>();
  // As torch compares: one threshold in the type of the uncertainty, the samples' own in the wider of both types.
  const double common = static_cast<float>(threshold);
  const Tensor own = thresholds ? torch::stable::contiguous(torch::stable::to(*thresholds, ScalarType::Double)) : stays;
  const double* limits = thresholds ? own.const_data_ptr<double>() : nullptr;
  for (int64_t b = 0; b < batch; ++b) out[b] = !(static_cast<double>(u[b]) <= (limits ? limits[b] : common));
  return {logits, uncertainty, stays};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("ragged_attention", TORCH_BOX(&ragged_attention));
  m.impl("ragged_attention_backward", TORCH_BOX(&ragged_attention_backward));
  m.impl("mean_over_heads", TORCH_BOX(&mean_over_heads));
  m.impl("prune_tokens", TORCH_BOX(&prune_tokens));
  m.impl("top_k_tokens", TORCH_BOX(&top_k_tokens));
  m.impl("select_samples", TORCH_BOX(&select_samples));
  m.impl("ragged_gather", TORCH_BOX(&ragged_gather));
  m.impl("ragged_mean", TORCH_BOX(&ragged_mean));
  m.impl("pair_features", TORCH_BOX(&pair_features));
  m.impl("add_layer_norm", TORCH_BOX(&add_layer_norm));
  m.impl("bias_gelu", TORCH_BOX(&bias_gelu));
  m.impl("gelu_gate", TORCH_BOX(&gelu_gate));
  m.impl("rotary_embedding", TORCH_BOX(&rotary_embedding));
  m.impl("normalized_entropy", TORCH_BOX(&normalized_entropy));
  m.impl("label_entropy", TORCH_BOX(&label_entropy));
  m.impl("ordered_linear", TORCH_BOX(&ordered_linear));
  m.impl("exit_head", TORCH_BOX(&exit_head));
}

// For mp_kernels/extension.py: name of build i of those that this processor can run, best first (null after the last),
// and of the build in use.
extern "C" __attribute__((visibility("default"))) const char* mp_runnable_isa(int i) {
  const mp::Kernels* const* table = mp::runnable_kernels();
  for (int n = 0; n < i; ++n)
    if (!table[n]) return nullptr;
  return table[i] ? table[i]->name : nullptr;
}
extern "C" __attribute__((visibility("default"))) const char* mp_chosen_isa() {
  return mp::kernels().name;
}
