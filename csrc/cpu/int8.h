// Steps around products of int8 matrices, each in one pass over memory: rows of floats are quantised with a scale of
// their own, and int32 products become floats again, on their way through the GELU or LayerNorm that comes next.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "rows.h"
#include "vec.h"

namespace mp::MP_ISA {

typedef int8_t Int8Vec __attribute__((vector_size(kWidth)));

// One vector of integers as floats, of which `lanes` elements are left; zeros beyond these.
template <typename Ints, typename Int>
inline Vec load_integers(const Int* p, int64_t lanes) {
  Ints v = {};
  if (lanes >= kWidth)
    std::memcpy(&v, p, sizeof v);
  else
    std::memcpy(&v, p, static_cast<size_t>(lanes) * sizeof(Int));
  return __builtin_convertvector(v, Vec);
}

// The lowest byte of each element.
template <int... kLane>
inline Int8Vec lowest_bytes(Vec v, std::integer_sequence<int, kLane...>) {
#if defined(__AVX512F__)
  IntVec bits;
  std::memcpy(&bits, &v, sizeof bits);
  return __builtin_convertvector(bits, Int8Vec);
#else  // GCC converts one element after the other
  typedef int8_t Bytes __attribute__((vector_size(MP_VECTOR_BYTES)));
  Bytes bytes;
  std::memcpy(&bytes, &v, sizeof bytes);
  return __builtin_shufflevector(bytes, bytes, (4 * kLane)...);
#endif
}

// Stores floats of magnitude up to 127, rounded to nearest, ties to even.
inline void store_rounded(int8_t* p, Vec v, int64_t lanes) {
  constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const Int8Vec rounded = lowest_bytes(v + kRoundingShift, std::make_integer_sequence<int, kWidth>{});
  if (lanes >= kWidth)
    std::memcpy(p, &rounded, sizeof rounded);
  else
    std::memcpy(p, &rounded, static_cast<size_t>(lanes));
}

// Quantises a row whose vectors are values(i, lanes); returns its scale, the largest magnitude over 127.
// A value that is not finite makes the scale NaN.
template <typename Values>
inline float quantize_row(const Values& values, int64_t width, int8_t* out) {
  constexpr int64_t kBuffer = 4096;  // rows up to this width are computed once and kept, wider ones again in each pass
  alignas(64) float kept[kBuffer];
  const bool keep = width + kWidth <= kBuffer;
  Vec magnitudes = {}, poison = {};
  for_vectors(width, [&](int64_t i, auto lanes) MP_ALWAYS_INLINE {
    const Vec v = values(i, lanes);
    if (keep) store(kept + i, v);
    magnitudes = max(magnitudes, max(v, -v));
    poison += v * 0.0f;
  });
  const float largest = horizontal_max(magnitudes) + horizontal_sum(poison);
  const float inverse = largest > 0 ? std::min(127.0f / largest, std::numeric_limits<float>::max()) : 0.0f;
  for_vectors(width, [&](int64_t i, auto lanes) MP_ALWAYS_INLINE {
    store_rounded(out + i, (keep ? load(kept + i) : values(i, lanes)) * inverse, lanes);
  });
  return largest / 127.0f;
}

// Quantises row `row` of `out`, and keeps some of its values as floats.
template <typename Values>
inline void quantize_and_keep(const Values& values, int64_t width, Int8Rows out, int64_t row) {
  int8_t* rounded = out.rows + row * width;
  if (!out.kept_columns) {
    out.scales[row] = quantize_row(values, width, rounded);
    return;
  }
  const auto others = [&](int64_t i, auto lanes) { return values(i, lanes) * load_some(out.others + i, lanes); };
  out.scales[row] = quantize_row(others, width, rounded);
  for (int64_t k = 0; k < out.kept_columns; ++k) {
    const int64_t lane = out.columns[k] % kWidth;
    const int64_t first = out.columns[k] - lane;
    out.kept[row * out.kept_columns + k] = values(first, width - first)[lane];
  }
}

inline void quantize_float_rows(const float* x, const int64_t* index, int64_t width, Int8Rows out, int64_t begin,
                                int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x + (index ? index[row] : row) * width;
    quantize_and_keep([&](int64_t i, auto lanes) { return load_some(from + i, lanes); }, width, out, row);
  }
}

inline void dequantize_int8_rows(Int8Rows from, const int64_t* index, int64_t width, float* out, int64_t begin,
                                 int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t source = index ? index[row] : row;
    const int8_t* values = from.rows + source * width;
    for_vectors(width, [&](int64_t i, auto lanes) {
      store_some(out + row * width + i, load_integers<Int8Vec>(values + i, lanes) * from.scales[source], lanes);
    });
  }
}

// The vectors of one row of a product, as floats.
struct ProductRow {
  const Int8Product& p;
  const int32_t* product;
  const float* kept;
  float scale;
  ProductRow(const Int8Product& p, int64_t row)
      : p(p),
        product(p.product + (row - p.first) * p.width),
        kept(p.kept + row * p.kept_columns),
        scale(p.row_scales[row]) {}
  template <typename Lanes>
  MP_INLINE Vec operator()(int64_t i, Lanes lanes) const {
    Vec v = load_integers<IntVec>(product + i, lanes) * (load_some(p.column_scales + i, lanes) * scale);
    if (p.bias) v += load_some(p.bias + i, lanes);
    if (!p.kept_columns) return v;
    const float* weight = p.kept_weight + i;
    int64_t k = 0;
    for (; k + 4 <= p.kept_columns; k += 4, weight += 4 * p.width) {  // two sums, neither of which waits for the other
      const Vec more = load_some(weight, lanes) * kept[k] + load_some(weight + p.width, lanes) * kept[k + 1];
      v += load_some(weight + 2 * p.width, lanes) * kept[k + 2] + load_some(weight + 3 * p.width, lanes) * kept[k + 3];
      v += more;
    }
    for (; k < p.kept_columns; ++k, weight += p.width) v += load_some(weight, lanes) * kept[k];
    return v;
  }
};

inline void dequantize_product(const Int8Product& p, float* out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const ProductRow values(p, row);
    for_vectors(p.width, [&](int64_t i, auto lanes) { store_some(out + row * p.width + i, values(i, lanes), lanes); });
  }
}

inline void gelu_of_product(const Int8Product& p, Int8Rows out, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const ProductRow values(p, row);
    quantize_and_keep([&](int64_t i, auto lanes) MP_ALWAYS_INLINE { return gelu(values(i, lanes)); }, p.width, out,
                      row);
  }
}

inline void layer_norm_of_product(const Int8Product& p, const LayerNorm& n, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const ProductRow values(p, row);
    const float* residual = static_cast<const float*>(n.residual) + (n.index ? n.index[row] : row) * n.width;
    layer_norm_row<float>(n, row,
                          [&](int64_t i, auto lanes) { return values(i, lanes) + load_some(residual + i, lanes); });
  }
}

}  // namespace mp::MP_ISA
