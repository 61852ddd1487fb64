// Weights of int8 in panels of 16 outputs, as products of vectors take them: four features of one output after the
// other.
#pragma once

#include <cstdint>
#include <cstring>

#include "vec.h"

namespace mp::MP_ISA {

constexpr int64_t kQuad = 4;          // features that are added up in one 32-bit sum by a step of a product
constexpr int64_t kQuadOutputs = 16;  // outputs of a panel
constexpr int64_t kQuadBytes = kQuad * kQuadOutputs;  // the weights of a step

inline bool takes_quads(int64_t outputs, int64_t features) {
  return outputs > 0 && outputs % kQuadOutputs == 0 && features > 0 && features % (kQuad * kWidth) == 0;
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

}  // namespace mp::MP_ISA
