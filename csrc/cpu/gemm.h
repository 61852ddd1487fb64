// Small matrix products on packed floats: C[m, n] (+)= sum_k A[m, k] B[k, n], with B in column panels.
// A tile of kTileRows rows by two vectors is held in registers. Shapes are those of one attention head.
#pragma once

#include "vec.h"

namespace mp::MP_ISA {

constexpr int kPanel = 2 * kWidth;  // columns of a panel
constexpr int kTileRows = 6;        // 12 accumulators, 2 loads and a broadcast fit the 16 registers of AVX2

inline int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

constexpr int64_t kLine = 16;  // floats of a line of the cache

// Has a line of memory fetched, not into the nearest cache, where the tile's own rows are.
inline void fetch_ahead(const float* line) {
  constexpr int kForReading = 0, kSecondCache = 2;
  __builtin_prefetch(line, kForReading, kSecondCache);
}

// Strides count floats.
struct Matrix {
  const float* data;
  int64_t row_stride, column_stride;
};

// kAhead: whether to fetch as many rows of A that come next in memory, where it lies row by row and was not read
// before.
template <int kRows, bool kAhead = false>
inline void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* panel, float* c,
                 int64_t c_row, bool accumulate) {
  Vec sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    sum[r][0] = accumulate ? load(c + r * c_row) : Vec{};
    sum[r][1] = accumulate ? load(c + r * c_row + kWidth) : Vec{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (kAhead && k % kLine == 0)
      for (int r = 0; r < kRows; ++r) fetch_ahead(a + (kRows + r) * a_row);
    const Vec b0 = load(panel), b1 = load(panel + kWidth);
    panel += kPanel;
    for (int r = 0; r < kRows; ++r) {
      const float x = a[r * a_row];
      sum[r][0] += x * b0;
      sum[r][1] += x * b1;
    }
    a += a_column;
  }
  for (int r = 0; r < kRows; ++r) {
    store(c + r * c_row, sum[r][0]);
    store(c + r * c_row + kWidth, sum[r][1]);
  }
}

// panels: [columns / kPanel][panel_depth][kPanel], of which the first depth rows are used. columns must be a multiple
// of kPanel, and rows of C must have room for all of them. kOnce: whether A, row by row, comes from memory now.
template <bool kOnce = false>
inline void multiply(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float* panels, int64_t panel_depth,
                     float* c, int64_t c_row, bool accumulate) {
  for (int64_t column = 0; column < columns; column += kPanel, panels += panel_depth * kPanel) {
    const auto whole_tile = kOnce && column == 0 ? tile<kTileRows, kOnce> : tile<kTileRows>;
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
      whole_tile(depth, a.data + row * a.row_stride, a.row_stride, a.column_stride, panels, c + row * c_row + column,
                 c_row, accumulate);
    const float* tail = a.data + row * a.row_stride;
    float* out = c + row * c_row + column;
    switch (rows - row) {
      case 1: tile<1>(depth, tail, a.row_stride, a.column_stride, panels, out, c_row, accumulate); break;
      case 2: tile<2>(depth, tail, a.row_stride, a.column_stride, panels, out, c_row, accumulate); break;
      case 3: tile<3>(depth, tail, a.row_stride, a.column_stride, panels, out, c_row, accumulate); break;
      case 4: tile<4>(depth, tail, a.row_stride, a.column_stride, panels, out, c_row, accumulate); break;
      case 5: tile<5>(depth, tail, a.row_stride, a.column_stride, panels, out, c_row, accumulate); break;
      default: break;
    }
  }
}

// Packs source [rows, width] as the right factor: panels over its columns, [width / kPanel][rows][kPanel].
inline void pack_panels(const float* source, int64_t row_stride, int64_t rows, int64_t padded_width, float* panels) {
  for (int64_t column = 0; column < padded_width; column += kPanel, panels += rows * kPanel)
    for (int64_t row = 0; row < rows; ++row) {
      const float* from = source + row * row_stride + column;
      store(panels + row * kPanel, load(from));
      store(panels + row * kPanel + kWidth, load(from + kWidth));
    }
}

// Packs the transpose of source [rows, width] as the right factor: panels over its rows, [rows /
// kPanel][width][kPanel]. The caller has padded the rows to a multiple of kPanel and the width to one of kWidth, with
// zeros.
inline void pack_transposed(const float* source, int64_t row_stride, int64_t padded_rows, int64_t padded_width,
                            int64_t width, float* panels) {
  for (int64_t row = 0; row < padded_rows; row += kPanel, panels += width * kPanel)
    for (int half = 0; half < 2; ++half)
      for (int64_t column = 0; column < padded_width; column += kWidth) {
        Vec block[kWidth];
        for (int i = 0; i < kWidth; ++i) block[i] = load(source + (row + half * kWidth + i) * row_stride + column);
        transpose(block);
        for (int i = 0; i < kWidth && column + i < width; ++i)
          store(panels + (column + i) * kPanel + half * kWidth, block[i]);
      }
}

}  // namespace mp::MP_ISA
