// Exact products of int8 matrices in the processor's tiles of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace mp::MP_ISA {

constexpr int64_t kTileHeight = 16, kTileBytes = 64;

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

typedef int32_t Words __attribute__((vector_size(64)));

// Transposes a 16 x 16 matrix of 4-byte elements, whose rows are `stride` bytes apart in `from` and 64 in `to`.
inline void transpose_tile(const int8_t* from, int64_t stride, int8_t* to) {
  Words rows[16], turned[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], from + i * stride, sizeof(Words));
  // In round after round, rows that are 1, 2, 4 and 8 apart exchange the elements that lie as far apart.
  for (int i = 0; i < 16; i += 2) {
    turned[i] =
        __builtin_shufflevector(rows[i], rows[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    turned[i + 1] =
        __builtin_shufflevector(rows[i], rows[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < 16; ++i) {
    if (i & 2) continue;
    const Words a = turned[i], b = turned[i + 2];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    rows[i + 2] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  for (int i = 0; i < 16; ++i) {
    if (i & 4) continue;
    const Words a = rows[i], b = rows[i + 4];
    turned[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    turned[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  for (int i = 0; i < 8; ++i) {
    const Words a = turned[i], b = turned[i + 8];
    const Words upper = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    const Words lower = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    std::memcpy(to + i * kTileBytes, &upper, sizeof upper);
    std::memcpy(to + (i + 8) * kTileBytes, &lower, sizeof lower);
  }
}

inline bool takes_int8_weight(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kTileHeight == 0 && features > 0 && features % kTileBytes == 0;
}

// Panels begin..end of 16 outputs each, in the order in which tiles take them: [panel, features / 64, 16, 16, 4].
inline void pack_int8_weight(const int8_t* weight, int64_t features, int8_t* packed, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t i = 0; i < features; i += kTileBytes)
      transpose_tile(weight + panel * kTileHeight * features + i, features,
                     packed + (panel * features + i) * kTileHeight);
}

// One block of the product, of one or two tiles each way.
template <bool kTwoHigh, bool kTwoWide>
inline void multiply_block(const int8_t* rows, int64_t features, const int8_t* panel, int32_t* out, int64_t outputs) {
  const int8_t *lower = rows + kTileHeight * features, *right = panel + kTileHeight * features;
  _tile_zero(MP_UPPER_LEFT);
  if constexpr (kTwoWide) _tile_zero(MP_UPPER_RIGHT);
  if constexpr (kTwoHigh) _tile_zero(MP_LOWER_LEFT);
  if constexpr (kTwoHigh && kTwoWide) _tile_zero(MP_LOWER_RIGHT);
  for (int64_t i = 0; i < features; i += kTileBytes) {
    _tile_loadd(MP_UPPER_ROWS, rows + i, features);
    _tile_loadd(MP_LEFT_PANEL, panel + i * kTileHeight, kTileBytes);
    _tile_dpbssd(MP_UPPER_LEFT, MP_UPPER_ROWS, MP_LEFT_PANEL);
    if constexpr (kTwoWide) {
      _tile_loadd(MP_RIGHT_PANEL, right + i * kTileHeight, kTileBytes);
      _tile_dpbssd(MP_UPPER_RIGHT, MP_UPPER_ROWS, MP_RIGHT_PANEL);
    }
    if constexpr (kTwoHigh) {
      _tile_loadd(MP_LOWER_ROWS, lower + i, features);
      _tile_dpbssd(MP_LOWER_LEFT, MP_LOWER_ROWS, MP_LEFT_PANEL);
      if constexpr (kTwoWide) _tile_dpbssd(MP_LOWER_RIGHT, MP_LOWER_ROWS, MP_RIGHT_PANEL);
    }
  }
  const int64_t stride = outputs * static_cast<int64_t>(sizeof(int32_t));
  int32_t* below = out + kTileHeight * outputs;
  _tile_stored(MP_UPPER_LEFT, out, stride);
  if constexpr (kTwoWide) _tile_stored(MP_UPPER_RIGHT, out + kTileHeight, stride);
  if constexpr (kTwoHigh) _tile_stored(MP_LOWER_LEFT, below, stride);
  if constexpr (kTwoHigh && kTwoWide) _tile_stored(MP_LOWER_RIGHT, below + kTileHeight, stride);
}

// `blocks` blocks of rows, one below the other, by all panels.
template <bool kTwoHigh>
inline void multiply_blocks(const int8_t* rows, int64_t blocks, int64_t features, const int8_t* packed, int64_t outputs,
                            int32_t* out) {
  constexpr int64_t kHeight = kTwoHigh ? 2 * kTileHeight : kTileHeight;
  for (int64_t output = 0; output < outputs; output += 2 * kTileHeight)
    for (int64_t block = 0; block < blocks; ++block) {
      const int8_t *from = rows + block * kHeight * features, *panel = packed + output * features;
      int32_t* to = out + block * kHeight * outputs + output;
      if (output + kTileHeight < outputs)
        multiply_block<kTwoHigh, true>(from, features, panel, to, outputs);
      else
        multiply_block<kTwoHigh, false>(from, features, panel, to, outputs);
    }
}

// out [count, outputs] = rows [count, features] times the transpose of a packed weight.
inline void multiply_int8(const int8_t* rows, int64_t count, int64_t features, const int8_t* packed, int64_t outputs,
                          int32_t* out) {
  constexpr int64_t kHeight = 2 * kTileHeight;
  const int64_t whole = count / kHeight * kHeight, left = count - whole;
  if (whole > 0) {
    const TileShapes shapes(kTileHeight, kTileHeight);
    multiply_blocks<true>(rows, whole / kHeight, features, packed, outputs, out);
  }
  rows += whole * features, out += whole * outputs;
  if (left > kTileHeight) {
    const TileShapes shapes(kTileHeight, left - kTileHeight);
    multiply_blocks<true>(rows, 1, features, packed, outputs, out);
  } else if (left > 0) {
    const TileShapes shapes(left, 0);
    multiply_blocks<false>(rows, 1, features, packed, outputs, out);
  }
}

}  // namespace mp::MP_ISA
