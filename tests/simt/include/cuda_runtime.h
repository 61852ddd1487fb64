// Replaces CUDA's header of this name in the emulator: the keywords and functions that kernels use.
#pragma once

#include "../simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

#define MP_LAUNCH(kernel, grid, block, stream, ...) simt::launches(kernel, grid, block, stream)(__VA_ARGS__)

#undef assert
#define assert(condition) ((condition) ? void() : simt::fail_assert(#condition, __FILE__, __LINE__))

#define SIMT_SITE(operation)      \
  simt::Site {                    \
    operation, __FILE__, __LINE__ \
  }
#define __syncthreads() simt::block_barrier(SIMT_SITE("__syncthreads"))
#define __syncwarp(mask) static_cast<void>(simt::exchange(SIMT_SITE("__syncwarp"), mask, 0))
#define __ballot_sync(mask, holds) simt::ballot(SIMT_SITE("__ballot_sync"), mask, holds)
#define __any_sync(mask, holds) (simt::ballot(SIMT_SITE("__any_sync"), mask, holds) != 0)
#define __all_sync(mask, holds) (simt::ballot(SIMT_SITE("__all_sync"), mask, !(holds)) == 0)
#define __shfl_sync(mask, value, lane) \
  simt::shuffle(SIMT_SITE("__shfl_sync"), mask, value, [](int, int from) { return from & (simt::kLanes - 1); }, lane)
#define __shfl_xor_sync(mask, value, bits) \
  simt::shuffle(SIMT_SITE("__shfl_xor_sync"), mask, value, [](int own, int flip) { return own ^ flip; }, bits)
#define __shfl_up_sync(mask, value, distance) \
  simt::shuffle(SIMT_SITE("__shfl_up_sync"), mask, value, [](int own, int by) { return own - by; }, distance)
#define __shfl_down_sync(mask, value, distance) \
  simt::shuffle(SIMT_SITE("__shfl_down_sync"), mask, value, [](int own, int by) { return own + by; }, distance)

inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;
