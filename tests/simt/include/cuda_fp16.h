// Replaces CUDA's header of this name in the emulator.
#pragma once

#include "../../../csrc/cpu/dtype.h"

using __half = mp::Float16;

inline float __half2float(__half x) {
  return mp::to_float(x);
}
inline __half __float2half_rn(float x) {
  return mp::from_float<__half>(x);
}
