// csrc/cuda/ops_cuda.cu, compiled for CPU tensors and the emulator, so that its checks and launches can be tested
// without a device. Its operators are in torch.ops.simt_mp_kernels.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(DeviceIndex) {}
};
}  // namespace torch::stable::accelerator

#define DeviceGuard NoGuard
#define CUDA CPU
#define is_cuda is_cpu
#define mp_kernels simt_mp_kernels
#define aoti_torch_get_current_cuda_stream(index, stream) (*(stream) = nullptr, TORCH_SUCCESS)
#define MP_CHECK_LAUNCH()

#include "../../csrc/cuda/ops_cuda.cu"
