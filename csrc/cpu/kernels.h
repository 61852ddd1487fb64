// The CPU kernels as plain functions on pointers: their arguments, and the table that holds one build of them. Every
// function does one independent piece of work; ops.cpp spreads the pieces over threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace mp {

// A [total, heads, head_dim] tensor whose last dimension is contiguous. Strides count elements.
struct Heads {
  void* data;
  int64_t token_stride;
  int64_t head_stride;
};

// Where queries and keys stand in their texts, for attention that depends on their distance.
struct Places {
  const int32_t *queries = nullptr, *keys = nullptr;  // [total_q], [total_k]: rising within a sample, from 0 or more
  // What is added to a score, by head and by the distance -reach..reach of key from query, [heads, 2 * reach + 1], and
  // the bucket of each distance, for the gradient; or null.
  const float* bias = nullptr;
  const int32_t* bucket_of = nullptr;
  int64_t reach = 0, buckets = 0;
  int64_t window = -1;  // the largest distance at which a query sees a key; -1: any

  bool matter() const { return bias || window >= 0; }
  int64_t distances() const { return bias ? 2 * reach + 1 : 0; }
};

struct AttentionShape {
  Dtype dtype;
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* cu_seqlens_k;  // [batch + 1]
  int64_t heads, head_dim;
  int64_t total_q, total_k;
  float scale;
  Places places = {};
};

struct AttentionForward {
  AttentionShape shape;
  Heads q, k, v, out;
  float* column_means;  // [heads, total_k], or null if importance is not needed
  float* logsumexp;     // [heads, total_q]
};

// Writes zeros to one head of x in the rows of a sample's queries.
inline void clear_queries(const AttentionShape& shape, const Heads& x, int64_t sample, int64_t head) {
  for (int64_t i = shape.cu_seqlens_q[sample]; i < shape.cu_seqlens_q[sample + 1]; ++i) {
    const int64_t first = i * x.token_stride + head * x.head_stride;
    with_type(shape.dtype, [&](auto t) {
      using T = decltype(t);
      std::fill_n(static_cast<T*>(x.data) + first, shape.head_dim, from_float<T>(0.0f));
    });
  }
}

// Writes zeros to all results of one head of a sample that is skipped or has no keys.
inline void attention_of_absent(const AttentionForward& f, int64_t sample, int64_t head) {
  const AttentionShape& shape = f.shape;
  const int64_t q_begin = shape.cu_seqlens_q[sample], q_end = shape.cu_seqlens_q[sample + 1];
  const int64_t k_begin = shape.cu_seqlens_k[sample], k_end = shape.cu_seqlens_k[sample + 1];
  clear_queries(shape, f.out, sample, head);
  std::fill(f.logsumexp + head * shape.total_q + q_begin, f.logsumexp + head * shape.total_q + q_end, 0.0f);
  if (f.column_means)
    std::fill(f.column_means + head * shape.total_k + k_begin, f.column_means + head * shape.total_k + k_end, 0.0f);
}

// With G_hj = importance_grad[h,j] / queries that see key j: dL/dP[h,i,j] = dO_i . V_j + G_hj.
struct AttentionBackward {
  AttentionShape shape;
  Heads q, k, v, out_grad;
  const float* importance_grad;  // [heads, total_k], or null
  const float* logsumexp;        // [heads, total_q]
  Heads q_grad, k_grad, v_grad;
  float* bias_grad;  // [batch, heads, buckets]: the share of each sample, or null if there is no bias
};

struct LayerNorm {
  Dtype dtype;
  const void* x;           // [any, width]
  const int64_t* x_index;  // [rows]: row of x for each row of out; null: the same row
  const void* residual;    // [any, width]
  const int64_t* index;    // [rows]: row of residual for each row of out; null: the same row
  const void *weight, *bias;
  void* out;  // [rows, width]; may be x if x_index is null
  int64_t width;
  float eps;
};

// Row embeddings by rotation: pairs of elements i and head_dim / 2 + i are turned by the angle of the row's place.
struct Rotary {
  Dtype dtype;
  Heads x;                   // [rows, heads, head_dim]
  const int32_t* positions;  // [rows]
  const float *cos, *sin;    // [places, head_dim / 2]
  void* out;                 // [rows, heads, head_dim]
  int64_t heads, head_dim;
};

// A linear layer: out[row, output] = x[row] . weight[output] + bias[output].
struct Dense {
  Dtype dtype;
  const void* x;       // [rows, features]
  const void* weight;  // [outputs, features]
  const void* bias;    // [outputs], or null
  void* out;           // [rows, outputs]
  int64_t rows, features, outputs;
};

