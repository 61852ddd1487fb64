// Blocks of products of matrices of int8 or bfloat16: 16 or 32 rows by 16 or 32 outputs, from factors in tiles of 16
// rows of 64 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace mp::MP_ISA {

constexpr int64_t kTileHeight = 16, kTileBytes = 64;
constexpr int64_t kWord = 4;  // bytes of a row that one step of a product adds up

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
  int64_t columns = 2 * kTileHeight;  // that are wanted; more may be written
  bool more = false;                  // whether to add to the sums that are there
};

// Work to be done meanwhile: none.
struct Nothing {
  void operator()() const {}
};

}  // namespace mp::MP_ISA
