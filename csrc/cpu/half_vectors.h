// Blocks of products of bfloat16 in vectors, which add up two products in a sum of float32 (AVX-512 BF16).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "blocks.h"

namespace mp::MP_ISA {

// Vectors need nothing to be prepared.
struct WholeTiles {
  WholeTiles() {}
};

// Vectors of 16, 8 and 4 sums.
struct Sums16 {
  using Vector = __m512;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  static Vector add(Vector sums, const void* weights, int32_t pair) {
    return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_loadu_si512(weights), (__m512bh)_mm512_set1_epi32(pair));
  }
};
struct Sums8 {
  using Vector = __m256;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  static Vector add(Vector sums, const void* weights, int32_t pair) {
    const __m256i halves = _mm256_loadu_si256(static_cast<const __m256i*>(weights));
    return _mm256_dpbf16_ps(sums, (__m256bh)halves, (__m256bh)_mm256_set1_epi32(pair));
  }
};
struct Sums4 {
  using Vector = __m128;
  static Vector load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, Vector v) { _mm_storeu_ps(p, v); }
  static Vector add(Vector sums, const void* weights, int32_t pair) {
    const __m128i halves = _mm_loadu_si128(static_cast<const __m128i*>(weights));
    return _mm_dpbf16_ps(sums, (__m128bh)halves, (__m128bh)_mm_set1_epi32(pair));
  }
};

// kRows rows of a block, from `first` on, by as many columns of one or two panels.
// `ahead` is called once for each tile of features.
template <typename Sums, int kRows, int kPanels, typename Ahead = Nothing>
inline void multiply_rows(const Block<BFloat16>& b, int64_t first, Ahead&& ahead = {}) {
  constexpr int64_t kPair = 2;
  const BFloat16* panel = b.panel;
  float* out = b.out + first * b.out_stride;
  // An address for three rows each, as there are no registers for twelve.
  const BFloat16* three[(kRows + 2) / 3];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r += 3) three[r / 3] = b.rows + (first + r) * b.row_stride;
  typename Sums::Vector sums[kRows][kPanels];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p)
      sums[r][p] = b.more ? Sums::load(out + r * b.out_stride + p * kTileHeight) : typename Sums::Vector{};
  for (int64_t i = 0; i < b.features; i += kPair, panel += kPair * kTileHeight) {
    if (i % Tiles<BFloat16>::kElements == 0) ahead();
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, three[r / 3] + r % 3 * b.row_stride + i, sizeof pair);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) sums[r][p] = Sums::add(sums[r][p], panel + p * b.panel_stride, pair);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) Sums::store(out + r * b.out_stride + p * kTileHeight, sums[r][p]);
}

// All rows of a block, of which there are 16 or 32.
template <typename Sums, bool kTwoHigh, int kPanels, typename Ahead>
inline void multiply_all_rows(const Block<BFloat16>& b, Ahead&& ahead) {
  if constexpr (kTwoHigh) {
    multiply_rows<Sums, 12, kPanels>(b, 0, ahead);
    multiply_rows<Sums, 12, kPanels>(b, 12);
    multiply_rows<Sums, 8, kPanels>(b, 24);
  } else {
    multiply_rows<Sums, 8, kPanels>(b, 0, ahead);
    multiply_rows<Sums, 8, kPanels>(b, 8);
  }
}

// One block of a product, of one or two tiles each way, whose sums are added up in the order of the features.
// `meanwhile` and `ahead` are called once for each tile of features: the first of them, which needs vectors, before.
template <typename T, bool kTwoHigh, bool kTwoWide, typename Meanwhile, typename Ahead>
inline void multiply_block(const Block<T>& b, Meanwhile&& meanwhile, Ahead&& ahead) {
  for (int64_t i = 0; i < b.features; i += Tiles<T>::kElements) meanwhile();
  if (kTwoWide)
    multiply_all_rows<Sums16, kTwoHigh, 2>(b, ahead);
  else if (b.columns > 8)
    multiply_all_rows<Sums16, kTwoHigh, 1>(b, ahead);
  else if (b.columns > 4)
    multiply_all_rows<Sums8, kTwoHigh, 1>(b, ahead);
  else
    multiply_all_rows<Sums4, kTwoHigh, 1>(b, ahead);
}

}  // namespace mp::MP_ISA
