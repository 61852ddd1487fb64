// Replaces CUDA's header of this name in the emulator.
#pragma once

#include "../../../csrc/cpu/dtype.h"

using __nv_bfloat16 = mp::BFloat16;

inline float __bfloat162float(__nv_bfloat16 x) {
  return mp::to_float(x);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return mp::from_float<__nv_bfloat16>(x);
}