// A linear layer of float32: out[row, output] = x[row] . weight[output] + bias[output].
struct FloatLinear {
  const float* x;  // [rows, features], `stride` elements from one row to the next
  int64_t rows, features, outputs, stride;
  const float* weight;  // [outputs, features]
  const float* bias;    // [outputs], or null
  float* packed;        // the rows in panels, [rows / float_panel, features, float_panel]
  float* out;           // [rows, outputs]
};

// Rows of bfloat16 whose elements lie together, `stride` elements from one to the next.
struct HalfRows {
  const BFloat16* data;
  int64_t stride;
};

// A linear layer of bfloat16.
struct HalfLinear {
  const BFloat16* weight;  // [outputs, features]
  const BFloat16* packed;  // the same in panels; null: the rows that are multiplied are packed instead
  const BFloat16* bias;    // [outputs], or null
  int64_t outputs, features;
};

// Rows of int8 [rows, width], each with a scale: a value is its integer times the scale of its row. The values of some
// columns may be kept as floats instead, and are 0 in the rows.
struct Int8Rows {
  int8_t* rows;
  float* scales;                     // [rows]
  const int64_t* columns = nullptr;  // [kept_columns]
  const float* others = nullptr;     // [width], 0 at the columns that are kept and 1 elsewhere; null where none is
  float* kept = nullptr;             // [rows, kept_columns]
  int64_t kept_columns = 0;
};

// Rows of the product of two int8 matrices, from row `first` on: as a float, an element is its integer x its row's
// scale x its column's scale + bias + the product of the floats that were kept of the rows.
struct Int8Product {
  const int32_t* product;  // [rows - first, width]
  int64_t first;
  const float* row_scales;
  const float *column_scales, *bias;  // [width]; bias may be null
  int64_t width;
  const float* kept = nullptr;         // [rows, kept_columns]
  const float* kept_weight = nullptr;  // [kept_columns, width]
  int64_t kept_columns = 0;
};

// One sample of two parts, rows begin to middle and middle to end of x [total, width]. out [4 * width] gets the row
// `first`, the mean of all rows, |a - b| and a * b, where a and b are the parts' means.
struct Pair {
  Dtype dtype;
  const void *first, *x;
  void* out;
  int64_t width, begin, middle, end;
};

