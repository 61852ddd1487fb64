// What every kernel file needs to be launched: by CUDA here, by the emulator of tests/simt there.
#pragma once

// Asserts keep kernels inside their tensors, so they stand in release builds too.
#undef NDEBUG
#include <cassert>

#include <cuda_runtime.h>

#ifndef MP_LAUNCH
#define MP_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif
