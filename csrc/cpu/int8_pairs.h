// Exact products of int8 matrices on processors whose vectors multiply pairs of 16-bit integers and add them up in 32
// bits: twice as many multiplications an instruction as of floats. Products of int8 in one instruction add up in 16
// bits, and overflow.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mp::MP_ISA {

constexpr int64_t kPair = 2;
constexpr int64_t kPairOutputs = 16;  // outputs of a panel: two vectors of 32-bit sums
constexpr int kPairRows = 6;  // 12 sums, 2 vectors of the panel, a pair and a product fit the 16 registers of AVX2

inline bool takes_pairs(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kPairOutputs == 0 && features > 0 && features % 16 == 0;
}

inline __m128i load_half(const int8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}

// Panels begin..end of a weight [outputs, features]: [features / 2][outputs of the panel][2].
inline void pack_pairs(const int8_t* weight, int64_t features, int8_t* packed, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t i = 0; i < features; i += 16) {
      // Eight pairs of each output, two outputs a vector. To interleave rows that are four apart, three times, is to
      // transpose rows and pairs.
      const int8_t* from = weight + panel * kPairOutputs * features + i;
      auto* to = reinterpret_cast<__m256i*>(packed + (panel * features + i) * kPairOutputs);
      __m256i rows[8], mixed[8];
      for (int r = 0; r < 8; ++r)
        rows[r] = _mm256_set_m128i(load_half(from + (r + 8) * features), load_half(from + r * features));
      for (int round = 0; round < 3; ++round) {
        for (int r = 0; r < 4; ++r) {
          mixed[2 * r] = _mm256_unpacklo_epi16(rows[r], rows[r + 4]);
          mixed[2 * r + 1] = _mm256_unpackhi_epi16(rows[r], rows[r + 4]);
        }
        for (int r = 0; r < 8; ++r) rows[r] = mixed[r];
      }
      for (int r = 0; r < 8; ++r) _mm256_storeu_si256(to + r, rows[r]);
    }
}

// kRows rows of 16-bit integers by one panel.
template <int kRows>
inline void multiply_panel(const int16_t* rows, int64_t features, const int8_t* panel, int32_t* out, int64_t stride) {
  __m256i sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t i = 0; i < features; i += 2, panel += 2 * kPairOutputs) {
    const __m256i left = _mm256_cvtepi8_epi16(load_half(panel));
    const __m256i right = _mm256_cvtepi8_epi16(load_half(panel + kPairOutputs));
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, rows + r * features + i, sizeof pair);
      const __m256i pairs = _mm256_set1_epi32(pair);
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(pairs, left));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(pairs, right));
    }
  }
  // One by one, since a copy of the array would keep all sums in memory.
  for (int r = 0; r < kRows; ++r)
    for (int half = 0; half < 2; ++half)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * stride) + half, sums[r][half]);
}

// Room for the rows as 16-bit integers, in floats.
inline size_t pairs_scratch(int64_t count, int64_t features) {
  return static_cast<size_t>(count * features / 2);
}

// out [count, outputs] = rows [count, features] times the transpose of a packed weight.
inline void multiply_pairs(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                           int32_t* out, int64_t stride, float* scratch) {
  auto* wide = reinterpret_cast<int16_t*>(scratch);
  for (int64_t i = 0; i < count * features; ++i) wide[i] = rows[i];
  for (int64_t output = 0; output < outputs; output += kPairOutputs) {
    const int8_t* panel = packed + output * features;
    int64_t row = 0;
    const auto multiply = [&](auto height) {
      constexpr int kRows = decltype(height)::value;
      multiply_panel<kRows>(wide + row * features, features, panel, out + row * stride + output, stride);
      row += kRows;
    };
    while (row + kPairRows <= count) multiply(std::integral_constant<int, kPairRows>{});
    switch (count - row) {
      case 1: multiply(std::integral_constant<int, 1>{}); break;
      case 2: multiply(std::integral_constant<int, 2>{}); break;
      case 3: multiply(std::integral_constant<int, 3>{}); break;
      case 4: multiply(std::integral_constant<int, 4>{}); break;
      case 5: multiply(std::integral_constant<int, 5>{}); break;
    }
  }
}

}  // namespace mp::MP_ISA
