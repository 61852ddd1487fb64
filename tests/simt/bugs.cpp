// Correct kernels, and kernels with one deliberate bug each, to test the emulator itself: `bugs NAME SCHEDULE` exits
// with 0 if the result is right, 1 if it is wrong, 2 if the emulator reported an error.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace {

constexpr int kBlock = 70;  // two warps and a part of a third
constexpr int kBlocks = 3;

template <bool kBarrier, int kDistance>
__global__ void pass_on(int* out) {
  __shared__ int tile[kBlock];
  const int own = static_cast<int>(threadIdx.x);
  tile[own] = static_cast<int>(blockIdx.x) * 1000 + own;
  if (kBarrier) __syncthreads();
  out[static_cast<int>(blockIdx.x) * kBlock + own] = tile[(own + kBlock + kDistance) % kBlock];
}

template <bool kBarrier, int kDistance>
bool passes_on() {
  std::vector<int> out(kBlocks * kBlock, -1);
  MP_LAUNCH((pass_on<kBarrier, kDistance>), dim3(kBlocks), dim3(kBlock), nullptr, out.data());
  for (int i = 0; i < kBlocks * kBlock; ++i)
    if (out[i] != i / kBlock * 1000 + (i % kBlock + kBlock + kDistance) % kBlock) return false;
  return true;
}

// Sums a block by shuffles within a warp and shared memory between warps.
__global__ void sum_block(const double* x, double* out) {
  __shared__ double of_warp[simt::kLanes];
  const unsigned own = threadIdx.y * blockDim.x + threadIdx.x;
  double sum = x[blockIdx.x * blockDim.x * blockDim.y + own];
  for (int distance = simt::kLanes / 2; distance; distance /= 2) sum += __shfl_down_sync(~0u, sum, distance);
  if (own % simt::kLanes == 0) of_warp[own / simt::kLanes] = sum;
  __syncthreads();
  if (own < simt::kLanes) {
    sum = own < blockDim.x * blockDim.y / simt::kLanes ? of_warp[own] : 0;
    for (int bits = 1; bits < simt::kLanes; bits *= 2) sum += __shfl_xor_sync(~0u, sum, bits);
    if (own == 0) out[blockIdx.x] = sum;
  }
}

bool sums_blocks() {
  std::vector<double> x(kBlocks * 128), out(kBlocks, -1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i);
  MP_LAUNCH(sum_block, dim3(kBlocks), dim3(16, 8), nullptr, x.data(), out.data());
  for (int b = 0; b < kBlocks; ++b)
    if (out[b] != 128.0 * (128 * b) + 127 * 64) return false;
  return true;
}

__global__ void vote(unsigned* out) {
  const unsigned lane = threadIdx.x;
  const bool low = lane < 8;
  const unsigned half = low ? 0xFFu : ~0xFFu;
  unsigned* row = out + lane * 6;
  row[0] = __ballot_sync(~0u, lane % 3 == 0);
  row[1] = low ? __ballot_sync(half, true) : __ballot_sync(half, lane == 9);
  row[2] = __any_sync(~0u, lane == 31);
  row[3] = __all_sync(~0u, lane < 31);
  row[4] = __shfl_sync(~0u, lane * 10, 5);
  __syncwarp(~0u);
  row[5] = __shfl_up_sync(~0u, lane, 1);
}

bool votes() {
  std::vector<unsigned> out(32 * 6, 77);
  MP_LAUNCH(vote, dim3(1), dim3(32), nullptr, out.data());
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned right[] = {0x49249249u, lane < 8 ? 0xFFu : 1u << 9, 1, 0, 50, lane ? lane - 1 : 0};
    if (!std::equal(right, right + 6, out.data() + lane * 6)) return false;
  }
  return true;
}

__global__ void skip_barrier() {
  if (threadIdx.x < 16) __syncthreads();
}

__global__ void part_ways() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void leave_before_barrier() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void vote_without_all() {
  if (threadIdx.x < 16) __ballot_sync(~0u, true);
}

__global__ void barrier_against_vote() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncwarp(~0u);
}

__global__ void read_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0xFFFFu, threadIdx.x, 20);
}

__global__ void not_in_own_mask() {
  __syncwarp(0xFFFFu);
}

__global__ void write_far(int* out) {
  out[threadIdx.x + 1] = 1;
}

__global__ void write_far_in_shared(int* out) {
  __shared__ int tile[kBlock];
  tile[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void assert_small() {
  assert(threadIdx.x < 40);
}

template <void (*kKernel)()>
bool runs() {
  MP_LAUNCH(kKernel, dim3(2), dim3(kBlock), nullptr);
  return true;
}

template <void (*kKernel)(int*)>
bool writes() {
  std::vector<int> out(kBlock);
  MP_LAUNCH(kKernel, dim3(1), dim3(kBlock), nullptr, out.data());
  return true;
}

bool launches_nothing() {
  MP_LAUNCH(skip_barrier, dim3(0), dim3(kBlock), nullptr);
  return true;
}

const std::map<std::string, bool (*)()> kPrograms{
    {"pass_on", passes_on<true, 1>},
    {"sum_block", sums_blocks},
    {"vote", votes},
    {"missing_barrier_next", passes_on<false, 1>},
    {"missing_barrier_previous", passes_on<false, -1>},
    {"skip_barrier", runs<skip_barrier>},
    {"part_ways", runs<part_ways>},
    {"leave_before_barrier", runs<leave_before_barrier>},
    {"vote_without_all", runs<vote_without_all>},
    {"barrier_against_vote", runs<barrier_against_vote>},
    {"read_outside_mask", runs<read_outside_mask>},
    {"not_in_own_mask", runs<not_in_own_mask>},
    {"write_far", writes<write_far>},
    {"write_far_in_shared", writes<write_far_in_shared>},
    {"assert_small", runs<assert_small>},
    {"empty_grid", launches_nothing},
};

}  // namespace

int main(int, char** arguments) {
  simt::schedule = static_cast<unsigned>(std::atoi(arguments[2]));
  try {
    return kPrograms.at(arguments[1])() ? 0 : 1;
  } catch (const simt::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
