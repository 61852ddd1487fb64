// Products of matrices in the processor's tiles of 16 rows of 64 bytes: blocks of int8 or bfloat16, and whole products
// of int8, which are exact.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace mp::MP_ISA {

constexpr int64_t kTileHeight = 16, kTileBytes = 64;
constexpr int64_t kWord = 4;  // bytes of a row that one step of a tile's product adds up

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

// Transposes a 16 x 16 matrix of 4-byte elements, whose rows are so many bytes apart. `to` may be `from`.
inline void transpose_tile(const void* from, int64_t from_stride, void* to, int64_t to_stride) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  Words rows[16], turned[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&rows[i], source + i * from_stride, sizeof(Words));
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
    std::memcpy(target + i * to_stride, &upper, sizeof upper);
    std::memcpy(target + (i + 8) * to_stride, &lower, sizeof lower);
  }
}

// Elements of a type in a row of a tile, and the type that their products are added up in.
template <typename T>
struct Tiles;
template <>
struct Tiles<int8_t> {
  static constexpr int64_t kElements = kTileBytes;
  using Sum = int32_t;
};
template <>
struct Tiles<BFloat16> {
  static constexpr int64_t kElements = kTileBytes / 2;
  using Sum = float;
};

template <typename T>
inline bool takes_weight(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kTileHeight == 0 && features > 0 && features % Tiles<T>::kElements == 0;
}

// Panels of 16 rows each, in the order in which tiles take them as the right factor: [panel, width / kElements, 16, 16,
// kElements / 16]. `stride`: elements from one row to the next.
template <typename T>
inline void pack_rows(const T* rows, int64_t stride, int64_t width, T* packed, int64_t panels) {
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t i = 0; i < width; i += Tiles<T>::kElements)
      transpose_tile(rows + panel * kTileHeight * stride + i, stride * static_cast<int64_t>(sizeof(T)),
                     packed + (panel * width + i) * kTileHeight, kTileBytes);
}

// Panels begin..end of a weight, of 16 outputs each.
template <typename T>
inline void pack_weight(const T* weight, int64_t features, T* packed, int64_t begin, int64_t end) {
  const int64_t first = begin * kTileHeight * features;
  pack_rows(weight + first, features, features, packed + first, end - begin);
}

#define MP_MULTIPLY_TILES(T, sums, rows, panel) \
  do {                                          \
    if constexpr (sizeof(T) == 1)               \
      _tile_dpbssd(sums, rows, panel);          \
    else                                        \
      _tile_dpbf16ps(sums, rows, panel);        \
  } while (false)

// Factors of a block of a product, and where its sums go; strides count elements. The left factor has rows, the right
// one panels.
template <typename T>
struct Block {
  const T* rows;
  int64_t row_stride;
  const T* panel;
  int64_t panel_stride;  // from one panel to the next
  int64_t features;
  typename Tiles<T>::Sum* out;
  int64_t out_stride;
  bool more = false;  // whether to add to the sums that are there
};

// Work for the vector units while the tiles multiply: none.
struct Nothing {
  void operator()() const {}
};

// One block of a product, of one or two tiles each way, whose sums are added up in the order of the features.
// `meanwhile` is called at each step.
template <typename T, bool kTwoHigh, bool kTwoWide, typename Meanwhile = Nothing>
inline void multiply_block(const Block<T>& b, Meanwhile&& meanwhile = {}) {
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
