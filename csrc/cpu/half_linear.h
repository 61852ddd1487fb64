// Linear layers of bfloat16 in blocks, on some rows at a time: sums in float32, which become bfloat16 only after the
// step that comes next. Of the two factors of a product, one must be packed: the weight, once for all rows, or the
// rows, whose sums then come transposed. Both give the same bits.
#pragma once

#include <algorithm>
#include <utility>

#if defined(__AMX_BF16__)
#include "amx.h"
#else
#include "half_vectors.h"
#endif
#include "rows.h"

namespace mp::MP_ISA {

constexpr int64_t kBlockSize = 2 * kTileHeight;  // rows, and outputs, of a block
constexpr int64_t kBlockSums = kBlockSize * kBlockSize;
constexpr int64_t kGrownAtOnce = 384;  // features of a feed-forward's inner layer that are kept at a time

inline int64_t blocks_of(int64_t count) {
  return (count + kBlockSize - 1) / kBlockSize;
}

// The memory that a task needs, laid out in floats from `memory` on.
struct LinearScratch {
  BFloat16 *tail, *panels, *grown, *grown_panels;
  float *block, *sums;
  size_t used = 0;

  LinearScratch(float* memory, int64_t rows, int64_t features, int64_t grown_features, int64_t outputs) {
    const int64_t height = blocks_of(rows) * kBlockSize;
    const auto take = [&](int64_t floats) { return memory + std::exchange(used, used + static_cast<size_t>(floats)); };
    const auto take_halves = [&](int64_t halves) { return reinterpret_cast<BFloat16*>(take(halves / 2)); };
    tail = take_halves(kBlockSize * features);
    panels = take_halves(height * features);
    grown = take_halves(height * grown_features);
    grown_panels = take_halves(height * grown_features);
    block = take(2 * kBlockSums);
    sums = take(blocks_of(rows) * blocks_of(outputs) * kBlockSums);
  }
};

// Rows as a factor of a product, in blocks, the last of which is filled up with zeros.
struct RowBlocks {
  const BFloat16 *rows, *tail, *panels;
  int64_t stride, count, features;

  // panels: memory for the packed rows, or null if the weight is packed.
  RowBlocks(HalfRows x, int64_t count, int64_t features, BFloat16* tail, BFloat16* panels)
      : rows(x.data), tail(tail), panels(panels), stride(x.stride), count(count), features(features) {
    const int64_t whole = count / kBlockSize, left = count % kBlockSize;
    for (int64_t row = 0; left && row < kBlockSize; ++row)
      if (row < left)
        std::copy_n(rows + (whole * kBlockSize + row) * stride, features, tail + row * features);
      else
        std::fill_n(tail + row * features, features, BFloat16{0});
    if (!panels) return;
    pack_rows(rows, stride, features, panels, whole * 2);
    if (left) pack_rows(tail, features, features, panels + whole * kBlockSize * features, 2);
  }
  // Rows that are packed already.
  RowBlocks(const BFloat16* panels, int64_t count, int64_t features)
      : rows(nullptr), tail(nullptr), panels(panels), stride(0), count(count), features(features) {}
  int64_t blocks() const { return blocks_of(count); }
  int64_t rows_in(int64_t block) const { return std::min(kBlockSize, count - block * kBlockSize); }
};

// Calls the next block of outputs' weights into the cache, the share of one block of rows at each step of its product.
class Ahead {
 public:
  Ahead(const HalfLinear& layer, const RowBlocks& x, int64_t block, int64_t output, int64_t first)
      : begin_(block * kBlockSize / x.blocks()), end_((block + 1) * kBlockSize / x.blocks()) {
    constexpr int64_t kBytes = sizeof(BFloat16);
    const int64_t next = output + kBlockSize, width = layer.features;
    if (next + kBlockSize > layer.outputs) end_ = begin_;
    const BFloat16* from = layer.packed ? layer.packed + first * kTileHeight : layer.weight + first;
    next_ = reinterpret_cast<const char*>(from + next * width);
    half_ = kTileHeight * width * kBytes;
    line_ = layer.packed ? kTileBytes : width * kBytes;
    step_ = layer.packed ? kTileHeight * kTileBytes : kTileBytes;
  }
  void operator()() {
    for (int64_t line = begin_; line < end_; ++line)
      _mm_prefetch(next_ + line / kTileHeight * half_ + line % kTileHeight * line_, _MM_HINT_T1);
    next_ += step_;
  }

