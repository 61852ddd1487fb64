// Vectors of floats from and to memory of any element type.
#pragma once

#if defined(__F16C__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"
#include "vec.h"

namespace mp::MP_ISA {

inline Vec load_as_float(const float* p) {
  return load(p);
}
inline void store_from_float(float* p, Vec v) {
  store(p, v);
}

typedef uint32_t WordVec __attribute__((vector_size(MP_VECTOR_BYTES)));
typedef uint16_t HalfWordVec __attribute__((vector_size(MP_VECTOR_BYTES / 2)));

inline Vec load_as_float(const BFloat16* p) {
  HalfWordVec halves;
  std::memcpy(&halves, p, sizeof halves);
  const WordVec bits = __builtin_convertvector(halves, WordVec) << 16;
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline void store_from_float(BFloat16* p, Vec v) {  // rounds as from_float does, but for what is no normal number
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &halves, sizeof halves);
#else
  WordVec bits;
  std::memcpy(&bits, &v, sizeof bits);
  const WordVec rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16, quiet = (bits >> 16) | 0x40u;
  const HalfWordVec halves = __builtin_convertvector(v == v ? rounded : quiet, HalfWordVec);
  std::memcpy(p, &halves, sizeof halves);
#endif
}

// Masks of ones, as GCC 12 warns of its own intrinsics without masks.
inline Vec load_as_float(const Float16* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}
inline void store_from_float(Float16* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xFFFF, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) p[i] = from_float<Float16>(v[i]);
#endif
}

// One vector of a row of which `lanes` elements are left: beyond these, zeros are loaded and nothing is stored.
template <typename T>
inline Vec load_some(const T* p, int64_t lanes) {
  if (lanes >= kWidth) return load_as_float(p);
  Vec v = {};
  for (int64_t i = 0; i < lanes; ++i) v[i] = to_float(p[i]);
  return v;
}
template <typename T>
inline void store_some(T* p, Vec v, int64_t lanes) {
  if (lanes >= kWidth) return store_from_float(p, v);
  for (int64_t i = 0; i < lanes; ++i) p[i] = from_float<T>(v[i]);
}

// Calls work(i, lanes) for each vector of a row: lanes is a constant but for the last one, of which less is left.
template <typename Work>
inline void for_vectors(int64_t width, const Work& work) {
  int64_t i = 0;
  for (; i + kWidth <= width; i += kWidth) work(i, std::integral_constant<int64_t, kWidth>{});
  if (i < width) work(i, width - i);
}

}  // namespace mp::MP_ISA
