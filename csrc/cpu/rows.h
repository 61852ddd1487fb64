// Token-wise steps between the matrix products, each in one pass over memory: add + LayerNorm, bias + GELU, GeGLU,
// rotary positions, means, features of pairs.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "load.h"
#include "vec.h"

namespace mp::MP_ISA {

// Normalises one row whose vectors are added(i, lanes), and stores it as row `row` of n.out.
template <typename T, typename Added>
inline void layer_norm_row(const LayerNorm& n, int64_t row, const Added& added) {
  const T *weight = static_cast<const T*>(n.weight), *bias = static_cast<const T*>(n.bias);
  const int64_t width = n.width;
  constexpr int64_t kBuffer = 4096;  // rows up to this width are added once and kept, wider ones again in each pass
  alignas(64) float kept[kBuffer];
  T* out = static_cast<T*>(n.out) + row * width;
  const bool keep = width + kWidth <= kBuffer;
  Vec sum = {};
  for_vectors(width, [&](int64_t i, auto lanes) {
    const Vec v = added(i, lanes);
    if (keep) store(kept + i, v);
    sum += v;
  });
  const float mean = horizontal_sum(sum) / static_cast<float>(width);
  const auto centred = [&](int64_t i, auto lanes) { return (keep ? load(kept + i) : added(i, lanes)) - mean; };
  Vec squares = {};
  float last_squares = 0.0f;
  for_vectors(width, [&](int64_t i, auto lanes) {
    const Vec v = centred(i, lanes);
    if (lanes == kWidth)
      squares += v * v;
    else
      for (int64_t lane = 0; lane < lanes; ++lane) last_squares += v[lane] * v[lane];
  });
  const float square_sum = horizontal_sum(squares) + last_squares;
  const float inverse = 1.0f / std::sqrt(square_sum / static_cast<float>(width) + n.eps);
  for_vectors(width, [&](int64_t i, auto lanes) {
    const Vec normal = centred(i, lanes) * inverse;
    store_some(out + i, normal * load_some(weight + i, lanes) + load_some(bias + i, lanes), lanes);
  });
}

template <typename T>
inline void add_layer_norm_rows(const LayerNorm& n, int64_t begin, int64_t end) {
  const int64_t width = n.width;
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(n.x) + (n.x_index ? n.x_index[row] : row) * width;
    const T* residual = static_cast<const T*>(n.residual) + (n.index ? n.index[row] : row) * width;
    layer_norm_row<T>(n, row,
                      [&](int64_t i, auto lanes) { return load_some(x + i, lanes) + load_some(residual + i, lanes); });
  }
}

MP_INLINE Vec gelu(Vec x) {
  return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f));
}

// GELU within 1e-5, for results of a half type, at half the cost: max(x, 0) - |x| P(X > |x|) for a normal X, by a
// minimax polynomial on [0, 4.5].
MP_INLINE Vec rough_gelu(Vec x) {
  constexpr float kEnd = 4.5f;
  const Vec distance = min(max(x, -x), broadcast(kEnd)), t = distance * (2 / kEnd) - 1.0f;
  Vec p = broadcast(4.001857713e-03f);
  p = p * t - 2.372211963e-02f;
  p = p * t + 2.266718633e-02f;
  p = p * t + 5.763927475e-02f;
  p = p * t - 1.255895346e-01f;
  p = p * t + 3.291878477e-02f;
  p = p * t + 1.559337229e-01f;
  p = p * t - 2.456043363e-01f;
  p = p * t + 1.809206307e-01f;
  p = p * t - 7.138571143e-02f;
  p = p * t + 1.222204138e-02f;
  return max(broadcast(0.0f), x) - distance * p;  // max gives its second where that is not a number
}

template <typename T>
inline void bias_gelu_rows(const T* x, const T* bias, T* out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    for_vectors(width, [&](int64_t i, auto lanes) {
      Vec v = load_some(x + row * width + i, lanes);
      if (bias) v += load_some(bias + i, lanes);
      store_some(out + row * width + i, gelu(v), lanes);
    });
}

template <typename T>
inline void gelu_gate_rows(const T* x, T* out, int64_t width, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T *gated = x + row * 2 * width, *gate = gated + width;
    for_vectors(width, [&](int64_t i, auto lanes) {
      store_some(out + row * width + i, gelu(load_some(gated + i, lanes)) * load_some(gate + i, lanes), lanes);
    });
  }
}

template <typename T>
inline void rotate_rows(const Rotary& r, int64_t begin, int64_t end) {
  const int64_t half = r.head_dim / 2;
  for (int64_t row = begin; row < end; ++row) {
    const float *cos = r.cos + r.positions[row] * half, *sin = r.sin + r.positions[row] * half;
    for (int64_t head = 0; head < r.heads; ++head) {
      const T* x = static_cast<const T*>(r.x.data) + row * r.x.token_stride + head * r.x.head_stride;
      T* out = static_cast<T*>(r.out) + (row * r.heads + head) * r.head_dim;
      for (int64_t i = 0; i < half; i += kWidth) {
        const int64_t lanes = half - i;
        const Vec first = load_some(x + i, lanes), second = load_some(x + half + i, lanes);
        const Vec c = load_some(cos + i, lanes), s = load_some(sin + i, lanes);
        store_some(out + i, first * c - second * s, lanes);
        store_some(out + half + i, second * c + first * s, lanes);
      }
    }
  }
}

template <typename T>
inline void mean_of_rows(const T* x, T* out, int64_t width, int64_t begin, int64_t end) {
  const float factor = 1.0f / static_cast<float>(std::max<int64_t>(end - begin, 1));
  for (int64_t i = 0; i < width; i += kWidth) {
    Vec sum = {};
    for (int64_t row = begin; row < end; ++row) sum += load_some(x + row * width + i, width - i);
    store_some(out + i, sum * factor, width - i);
  }
}

template <typename T>
inline void features_of_pair(const Pair& p, T* out) {
  const T *first = static_cast<const T*>(p.first), *x = static_cast<const T*>(p.x);
  const auto factor = [](int64_t rows) { return 1.0f / static_cast<float>(std::max<int64_t>(rows, 1)); };
  const int64_t width = p.width;
  for (int64_t i = 0; i < width; i += kWidth) {
    const int64_t lanes = width - i;
    Vec a = {}, b = {};
    for (int64_t row = p.begin; row < p.middle; ++row) a += load_some(x + row * width + i, lanes);
    for (int64_t row = p.middle; row < p.end; ++row) b += load_some(x + row * width + i, lanes);
    store_some(out + i, load_some(first + i, lanes), lanes);
    store_some(out + width + i, (a + b) * factor(p.end - p.begin), lanes);
    a = a * factor(p.middle - p.begin);
    b = b * factor(p.end - p.middle);
    store_some(out + 2 * width + i, max(a - b, b - a), lanes);
    store_some(out + 3 * width + i, a * b, lanes);
  }
}

}  // namespace mp::MP_ISA
