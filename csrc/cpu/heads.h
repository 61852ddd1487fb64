// A dense layer for few rows, as the heads of exits have: every output is one sum, added up in an order of its own,
// so a row's result depends neither on the other rows nor on the number of threads.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "load.h"
#include "vec.h"

namespace mp::MP_ISA {

// Sums of kRows rows with kOutputs outputs, in registers.
template <int kRows, int kOutputs, typename T>
inline void dense_tile(const Dense& d, const T* x, const T* weight, int64_t row, int64_t output) {
  Vec sums[kRows][kOutputs] = {};
  for (int64_t i = 0; i < d.features; i += kWidth) {
    const int64_t lanes = d.features - i;
    Vec w[kOutputs];
    for (int o = 0; o < kOutputs; ++o) w[o] = load_some(weight + o * d.features + i, lanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec v = load_some(x + r * d.features + i, lanes);
      for (int o = 0; o < kOutputs; ++o) sums[r][o] += v * w[o];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int o = 0; o < kOutputs; ++o) {
      const float bias = d.bias ? to_float(static_cast<const T*>(d.bias)[output + o]) : 0.0f;
      static_cast<T*>(d.out)[(row + r) * d.outputs + output + o] = from_float<T>(horizontal_sum(sums[r][o]) + bias);
    }
}

// Outputs from `output` on of rows row..end, which are few enough to share the caches.
template <int kOutputs, typename T>
inline void dense_rows(const Dense& d, int64_t row, int64_t end, int64_t output) {
  const T* x = static_cast<const T*>(d.x) + row * d.features;
  const T* weight = static_cast<const T*>(d.weight) + output * d.features;
  for (; row + 4 <= end; row += 4, x += 4 * d.features) dense_tile<4, kOutputs>(d, x, weight, row, output);
  switch (end - row) {
    case 1: return dense_tile<1, kOutputs>(d, x, weight, row, output);
    case 2: return dense_tile<2, kOutputs>(d, x, weight, row, output);
    case 3: return dense_tile<3, kOutputs>(d, x, weight, row, output);
    default: return;
  }
}

// Outputs begin..end, so many at a time as registers hold sums: a few weights pass by at once, also for a single row.
template <int kOutputs, typename T>
inline void dense_strip(const Dense& d, int64_t row, int64_t last, int64_t begin, int64_t end) {
  int64_t output = begin;
  for (; output + kOutputs <= end; output += kOutputs) dense_rows<kOutputs, T>(d, row, last, output);
  if constexpr (kOutputs > 1)
    if (output < end) dense_strip<kOutputs / 2, T>(d, row, last, output, end);
}

template <typename T>
inline void dense_outputs(const Dense& d, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 16;  // rows that stay in the caches while the weights pass by
  for (int64_t row = 0; row < d.rows; row += kBlock) {
    const int64_t last = std::min(row + kBlock, d.rows);
    if (last - row == 1)
      dense_strip<8, T>(d, row, last, begin, end);
    else if (last - row == 2)
      dense_strip<4, T>(d, row, last, begin, end);
    else
      dense_strip<2, T>(d, row, last, begin, end);
  }
}

}  // namespace mp::MP_ISA
