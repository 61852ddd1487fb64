// Element types of tensors, and their conversion from and to float, in which all arithmetic is done.
#pragma once

#include <cstdint>
#include <cstring>

namespace mp {

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

struct BFloat16 {
  uint16_t bits;
};
#ifdef __aarch64__
using Float16 = __fp16;  // GCC has _Float16 in C++ for Arm from version 13 on only
#else
using Float16 = _Float16;
#endif

inline float to_float(float x) {
  return x;
}
inline float to_float(Float16 x) {
  return static_cast<float>(x);
}
inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <typename T>
inline T from_float(float x) {
  return static_cast<T>(x);
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  bits += 0x7FFFu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(bits >> 16)};
}

inline int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

// Calls f with a value of the C++ type of dtype.
template <typename F>
inline void with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat32: return f(float{});
    case Dtype::kFloat16: return f(Float16{});
    case Dtype::kBFloat16: return f(BFloat16{});
  }
}

}  // namespace mp
