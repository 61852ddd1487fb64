// Exact products of int8 matrices on processors whose vectors multiply unsigned bytes by signed ones, and add up pairs
// of products in 16 bits: four times as many multiplications an instruction as of floats. 128 is added to the weights,
// which makes them unsigned, and 128 times the sum of a row taken off its products. Two products fit 16 bits as long as
// the magnitude of their elements' sum is no more than 128. More than that is rare in the rows of a model, which are
// scaled by their largest element: it is taken off the rows, and multiplied apart.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vec.h"

namespace mp::MP_ISA {

constexpr int64_t kQuad = 4;          // features that are added up in one 32-bit sum by a step of a product
constexpr int64_t kQuadOutputs = 16;  // outputs of a panel: two vectors of sums
constexpr int64_t kQuadBytes = kQuad * kQuadOutputs;  // the weights of a step
constexpr int kQuadRows = 5;  // 10 sums, 2 vectors of the panel, a quad, a product, and ones, of AVX2's 16 registers

inline bool takes_quads(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kQuadOutputs == 0 && features > 0 && features % 32 == 0;
}

// Panels begin..end of a weight [outputs, features]: [features / 4][outputs of the panel][4].
inline void pack_quads(const int8_t* weight, int64_t features, int8_t* packed, int64_t begin, int64_t end) {
  for (int64_t output = begin * kQuadOutputs; output < end * kQuadOutputs; output += kWidth)
    for (int64_t i = 0; i < features; i += kWidth * kQuad) {
      Vec block[kWidth];
      for (int64_t o = 0; o < kWidth; ++o) std::memcpy(&block[o], weight + (output + o) * features + i, sizeof(Vec));
      transpose(block);
      int8_t* to = packed + output / kQuadOutputs * kQuadOutputs * features + i * kQuadOutputs;
      to += output % kQuadOutputs * kQuad;
      for (int64_t quad = 0; quad < kWidth; ++quad) std::memcpy(to + quad * kQuadBytes, &block[quad], sizeof(Vec));
    }
}

inline __m256i load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

inline void store_words(int32_t* p, __m256i words) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}

inline __m256i unsigned_weights(const int8_t* p) {
  return _mm256_xor_si256(load_bytes(p), _mm256_set1_epi8(-128));
}

// The sums and the products of four elements each.
inline __m256i add_products(__m256i sums, __m256i weights, __m256i quads) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, quads);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// What was taken off a quad of a row.
struct Excess {
  int32_t row, quad, elements;
};

// Rows with no pair of elements whose sum is above 128 in magnitude, in memory of quads_scratch floats.
struct LimitedRows {
  int8_t* elements;
  int32_t* offsets;      // of the rows as they were: -128 times the sum of each
  Excess *excess, *end;  // row by row

  LimitedRows(const int8_t* rows, int64_t count, int64_t features, float* memory)
      : elements(reinterpret_cast<int8_t*>(memory)),
        offsets(reinterpret_cast<int32_t*>(elements + count * features)),
        excess(reinterpret_cast<Excess*>(offsets + count)),
        end(excess) {
    for (int64_t row = 0; row < count; ++row)
      offsets[row] = -128 * limit(rows + row * features, features, static_cast<int32_t>(row));
  }

 private:
  // Returns the row's sum.
  int32_t limit(const int8_t* row, int64_t features, int32_t index) {
    const __m256i most = _mm256_set1_epi16(128), least = _mm256_set1_epi16(-128), first = _mm256_set1_epi16(0xff);
    __m256i total = _mm256_setzero_si256();
    for (int64_t i = 0; i < features; i += 32) {
      const __m256i v = load_bytes(row + i), pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), v);
      total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      // An element is at least what its pair has too much. So the first one stays in range without all of that.
      const __m256i limited = _mm256_max_epi16(least, _mm256_min_epi16(pairs, most));
      const __m256i above = _mm256_and_si256(_mm256_sub_epi16(pairs, limited), first);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(elements + index * features + i), _mm256_sub_epi8(v, above));
      if (_mm256_testz_si256(above, above)) continue;
      int32_t quads[32 / kQuad];
      std::memcpy(quads, &above, sizeof quads);
      for (int32_t quad = 0; quad < 32 / kQuad; ++quad)
        if (quads[quad]) *end++ = {index, static_cast<int32_t>(i / kQuad) + quad, quads[quad]};
    }
    int32_t sums[8], sum = 0;
    std::memcpy(sums, &total, sizeof sums);
    for (int32_t part : sums) sum += part;
    return sum;
  }
};

