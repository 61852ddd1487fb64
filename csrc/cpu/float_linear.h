// A linear layer of float32. A library packs the weight for its product, which takes longer than the product of few
// rows does: here the rows are packed, and the weight is read as it lies, once for every 128 of them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm.h"
#include "kernels.h"

namespace mp::MP_ISA {

// Outputs whose weights stay in the cache while the rows pass by, and features of them at a time.
constexpr int64_t kStrip = (kWidth > 8 ? 8 : 4) * kTileRows, kStripDepth = 768;
static_assert(kStrip % kWidth == 0 && kStrip % kTileRows == 0);
constexpr int64_t kRowBlock = 128;

inline bool takes_float_weight(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kWidth == 0 && features > 0 && features % kWidth == 0;
}

// Panels begin..end of the rows, [features, kPanel] each; rows that there are none of are 0.
inline void pack_float_rows(const FloatLinear& f, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t half = 0; half < kPanel; half += kWidth)
      for (int64_t feature = 0; feature < f.features; feature += kWidth) {
        Vec block[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) {
          const int64_t row = panel * kPanel + half + i;
          block[i] = row < f.rows ? load(f.x + row * f.stride + feature) : Vec{};
        }
        transpose(block);
        float* to = f.packed + (panel * f.features + feature) * kPanel + half;
        for (int64_t i = 0; i < kWidth; ++i) store(to + i * kPanel, block[i]);
      }
}

typedef float HalfVec __attribute__((vector_size(MP_VECTOR_BYTES / 2)));

// kOutputs outputs of some rows of a panel, half or a quarter of it, each in two sums, of even and of odd features: as
// many as a whole panel's tile has. The rows of the weight are no more than that tile's, as they may all compete for
// the same few lines of the cache.
template <typename Rows, int kOutputs>
inline void narrow_tile(int64_t depth, const float* weight, int64_t features, const float* panel, float* sums,
                        int64_t stride, bool accumulate) {
  const auto load_rows = [](const float* p) {
    Rows rows;
    std::memcpy(&rows, p, sizeof rows);
    return rows;
  };
  Rows even[kOutputs], odd[kOutputs];
  for (int o = 0; o < kOutputs; ++o) {
    even[o] = accumulate ? load_rows(sums + o * stride) : Rows{};
    odd[o] = Rows{};
  }
  for (int64_t i = 0; i < depth; i += 2) {
    if (i % kLine == 0)
      for (int o = 0; o < kOutputs; ++o) fetch_ahead(weight + (kOutputs + o) * features + i);
    const Rows first = load_rows(panel + i * kPanel), second = load_rows(panel + (i + 1) * kPanel);
    for (int o = 0; o < kOutputs; ++o) {
      even[o] += weight[o * features + i] * first;
      odd[o] += weight[o * features + i + 1] * second;
    }
  }
  for (int o = 0; o < kOutputs; ++o) {
    const Rows sum = even[o] + odd[o];
    std::memcpy(sums + o * stride, &sum, sizeof sum);
  }
}

// The outputs of a strip, of some rows of a panel; their number is a multiple of 4, as a vector's width is.
template <typename Rows>
inline void multiply_narrow(int64_t outputs, int64_t depth, const float* weight, int64_t features, const float* panel,
                            float* sums, int64_t stride, bool accumulate) {
  static_assert(kWidth % 4 == 0);
  const auto multiply = [&](auto count) {
    constexpr int kOutputs = decltype(count)::value;
    narrow_tile<Rows, kOutputs>(depth, weight, features, panel, sums, stride, accumulate);
    weight += kOutputs * features, sums += kOutputs * stride, outputs -= kOutputs;
  };
  while (outputs >= kTileRows) multiply(std::integral_constant<int, kTileRows>{});
  if (outputs >= 4) multiply(std::integral_constant<int, 4>{});
  if (outputs >= 2) multiply(std::integral_constant<int, 2>{});
}

// One strip of outputs, of a block of rows, whose sums are [outputs, padded rows] at first.
inline void float_rows_block(const FloatLinear& f, int64_t begin, int64_t end, int64_t row, float* sums) {
  const int64_t rows = std::min(kRowBlock, f.rows - row), padded = round_up(rows, kPanel);
  // Whole panels, but for the last rows: half a panel and a quarter of one are together faster than one.
  const int64_t whole = (rows + kWidth / 2 - 1) / kPanel * kPanel;
  const float* panels = f.packed + row * f.features;
  for (int64_t feature = 0; feature < f.features; feature += kStripDepth) {
    const int64_t depth = std::min(kStripDepth, f.features - feature);
    const float *weight = f.weight + begin * f.features + feature, *panel = panels + feature * kPanel;
    multiply<true>(end - begin, whole, depth, {weight, f.features, 1}, panel, f.features, sums, padded, feature > 0);
    const auto multiply_rest = [&](auto vector, int64_t first) {
      multiply_narrow<decltype(vector)>(end - begin, depth, weight, f.features,
                                        panel + first / kPanel * kPanel * f.features + first % kPanel, sums + first,
                                        padded, feature > 0);
    };
    int64_t first = whole;
    if (rows - first > kWidth / 2) multiply_rest(Vec{}, first), first += kWidth;
    if (rows > first) multiply_rest(HalfVec{}, first);
  }
  for (int64_t output = begin; output < end; output += kWidth) {
    const Vec bias = f.bias ? load(f.bias + output) : Vec{};
    for (int64_t first = 0; first < rows; first += kWidth) {
      Vec block[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) block[i] = load(sums + (output - begin + i) * padded + first);
      transpose(block);
      float* out = f.out + (row + first) * f.outputs + output;
      for (int64_t i = 0; i < std::min<int64_t>(kWidth, rows - first); ++i) store(out + i * f.outputs, block[i] + bias);
    }
  }
}

// Strips begin..end of the outputs. scratch: as many floats as float_scratch says.
inline void multiply_float_rows(const FloatLinear& f, int64_t begin, int64_t end, float* scratch) {
  for (int64_t strip = begin * kStrip; strip < std::min(end * kStrip, f.outputs); strip += kStrip)
    for (int64_t row = 0; row < f.rows; row += kRowBlock)
      float_rows_block(f, strip, std::min(strip + kStrip, f.outputs), row, scratch);
}

}  // namespace mp::MP_ISA