// The kernels as built for one instruction set, which is their name.
struct Kernels {
  const char* name;
  // Attention of one head of one sample. scratch: as many floats as attention_*_scratch says.
  void (*attention_forward)(const AttentionForward&, int64_t sample, int64_t head, float* scratch);
  void (*attention_backward)(const AttentionBackward&, int64_t sample, int64_t head, float* scratch);
  size_t (*attention_forward_scratch)(int64_t keys, int64_t head_dim);
  size_t (*attention_backward_scratch)(int64_t keys, int64_t head_dim, int64_t distances);
  // means[t] = mean over heads of by_head[:, t], for tokens begin..end of [heads, total].
  void (*mean_over_heads)(const float* by_head, int64_t heads, int64_t total, int64_t begin, int64_t end, float* means);
  void (*add_layer_norm)(const LayerNorm&, int64_t begin, int64_t end);
  // out = gelu(x + bias) on rows begin..end of [rows, width]; out may be x; bias may be null.
  void (*bias_gelu)(Dtype, const void* x, const void* bias, void* out, int64_t width, int64_t begin, int64_t end);
  // out = gelu(first half of each row) * second half, on rows begin..end of x [rows, 2 * width].
  void (*gelu_gate)(Dtype, const void* x, void* out, int64_t width, int64_t begin, int64_t end);
  void (*rotary_embedding)(const Rotary&, int64_t begin, int64_t end);
  // out[sample] = mean of rows begin..end of x [total, width].
  void (*mean_rows)(Dtype, const void* x, void* out, int64_t width, int64_t begin, int64_t end);
  void (*pair_features)(const Pair&);
  void (*dense)(const Dense&, int64_t begin, int64_t end);  // outputs begin..end of all rows
  // Linear layers of float32 for up to `float_rows` rows, where they are faster than torch's; 0 in other builds. The
  // rows are packed in panels of float_panel of them, of which panels begin..end are written by one call; outputs are
  // computed in strips of float_strip, begin..end of them by the other. scratch: float_scratch floats.
  int64_t float_rows, float_panel, float_strip;
  size_t float_scratch;
  bool (*takes_float_weight)(int64_t outputs, int64_t features);
  void (*pack_float_rows)(const FloatLinear&, int64_t begin, int64_t end);
  void (*multiply_float_rows)(const FloatLinear&, int64_t begin, int64_t end, float* scratch);
  // Row begin..end of the result each; index: row of the source for each, or null for the same row.
  void (*quantize_rows)(const float* x, const int64_t* index, int64_t width, Int8Rows out, int64_t begin, int64_t end);
  void (*dequantize_rows)(Int8Rows, const int64_t* index, int64_t width, float* out, int64_t begin, int64_t end);
  void (*dequantize)(const Int8Product&, float* out, int64_t begin, int64_t end);
  void (*dequantize_gelu)(const Int8Product&, Int8Rows out, int64_t begin, int64_t end);
  // The product takes the place of the norm's x.
  void (*dequantize_add_layer_norm)(const Int8Product&, const LayerNorm&, int64_t begin, int64_t end);
  // Exact products of int8 matrices; null in builds that have none, which leave them to torch. A weight [outputs,
  // features] is packed into as many bytes, 16 outputs at a time, of which packs begin..end are written here: in each,
  // int8_group features of one output after the other, [features / int8_group, 16, int8_group]. `stride`: elements of
  // `out` from one row to the next. scratch: as many floats as int8_scratch says for that number of rows.
  int64_t int8_group = 0;
  bool (*takes_int8_weight)(int64_t outputs, int64_t features) = nullptr;
  void (*pack_int8_weight)(const int8_t* weight, int64_t features, int8_t* packed, int64_t begin,
                           int64_t end) = nullptr;
  size_t (*int8_scratch)(int64_t count, int64_t features) = nullptr;
  void (*multiply_int8)(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                        int32_t* out, int64_t stride, float* scratch) = nullptr;
  // Linear layers of bfloat16; null in builds that have none. A weight is packed as one of int8 is. scratch: as many
  // floats as linear_scratch says for that number of rows, features of x, features between the two layers, and outputs.
  bool (*takes_half_weight)(int64_t outputs, int64_t features) = nullptr;
  void (*pack_half_weight)(const BFloat16* weight, int64_t features, BFloat16* packed, int64_t begin,
                           int64_t end) = nullptr;
  size_t (*linear_scratch)(int64_t rows, int64_t features, int64_t grown, int64_t outputs) = nullptr;
  void (*linear)(const HalfLinear&, HalfRows x, BFloat16* out, int64_t begin, int64_t end, float* scratch) = nullptr;
  // The product takes the place of the norm's x.
  void (*linear_add_layer_norm)(const HalfLinear&, HalfRows x, const LayerNorm&, int64_t begin, int64_t end,
                                float* scratch) = nullptr;
  // With GELU between the two layers.
  void (*feed_forward)(const HalfLinear& grow, const HalfLinear& shrink, HalfRows x, const LayerNorm&, int64_t begin,
                       int64_t end, float* scratch) = nullptr;
  // The same layers of few rows, whose outputs threads share; null in builds where they do not. Rows are packed in
  // panels of 16, begin..end of them by one call, [panel, features / 2, 16, 2]; outputs are computed in blocks of 32,
  // begin..end of them: with or without GELU, or as sums of float32, for the LayerNorm of rows begin..end. scratch and
  // sums: as many floats as half_outputs_scratch and half_sums say.
  void (*pack_half_rows)(HalfRows x, int64_t count, int64_t features, BFloat16* panels, int64_t begin,
                         int64_t end) = nullptr;
  size_t half_outputs_scratch = 0;
  void (*half_outputs)(const HalfLinear&, const BFloat16* panels, int64_t count, bool gelu, BFloat16* out,
                       int64_t begin, int64_t end, float* scratch) = nullptr;
  int64_t (*half_sums)(int64_t count, int64_t outputs) = nullptr;
  void (*sum_half_outputs)(const HalfLinear&, const BFloat16* panels, int64_t count, float* sums, int64_t begin,
                           int64_t end) = nullptr;
  void (*norm_half_sums)(const HalfLinear&, const LayerNorm&, const float* sums, int64_t count, int64_t begin,
                         int64_t end) = nullptr;
};

// The builds that this library contains and this processor can run, best first; null-terminated.
const Kernels* const* runnable_kernels();
// The build in use: the best one, or the one named by the environment variable MP_KERNELS_ISA.
const Kernels& kernels();

}  // namespace mp