 private:
  int64_t begin_, end_, half_, line_, step_;  // lines of 64 bytes of a step; bytes from one to the next
  const char* next_;
};

// Sums [32, 32] of a block of rows by a block of outputs from `output` on; x's features are the layer's from `first`
// on.
template <typename Meanwhile = Nothing>
MP_INLINE void multiply(const HalfLinear& layer, const RowBlocks& x, int64_t block, int64_t output, int64_t first,
                        float* sums, bool more, Meanwhile&& meanwhile = {}) {
  Ahead ahead(layer, x, block, output, first);
  const bool two_outputs = output + kTileHeight<layer.outputs, two_rows = x.rows_in(block)> kTileHeight;
  const int64_t width = layer.features, row = block * kBlockSize;
  Block<BFloat16> b{};
  b.features = x.features, b.out = sums, b.out_stride = kBlockSize, b.more = more;
  if (layer.packed) {
    const bool is_tail = x.rows_in(block) < kBlockSize;
    b.rows = is_tail ? x.tail : x.rows + row * x.stride, b.row_stride = is_tail ? x.features : x.stride;
    b.panel = layer.packed + output * width + first * kTileHeight, b.panel_stride = kTileHeight * width;
  } else {
    b.rows = layer.weight + output * width + first, b.row_stride = width;
    b.panel = x.panels + row * x.features, b.panel_stride = kTileHeight * x.features;
    b.columns = x.rows_in(block);
  }
  const bool two_high = layer.packed ? two_rows : two_outputs, two_wide = layer.packed ? two_outputs : two_rows;
  if (two_high && two_wide)
    multiply_block<BFloat16, true, true>(b, meanwhile, ahead);
  else if (two_high)
    multiply_block<BFloat16, true, false>(b, meanwhile, ahead);
  else if (two_wide)
    multiply_block<BFloat16, false, true>(b, meanwhile, ahead);
  else
    multiply_block<BFloat16, false, false>(b, meanwhile, ahead);
}

// Turns sums [outputs, rows] of a block into [rows, outputs].
inline void transpose_block(float* sums) {
  constexpr int64_t kStride = kBlockSize * sizeof(float);
  alignas(kTileBytes) float lower_left[kTileHeight * kTileHeight];
  float *right = sums + kTileHeight, *below = sums + kTileHeight * kBlockSize;
  transpose_tile(sums, kStride, sums, kStride);
  transpose_tile(below + kTileHeight, kStride, below + kTileHeight, kStride);
  transpose_tile(right, kStride, lower_left, kTileBytes);
  transpose_tile(below, kStride, right, kStride);
  for (int64_t row = 0; row < kTileHeight; ++row)
    std::copy_n(lower_left + row * kTileHeight, kTileHeight, below + row * kBlockSize);
}

// The sums of a block on their way to bfloat16, through bias and, with kGelu, GELU: a few rows at each step of the next
// block's product.
template <bool kGelu>
class Rounding {
 public:
  explicit Rounding(int64_t steps) : rows_a_step_((kBlockSize + steps - 1) / steps) {}

  // bias: of the block's outputs, or null; width: 16 or 32 outputs.
  void begin(const float* sums, const BFloat16* bias, BFloat16* out, int64_t out_stride, int64_t rows, int64_t width) {
    sums_ = sums, out_ = out, out_stride_ = out_stride, left_ = rows, width_ = width;
    for (int64_t i = 0; i < width; i += kWidth) biases_[i / kWidth] = bias ? load_as_float(bias + i) : Vec{};
  }
  void operator()() { round(std::min(left_, rows_a_step_)); }
  void finish() { round(left_); }

 private:
  void round(int64_t rows) {
    left_ -= rows;
    for (; rows > 0; --rows, sums_ += kBlockSize, out_ += out_stride_)
      for (int64_t i = 0; i < width_; i += kWidth) {
        const Vec v = load(sums_ + i) + biases_[i / kWidth];
        store_from_float(out_ + i, kGelu ? rough_gelu(v) : v);
      }
  }

