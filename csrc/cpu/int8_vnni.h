// Exact products of int8 matrices on processors whose vectors multiply unsigned bytes by signed ones, and add up four
// products in 32 bits (VNNI). 128 is added to the weights, which makes them unsigned, and 128 times the sum of a row
// taken off its products.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "blocks.h"

namespace mp::MP_ISA {

// 24 sums, 2 vectors of panels, a quad, and what makes weights unsigned, of 32 registers.
constexpr int kRowsAtOnce = 12, kPanelsAtOnce = 2;

// Room for a number a row.
inline size_t vnni_scratch(int64_t count, int64_t /*features*/) {
  return static_cast<size_t>(count);
}

// -128 times the sum of a row.
inline int32_t offset_of(const int8_t* row, int64_t features) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < features; i += sizeof(__m512i))
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(row + i));
  int32_t parts[sizeof(__m512i) / sizeof(int32_t)], sum = 0;
  std::memcpy(parts, &sums, sizeof parts);
  for (int32_t part : parts) sum += part;
  return -128 * sum;
}

// kRows rows by kPanels panels, added to the offset of each row.
template <int kRows, int kPanels>
inline void multiply_panels(const int8_t* rows, const int32_t* offsets, int64_t features, const int8_t* panels,
                            int32_t* out, int64_t stride) {
  const __m512i half = _mm512_set1_epi8(-128);
  const int64_t panel = kTileHeight * features;
  // An address for three rows each, as there are no registers for twelve.
  const int8_t* three[(kRows + 2) / 3];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; r += 3) three[r / 3] = rows + r * features;
  __m512i sums[kRows][kPanels];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_set1_epi32(offsets[r]);
  for (int64_t i = 0; i < features; i += kWord, panels += kTileBytes) {
    __m512i weights[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      weights[p] = _mm512_xor_si512(_mm512_loadu_si512(panels + p * panel), half);
      _mm_prefetch(panels + (kPanels + p) * panel, _MM_HINT_T1);  // of the next panels, which come from memory
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      std::memcpy(&quad, three[r / 3] + r % 3 * features + i, sizeof quad);
      const __m512i quads = _mm512_set1_epi32(quad);
      for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[p], quads);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_si512(out + r * stride + p * kTileHeight, sums[r][p]);
}

// All rows by kPanels panels.
template <int kPanels>
inline void multiply_rows(const int8_t* rows, int64_t count, const int32_t* offsets, int64_t features,
                          const int8_t* panels, int32_t* out, int64_t stride) {
  int64_t row = 0;
  const auto multiply = [&](auto height) {
    constexpr int kRows = decltype(height)::value;
    multiply_panels<kRows, kPanels>(rows + row * features, offsets + row, features, panels, out + row * stride, stride);
    row += kRows;
  };
  while (row + kRowsAtOnce <= count) multiply(std::integral_constant<int, kRowsAtOnce>{});
  if (row + kRowsAtOnce / 2 <= count) multiply(std::integral_constant<int, kRowsAtOnce / 2>{});
  switch (count - row) {
    case 1: multiply(std::integral_constant<int, 1>{}); break;
    case 2: multiply(std::integral_constant<int, 2>{}); break;
    case 3: multiply(std::integral_constant<int, 3>{}); break;
    case 4: multiply(std::integral_constant<int, 4>{}); break;
    case 5: multiply(std::integral_constant<int, 5>{}); break;
  }
}

// out [count, outputs] = rows [count, features] times the transpose of a packed weight.
inline void multiply_vnni(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                          int32_t* out, int64_t stride, float* scratch) {
  auto* offsets = reinterpret_cast<int32_t*>(scratch);
  for (int64_t row = 0; row < count; ++row) offsets[row] = offset_of(rows + row * features, features);
  int64_t output = 0;
  for (; output + kPanelsAtOnce * kTileHeight <= outputs; output += kPanelsAtOnce * kTileHeight)
    multiply_rows<kPanelsAtOnce>(rows, count, offsets, features, packed + output * features, out + output, stride);
  if (output < outputs)
    multiply_rows<1>(rows, count, offsets, features, packed + output * features, out + output, stride);
}

}  // namespace mp::MP_ISA
