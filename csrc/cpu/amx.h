// Products of matrices in the processor's tiles of 16 rows of 64 bytes: blocks of int8 or bfloat16, and whole products
// of int8, which are exact.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "blocks.h"

namespace mp::MP_ISA {

// The tiles by their numbers, which must be literals: a block of up to 32 rows and 32 outputs, and its factors.
#define MP_UPPER_LEFT 0
#define MP_UPPER_RIGHT 1
#define MP_LOWER_LEFT 2
#define MP_LOWER_RIGHT 3
#define MP_UPPER_ROWS 4
#define MP_LOWER_ROWS 5
#define MP_LEFT_PANEL 6
#define MP_RIGHT_PANEL 7

// The shapes of the tiles, of which the upper ones have `upper` rows and the lower ones `lower`, as long as this object
// lives; then the shapes that somebody else's product left.
class TileShapes {
 public:
  TileShapes(int64_t upper, int64_t lower) {
    _tile_storeconfig(&before_);
    Config mine = {};
    mine.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
      const bool below = tile == MP_LOWER_LEFT || tile == MP_LOWER_RIGHT || tile == MP_LOWER_ROWS;
      const bool panel = tile == MP_LEFT_PANEL || tile == MP_RIGHT_PANEL;
      mine.rows[tile] = static_cast<uint8_t>(panel ? kTileHeight : below ? std::max<int64_t>(lower, 1) : upper);
      mine.bytes[tile] = kTileBytes;
    }
    written();
    _tile_loadconfig(&mine);
  }
  ~TileShapes() {
    written();
    if (before_.palette)
      _tile_loadconfig(&before_);
    else
      _tile_release();
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  // The compiler knows of no more than the first bytes that the instructions read and write.
  static void written() { asm volatile("" ::: "memory"); }

  Config before_;
};

// Tiles for whole blocks.
struct WholeTiles : TileShapes {
  WholeTiles() : TileShapes(kTileHeight, kTileHeight) {}
};

#define MP_MULTIPLY_TILES(T, sums, rows, panel) \
  do {                                          \
    if constexpr (sizeof(T) == 1)               \
      _tile_dpbssd(sums, rows, panel);          \
    else                                        \
      _tile_dpbf16ps(sums, rows, panel);        \
  } while (false)

// One block of a product, of one or two tiles each way, whose sums are added up in the order of the features.
// `meanwhile`, work for the vector units while the tiles multiply, and `ahead` are called at each step.
template <typename T, bool kTwoHigh, bool kTwoWide, typename Meanwhile = Nothing, typename Ahead = Nothing>
inline void multiply_block(const Block<T>& b, Meanwhile&& meanwhile = {}, Ahead&& ahead = {}) {
  constexpr int64_t kBytes = sizeof(T), kStep = Tiles<T>::kElements;
  const T *lower = b.rows + kTileHeight * b.row_stride, *right = b.panel + b.panel_stride;
  auto* below = b.out + kTileHeight * b.out_stride;
  const int64_t stride = b.row_stride * kBytes, out_stride = b.out_stride * 4;
  if (b.more) {
    _tile_loadd(MP_UPPER_LEFT, b.out, out_stride);
    if constexpr (kTwoWide) _tile_loadd(MP_UPPER_RIGHT, b.out + kTileHeight, out_stride);
    if constexpr (kTwoHigh) _tile_loadd(MP_LOWER_LEFT, below, out_stride);
    if constexpr (kTwoHigh && kTwoWide) _tile_loadd(MP_LOWER_RIGHT, below + kTileHeight, out_stride);
  } else {
    _tile_zero(MP_UPPER_LEFT);
    if constexpr (kTwoWide) _tile_zero(MP_UPPER_RIGHT);
    if constexpr (kTwoHigh) _tile_zero(MP_LOWER_LEFT);
    if constexpr (kTwoHigh && kTwoWide) _tile_zero(MP_LOWER_RIGHT);
  }
  for (int64_t i = 0; i < b.features; i += kStep) {
    _tile_loadd(MP_UPPER_ROWS, b.rows + i, stride);
    _tile_loadd(MP_LEFT_PANEL, b.panel + i * kTileHeight, kTileBytes);
    MP_MULTIPLY_TILES(T, MP_UPPER_LEFT, MP_UPPER_ROWS, MP_LEFT_PANEL);
    if constexpr (kTwoWide) {
      _tile_loadd(MP_RIGHT_PANEL, right + i * kTileHeight, kTileBytes);
      MP_MULTIPLY_TILES(T, MP_UPPER_RIGHT, MP_UPPER_ROWS, MP_RIGHT_PANEL);
    }
    if constexpr (kTwoHigh) {
      _tile_loadd(MP_LOWER_ROWS, lower + i, stride);
      MP_MULTIPLY_TILES(T, MP_LOWER_LEFT, MP_LOWER_ROWS, MP_LEFT_PANEL);
      if constexpr (kTwoWide) MP_MULTIPLY_TILES(T, MP_LOWER_RIGHT, MP_LOWER_ROWS, MP_RIGHT_PANEL);
    }
    meanwhile();
    ahead();
  }
  _tile_stored(MP_UPPER_LEFT, b.out, out_stride);
  if constexpr (kTwoWide) _tile_stored(MP_UPPER_RIGHT, b.out + kTileHeight, out_stride);
  if constexpr (kTwoHigh) _tile_stored(MP_LOWER_LEFT, below, out_stride);
  if constexpr (kTwoHigh && kTwoWide) _tile_stored(MP_LOWER_RIGHT, below + kTileHeight, out_stride);
}

// `blocks` blocks of rows, one below the other, by all panels.
template <bool kTwoHigh>
inline void multiply_blocks(const int8_t* rows, int64_t blocks, int64_t features, const int8_t* packed, int64_t outputs,
                            int32_t* out, int64_t out_stride) {
  constexpr int64_t kHeight = kTwoHigh ? 2 * kTileHeight : kTileHeight;
  for (int64_t output = 0; output < outputs; output += 2 * kTileHeight)
    for (int64_t block = 0; block < blocks; ++block) {
      const Block<int8_t> factors{rows + block * kHeight * features,
                                  features,
                                  packed + output * features,
                                  kTileHeight * features,
                                  features,
                                  out + block * kHeight * out_stride + output,
                                  out_stride};
      if (output + kTileHeight < outputs)
        multiply_block<int8_t, kTwoHigh, true>(factors);
      else
        multiply_block<int8_t, kTwoHigh, false>(factors);
    }
}

inline size_t int8_scratch(int64_t /*count*/, int64_t /*features*/) {
  return 0;
}

// out [count, outputs] = rows [count, features] times the transpose of a packed weight.
inline void multiply_int8(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                          int32_t* out, int64_t stride, float* /*scratch*/) {
  constexpr int64_t kHeight = 2 * kTileHeight;
  const int64_t whole = count / kHeight * kHeight, left = count - whole;
  if (whole > 0) {
    const TileShapes shapes(kTileHeight, kTileHeight);
    multiply_blocks<true>(rows, whole / kHeight, features, packed, outputs, out, stride);
  }
  rows += whole * features, out += whole * stride;
  if (left > kTileHeight) {
    const TileShapes shapes(kTileHeight, left - kTileHeight);
    multiply_blocks<true>(rows, 1, features, packed, outputs, out, stride);
  } else if (left > 0) {
    const TileShapes shapes(left, 0);
    multiply_blocks<false>(rows, 1, features, packed, outputs, out, stride);
  }
}

}  // namespace mp::MP_ISA