  const int64_t rows_a_step_;
  const float* sums_ = nullptr;
  BFloat16* out_ = nullptr;
  int64_t out_stride_ = 0, left_ = 0, width_ = 0;
  Vec biases_[kBlockSize / kWidth];
};

// Outputs begin..end of all rows, after bias and, with kGelu, GELU, into columns 0.. of `out`. All rows of the last
// block are written where `out` has room for them. sums: memory for two blocks.
template <bool kGelu>
inline void linear_blocks(const HalfLinear& layer, const RowBlocks& x, int64_t begin, int64_t end, float* sums,
                          BFloat16* out, int64_t out_stride, bool has_room) {
  Rounding<kGelu> rounding(x.features / Tiles<BFloat16>::kElements);
  float* other = sums + kBlockSums;
  for (int64_t output = begin; output < end; output += kBlockSize)
    for (int64_t block = 0; block < x.blocks(); ++block) {
      multiply(layer, x, block, output, 0, sums, false, rounding);
      rounding.finish();
      if (!layer.packed) transpose_block(sums);
      rounding.begin(sums, layer.bias ? layer.bias + output : nullptr,
                     out + block * kBlockSize * out_stride + output - begin, out_stride,
                     has_room ? kBlockSize : x.rows_in(block), std::min(kBlockSize, end - output));
      std::swap(sums, other);
    }
  rounding.finish();
}

// Adds the product of x and the layer's features from `first` on to sums, a block for each block of outputs and of
// rows.
inline void add_product(const HalfLinear& layer, const RowBlocks& x, int64_t first, float* sums) {
  for (int64_t output = 0; output < layer.outputs; output += kBlockSize)
    for (int64_t block = 0; block < x.blocks(); ++block, sums += kBlockSums)
      multiply(layer, x, block, output, first, sums, first > 0);
}

// LayerNorm of sums + bias + residual, rows begin..end of the result. The sums are of `count` rows from `first` on, in
// blocks of [rows, outputs].
inline void norm_blocks(const HalfLinear& layer, const LayerNorm& n, const float* sums, int64_t first, int64_t count,
                        int64_t begin, int64_t end) {
  const int64_t height = blocks_of(count);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t block = (row - first) / kBlockSize, place = (row - first) % kBlockSize;
    const float* own = sums + block * kBlockSums + place * kBlockSize;
    const BFloat16* residual = static_cast<const BFloat16*>(n.residual) + (n.index ? n.index[row] : row) * n.width;
    layer_norm_row<BFloat16>(n, row, [&](int64_t i, auto) {
      const Vec v = load(own + i / kBlockSize * height * kBlockSums + i % kBlockSize) + load_as_float(residual + i);
      return layer.bias ? v + load_as_float(layer.bias + i) : v;
    });
  }
}

// The same for all these rows, whose blocks are [outputs, rows] where the rows were packed.
inline void norm_sums(const HalfLinear& layer, const LayerNorm& n, float* sums, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(end - begin) * blocks_of(layer.outputs);
  if (!layer.packed)
    for (int64_t block = 0; block < blocks; ++block) transpose_block(sums + block * kBlockSums);
  norm_blocks(layer, n, sums, begin, end - begin, begin, end);
}

inline size_t linear_scratch(int64_t rows, int64_t features, int64_t grown, int64_t outputs) {
  return LinearScratch(nullptr, rows, features, std::min(grown, kGrownAtOnce), outputs).used;
}

inline HalfRows rows_from(HalfRows x, int64_t row) {
  return {x.data + row * x.stride, x.stride};
}

inline void linear_rows(const HalfLinear& layer, HalfRows x, BFloat16* out, int64_t begin, int64_t end, float* memory) {
  const LinearScratch scratch(memory, end - begin, layer.features, 0, 0);
  const WholeTiles tiles;
  const RowBlocks rows(rows_from(x, begin), end - begin, layer.features, scratch.tail,
                       layer.packed ? nullptr : scratch.panels);
  linear_blocks<false>(layer, rows, 0, layer.outputs, scratch.block, out + begin * layer.outputs, layer.outputs, false);
}