// Room for limited rows, with an excess everywhere.
inline size_t quads_scratch(int64_t count, int64_t features) {
  const int64_t quads = features / kQuad;
  return static_cast<size_t>(count) * (quads + 1 + quads * sizeof(Excess) / sizeof(float));
}

// kRows rows by one panel, added to the offset of each row.
template <int kRows>
inline void multiply_panel(const int8_t* rows, const int32_t* offsets, int64_t features, const int8_t* panel,
                           int32_t* out, int64_t stride) {
  __m256i sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_set1_epi32(offsets[r]);
  for (int64_t i = 0; i < features; i += kQuad, panel += kQuadBytes) {
    const __m256i left = unsigned_weights(panel), right = unsigned_weights(panel + kQuadBytes / 2);
    _mm_prefetch(panel + kQuadOutputs * features, _MM_HINT_T0);  // of the next panel, which comes from memory
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      std::memcpy(&quad, rows + r * features + i, sizeof quad);
      const __m256i quads = _mm256_set1_epi32(quad);
      sums[r][0] = add_products(sums[r][0], left, quads);
      sums[r][1] = add_products(sums[r][1], right, quads);
    }
  }
  // One by one, since a copy of the array would keep all sums in memory.
  for (int r = 0; r < kRows; ++r)
    for (int half = 0; half < 2; ++half) store_words(out + r * stride + half * kWidth, sums[r][half]);
}

// The excess of one row by a panel, added to `out`, up to the first excess of another row, which is returned.
inline const Excess* multiply_excess(const Excess* excess, const Excess* end, const int8_t* panel, int32_t* out) {
  const int32_t row = excess->row;
  __m256i left = load_bytes(out), right = load_bytes(out + kWidth);
  for (; excess < end && excess->row == row; ++excess) {
    const __m256i quads = _mm256_set1_epi32(excess->elements);
    const int8_t* weights = panel + excess->quad * kQuadBytes;
    left = add_products(left, unsigned_weights(weights), quads);
    right = add_products(right, unsigned_weights(weights + kQuadBytes / 2), quads);
  }
  store_words(out, left);
  store_words(out + kWidth, right);
  return excess;
}

// out [count, outputs] = rows [count, features] times the transpose of a packed weight.
inline void multiply_quads(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                           int32_t* out, int64_t stride, float* scratch) {
  const LimitedRows limited(rows, count, features, scratch);
  for (int64_t output = 0; output < outputs; output += kQuadOutputs) {
    const int8_t* panel = packed + output * features;
    const Excess* excess = limited.excess;
    int64_t row = 0;
    const auto multiply = [&](auto height) {
      constexpr int kRows = decltype(height)::value;
      multiply_panel<kRows>(limited.elements + row * features, limited.offsets + row, features, panel,
                            out + row * stride + output, stride);
      row += kRows;
      // After the rest, by which the panel was read in order: here it would come from memory a place at a time.
      while (excess < limited.end && excess->row < row)
        excess = multiply_excess(excess, limited.end, panel, out + excess->row * stride + output);
    };
    while (row + kQuadRows <= count) multiply(std::integral_constant<int, kQuadRows>{});
    switch (count - row) {
      case 1: multiply(std::integral_constant<int, 1>{}); break;
      case 2: multiply(std::integral_constant<int, 2>{}); break;
      case 3: multiply(std::integral_constant<int, 3>{}); break;
      case 4: multiply(std::integral_constant<int, 4>{}); break;
    }
  }
}

}  // namespace mp::MP_ISA
