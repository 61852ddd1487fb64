// A vector register of floats, written once for every instruction set: the compiler's vector extension, with
// MP_VECTOR_BYTES set by the build (16: SSE2 or NEON, 32: AVX2, 64: AVX-512).
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

#ifndef MP_ISA
#error "MP_ISA names the namespace of the instruction set this file is compiled for"
#endif

namespace mp::MP_ISA {

constexpr int kWidth = MP_VECTOR_BYTES / sizeof(float);
// For functions that are called for every vector: a call would cost as much as they do.
#define MP_ALWAYS_INLINE __attribute__((always_inline))
#define MP_INLINE MP_ALWAYS_INLINE inline

typedef float Vec __attribute__((vector_size(MP_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(MP_VECTOR_BYTES)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) {
  std::memcpy(p, &v, sizeof v);
}
inline Vec broadcast(float x) {
  return x - Vec{};
}
// The second, where one is not a number. GCC compares and blends unless told the instruction (with a mask of ones, as
// GCC 12 warns of its own intrinsics without).
inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xFFFF, a, b);
#else
  return a > b ? a : b;
#endif
}
inline Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xFFFF, a, b);
#else
  return a < b ? a : b;
#endif
}

// e^x to 2 units in the last place. Below -87.3 (the smallest normal float) the result is exactly 0; NaN stays NaN.
MP_INLINE Vec exp(Vec x) {
  constexpr float kLog2e = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  constexpr float kLowest = -87.33654f, kHighest = 88.37626f;
  const Vec clamped = min(max(x, broadcast(kLowest)), broadcast(kHighest));
  const Vec shifted = clamped * kLog2e + kRoundingShift;
  const Vec n = shifted - kRoundingShift;
  const Vec r = (clamped - n * kLn2High) - n * kLn2Low;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const IntVec exponent = (bits - 0x4B400000 + 127) << 23;  // 0x4B400000: the bits of kRoundingShift
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  const Vec result = x < broadcast(kLowest) ? Vec{} : p * scale;
  return x == x ? result : x;
}

// erf(x) within 5e-7: a rational minimax approximation, odd over even, on [-4, 4], beyond which erf is 1 in float.
MP_INLINE Vec erf(Vec x) {
  const Vec z = min(max(x, broadcast(-4.0f)), broadcast(4.0f)), z2 = z * z;
  Vec p = broadcast(-2.72614225801306e-10f);
  p = p * z2 + 2.77068142495902e-08f;
  p = p * z2 - 2.10102402082508e-06f;
  p = p * z2 - 5.69250639462346e-05f;
  p = p * z2 - 7.34990630326855e-04f;
  p = p * z2 - 2.95459980854025e-03f;
  p = p * z2 - 1.60960333262415e-02f;
  Vec q = broadcast(-1.45660718464996e-05f);
  q = q * z2 - 2.13374055278905e-04f;
  q = q * z2 - 1.68282697438203e-03f;
  q = q * z2 - 7.37332916720468e-03f;
  q = q * z2 - 1.42647390514189e-02f;
  return z * p / q;
}

namespace detail {
template <int kStage, int... kLane>
inline Vec swap_lanes(Vec v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kStage)...);
}
template <int kStage, int... kLane>
inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, kLane...>) {
  const Vec low = __builtin_shufflevector(a, b, ((kLane & kStage) ? kWidth + kLane - kStage : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStage) ? kWidth + kLane : kLane + kStage)...);
  a = low;
}
}  // namespace detail

template <int kStage = kWidth / 2>
inline float horizontal_sum(Vec v) {
  if constexpr (kStage == 0)
    return v[0];
  else
    return horizontal_sum<kStage / 2>(v + detail::swap_lanes<kStage>(v, std::make_integer_sequence<int, kWidth>{}));
}
template <int kStage = kWidth / 2>
inline float horizontal_max(Vec v) {
  if constexpr (kStage == 0)
    return v[0];
  else
    return horizontal_max<kStage / 2>(max(v, detail::swap_lanes<kStage>(v, std::make_integer_sequence<int, kWidth>{})));
}

// Transposes a square of vectors, in log2(kWidth) rounds that exchange blocks.
template <int kStage = 1>
inline void transpose(Vec (&rows)[kWidth]) {
  if constexpr (kStage < kWidth) {
    for (int i = 0; i < kWidth; ++i)
      if (!(i & kStage)) detail::exchange<kStage>(rows[i], rows[i | kStage], std::make_integer_sequence<int, kWidth>{});
    transpose<kStage * 2>(rows);
  }
}

}  // namespace mp::MP_ISA