inline void linear_norm_rows(const HalfLinear& layer, HalfRows x, const LayerNorm& n, int64_t begin, int64_t end,
                             float* memory) {
  const LinearScratch scratch(memory, end - begin, layer.features, 0, layer.outputs);
  const WholeTiles tiles;
  const RowBlocks rows(rows_from(x, begin), end - begin, layer.features, scratch.tail,
                       layer.packed ? nullptr : scratch.panels);
  add_product(layer, rows, 0, scratch.sums);
  norm_sums(layer, n, scratch.sums, begin, end);
}

// The inner layer is kept in the cache, some of its features at a time.
inline void feed_forward_rows(const HalfLinear& grow, const HalfLinear& shrink, HalfRows x, const LayerNorm& n,
                              int64_t begin, int64_t end, float* memory) {
  const int64_t count = end - begin, at_once = std::min(grow.outputs, kGrownAtOnce);
  const LinearScratch scratch(memory, count, grow.features, at_once, shrink.outputs);
  const WholeTiles tiles;
  const RowBlocks rows(rows_from(x, begin), count, grow.features, scratch.tail, grow.packed ? nullptr : scratch.panels);
  for (int64_t first = 0; first < grow.outputs; first += at_once) {
    const int64_t width = std::min(at_once, grow.outputs - first);
    linear_blocks<true>(grow, rows, first, first + width, scratch.block, scratch.grown, width, true);
    const RowBlocks grown({scratch.grown, width}, rows.blocks() * kBlockSize, width, nullptr,
                          shrink.packed ? nullptr : scratch.grown_panels);
    add_product(shrink, grown, first, scratch.sums);
  }
  norm_sums(shrink, n, scratch.sums, begin, end);
}

// Panels begin..end of rows, those that there are none of filled up with zeros.
inline void pack_half_rows(HalfRows x, int64_t count, int64_t features, BFloat16* panels, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const BFloat16* rows = x.data + panel * kTileHeight * x.stride;
    const int64_t left = std::min(kTileHeight, count - panel * kTileHeight);
    BFloat16* to = panels + panel * kTileHeight * features;
    if (left == kTileHeight) {
      pack_rows(rows, x.stride, features, to, 1);
      continue;
    }
    constexpr int64_t kElements = Tiles<BFloat16>::kElements;
    alignas(kTileBytes) BFloat16 tile[kTileHeight * kElements] = {};
    for (int64_t i = 0; i < features; i += kElements, to += kTileHeight * kElements) {
      for (int64_t row = 0; row < left; ++row)
        std::copy_n(rows + row * x.stride + i, kElements, tile + row * kElements);
      transpose_tile(tile, kTileBytes, to, kTileBytes);
    }
  }
}

// Blocks begin..end of the outputs of all rows.
inline void half_outputs(const HalfLinear& layer, const BFloat16* panels, int64_t count, bool gelu, BFloat16* out,
                         int64_t begin, int64_t end, float* scratch) {
  const RowBlocks rows(panels, count, layer.features);
  const int64_t first = begin * kBlockSize, last = std::min(end * kBlockSize, layer.outputs);
  (gelu ? linear_blocks<true> : linear_blocks<false>)(layer, rows, first, last, scratch, out + first, layer.outputs,
                                                      false);
}

inline int64_t half_sums(int64_t count, int64_t outputs) {
  return blocks_of(count) * blocks_of(outputs) * kBlockSums;
}

// The same as sums in blocks of [rows, outputs].
inline void sum_half_outputs(const HalfLinear& layer, const BFloat16* panels, int64_t count, float* sums, int64_t begin,
                             int64_t end) {
  const RowBlocks rows(panels, count, layer.features);
  sums += begin * rows.blocks() * kBlockSums;
  for (int64_t output = begin * kBlockSize; output < std::min(end * kBlockSize, layer.outputs); output += kBlockSize)
    for (int64_t block = 0; block < rows.blocks(); ++block, sums += kBlockSums) {
      multiply(layer, rows, block, output, 0, sums, false);
      transpose_block(sums);
    }
}

inline void norm_half_sums(const HalfLinear& layer, const LayerNorm& n, const float* sums, int64_t count, int64_t begin,
                           int64_t end) {
  norm_blocks(layer, n, sums, 0, count, begin, end);
}

}  // namespace mp::MP_ISA
