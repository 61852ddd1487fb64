// Launches of kernels: by CUDA, unless the emulator of tests/simt has defined MP_LAUNCH.
#pragma once

// Asserts keep kernels inside their tensors, so release builds have them too.
#undef NDEBUG
#include <cassert>

#include <cuda_runtime.h>

#ifndef MP_LAUNCH
#define MP_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif
