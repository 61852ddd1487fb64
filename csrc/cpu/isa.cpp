// The kernels for one instruction set. This file is compiled once for each, with MP_ISA its name and MP_VECTOR_BYTES
// the width of its vectors.
#include <limits>

#include "attention.h"
#include "float_linear.h"
#include "heads.h"
#include "int8.h"
#include "rows.h"
#if defined(__AVX2__) && !defined(__AVX512F__)
#define MP_AVX2_ALONE
#endif
#if defined(__AMX_INT8__)
#include "amx.h"
#elif defined(__AVX512VNNI__)
#include "int8_vnni.h"
#elif defined(MP_AVX2_ALONE)
#include "int8_quads.h"
#endif
#if defined(__AVX512BF16__)
#include "half_linear.h"
#endif

#define MP_STRINGIZE_(x) #x
#define MP_STRINGIZE(x) MP_STRINGIZE_(x)

namespace mp::MP_ISA {
namespace {

void attention_forward(const AttentionForward& f, int64_t sample, int64_t head, float* scratch) {
  with_type(f.shape.dtype, [&](auto t) { attend<decltype(t)>(f, sample, head, scratch); });
}

void attention_backward(const AttentionBackward& b, int64_t sample, int64_t head, float* scratch) {
  with_type(b.shape.dtype, [&](auto t) { attend_backward<decltype(t)>(b, sample, head, scratch); });
}

size_t attention_forward_scratch(int64_t keys, int64_t head_dim) {
  return ForwardScratch(nullptr, round_up(keys, kPanel), head_dim).used;
}

size_t attention_backward_scratch(int64_t keys, int64_t head_dim, int64_t distances) {
  return BackwardScratch(nullptr, round_up(keys, kPanel), head_dim, distances).used;
}

void mean_over_heads(const float* by_head, int64_t heads, int64_t total, int64_t begin, int64_t end, float* means) {
  std::copy(by_head + begin, by_head + end, means + begin);
  for (int64_t h = 1; h < heads; ++h)
    for (int64_t t = begin; t < end; ++t) means[t] += by_head[h * total + t];
  const float factor = 1.0f / static_cast<float>(heads);
  for (int64_t t = begin; t < end; ++t) means[t] *= factor;
}

void add_layer_norm(const LayerNorm& n, int64_t begin, int64_t end) {
  with_type(n.dtype, [&](auto t) { add_layer_norm_rows<decltype(t)>(n, begin, end); });
}

void bias_gelu(Dtype dtype, const void* x, const void* bias, void* out, int64_t width, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    bias_gelu_rows(static_cast<const T*>(x), static_cast<const T*>(bias), static_cast<T*>(out), width, begin, end);
  });
}

void gelu_gate(Dtype dtype, const void* x, void* out, int64_t width, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    gelu_gate_rows(static_cast<const T*>(x), static_cast<T*>(out), width, begin, end);
  });
}

void rotary_embedding(const Rotary& r, int64_t begin, int64_t end) {
  with_type(r.dtype, [&](auto t) { rotate_rows<decltype(t)>(r, begin, end); });
}

void mean_rows(Dtype dtype, const void* x, void* out, int64_t width, int64_t begin, int64_t end) {
  with_type(dtype, [&](auto t) {
    using T = decltype(t);
    mean_of_rows(static_cast<const T*>(x), static_cast<T*>(out), width, begin, end);
  });
}

void pair_features(const Pair& p) {
  with_type(p.dtype, [&](auto t) { features_of_pair(p, static_cast<decltype(t)*>(p.out)); });
}

void dense(const Dense& d, int64_t begin, int64_t end) {
  with_type(d.dtype, [&](auto t) { dense_outputs<decltype(t)>(d, begin, end); });
}

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    MP_STRINGIZE(MP_ISA),
    attention_forward,
    attention_backward,
    attention_forward_scratch,
    attention_backward_scratch,
    mean_over_heads,
    add_layer_norm,
    bias_gelu,
    gelu_gate,
    rotary_embedding,
    mean_rows,
    pair_features,
    dense,
#if defined(MP_AVX2_ALONE)
    256,
#elif defined(__AVX512VNNI__) && !defined(__AMX_INT8__)
    std::numeric_limits<int64_t>::max(),
#else
    0,
#endif
    kPanel,
    kStrip,
    kStrip * kRowBlock,
    takes_float_weight,
    pack_float_rows,
    multiply_float_rows,
    quantize_float_rows,
    dequantize_int8_rows,
    dequantize_product,
    gelu_of_product,
    layer_norm_of_product,
#if defined(__AMX_INT8__)
    kWord,
    takes_weight<int8_t>,
    pack_weight<int8_t>,
    int8_scratch,
    multiply_int8,
#elif defined(__AVX512VNNI__)
    kWord,
    takes_weight<int8_t>,
    pack_weight<int8_t>,
    vnni_scratch,
    multiply_vnni,
#elif defined(MP_AVX2_ALONE)
    kQuad,
    takes_quads,
    pack_quads,
    quads_scratch,
    multiply_quads,
#endif
#if defined(__AVX512BF16__)
    takes_weight<BFloat16>,
    pack_weight<BFloat16>,
    linear_scratch,
    linear_rows,
    linear_norm_rows,
    feed_forward_rows,
#endif
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    pack_half_rows,
    2 * kBlockSums,
    half_outputs,
    half_sums,
    sum_half_outputs,
    norm_half_sums,
#endif
};

}  // namespace mp::MP_ISA
