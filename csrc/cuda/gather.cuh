// Gather of rows from several tensors by one index, and its gradient: the sum, for every row, over the row's copies.
// Nothing here depends on torch, so that tests/simt can run it on a CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "launch.cuh"

namespace mp {

constexpr int kWarp = 32;
constexpr int kThreads = 128;
constexpr int kTensorsPerLaunch = 8;
// Most blocks for one tensor, far more than a device holds at once; with more rows, a block takes several in turn.
constexpr int64_t kMaxBlocks = 65535;
// Loads that a thread starts before it uses the first, so that they hide each other's latency.
constexpr int kInFlight = 4;

// ---- forward: out[i, :] = x[index[i], :], as bytes ----

struct RowCopy {
  const char* x;
  char* out;  // contiguous
  int64_t rows, row_bytes, stride_bytes;
  // Chosen by plan_copy.
  int access_bytes, threads_per_row;
};

struct RowCopies {
  RowCopy of[kTensorsPerLaunch];
};

template <typename Access>
__device__ void copy_rows(const RowCopy& copy, const int64_t* __restrict__ index, int64_t count) {
  const int threads = copy.threads_per_row;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const int64_t rows_per_block = kThreads / threads;
  const int64_t accesses = copy.row_bytes / static_cast<int64_t>(sizeof(Access));
  for (int64_t i = blockIdx.x * rows_per_block + static_cast<int>(threadIdx.x) / threads; i < count;
       i += gridDim.x * rows_per_block) {
    const int64_t row = index[i];
    assert(row >= 0 && row < copy.rows && "ragged_gather: index out of range");
    const Access* __restrict__ from = reinterpret_cast<const Access*>(copy.x + row * copy.stride_bytes);
    Access* __restrict__ to = reinterpret_cast<Access*>(copy.out + i * copy.row_bytes);
#pragma unroll 1
    for (int64_t begin = thread; begin < accesses; begin += kInFlight * threads) {
      Access held[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k)
        if (begin + k * threads < accesses) held[k] = from[begin + k * threads];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k)
        if (begin + k * threads < accesses) to[begin + k * threads] = held[k];
    }
  }
}

// Grid: x over rows, y over tensors. threads_per_row neighbouring threads copy a row.
__global__ void __launch_bounds__(kThreads)
    gather_rows(const __grid_constant__ RowCopies copies, const int64_t* __restrict__ index, int64_t count) {
  const RowCopy& copy = copies.of[blockIdx.y];
  switch (copy.access_bytes) {
    case 16: return copy_rows<uint4>(copy, index, count);
    case 8: return copy_rows<uint2>(copy, index, count);
    case 4: return copy_rows<uint32_t>(copy, index, count);
    case 2: return copy_rows<uint16_t>(copy, index, count);
    default: return copy_rows<uint8_t>(copy, index, count);
  }
}

// ---- backward: sum[row, :] = sum of grad[i, :] over the i with index[i] == row, in ascending order of i ----

enum class GradType { kFloat32, kFloat16, kBFloat16, kFloat64 };

struct RowSum {
  GradType type;
  const void* grad;
  void* sum;                           // contiguous
  int64_t rows, width, stride;         // rows of sum; elements between rows of grad
  bool sixteen_byte_accesses = false;  // chosen by plan_sum
};

struct RowSums {
  RowSum of[kTensorsPerLaunch];
};

__device__ inline float widened(float x) {
  return x;
}
__device__ inline double widened(double x) {
  return x;
}
__device__ inline float widened(__half x) {
  return __half2float(x);
}
__device__ inline float widened(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

__device__ inline void narrow(float x, float& to) {
  to = x;
}
__device__ inline void narrow(double x, double& to) {
  to = x;
}
__device__ inline void narrow(float x, __half& to) {
  to = __float2half_rn(x);
}
__device__ inline void narrow(float x, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(x);
}

// First place in sorted[0, count) whose entry is not less than row. The warp looks at 32 places at once, so it waits
// for memory log32(count) times instead of log2(count) times.
__device__ inline int64_t first_not_less(const int64_t* __restrict__ sorted, int64_t count, int64_t row, int lane) {
  int64_t begin = 0, end = count;  // the answer lies in begin..end
  while (begin < end) {
    const int64_t step = (end - begin + kWarp - 1) / kWarp;
    const int64_t place = begin + lane * step;
    const bool less = place < end && sorted[place] < row;
    const int places_less = __popc(__ballot_sync(0xFFFFFFFFu, less));
    end = min(end, begin + places_less * step);
    if (places_less > 0) begin += (places_less - 1) * step + 1;
  }
  return begin;
}

template <typename T, int kElements>
__device__ void sum_rows_of(const RowSum& sum, const int64_t* __restrict__ sorted, const int64_t* __restrict__ order,
                            int64_t count) {
  using Wide = decltype(widened(T()));
  struct alignas(kElements * sizeof(T)) Access {
    T element[kElements];
  };
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  constexpr int64_t kWarps = kThreads / kWarp;
  const int64_t accesses = sum.width / kElements;
  for (int64_t row = blockIdx.x * kWarps + static_cast<int>(threadIdx.x) / kWarp; row < sum.rows;
       row += gridDim.x * kWarps) {
    const int64_t first = first_not_less(sorted, count, row, lane);
    Access* to = reinterpret_cast<Access*>(static_cast<T*>(sum.sum) + row * sum.width);
#pragma unroll 1
    for (int64_t begin = lane; begin < accesses; begin += kInFlight * kWarp) {
      Wide total[kInFlight][kElements] = {};
#pragma unroll 1
      for (int64_t entry = first; entry < count && sorted[entry] == row; ++entry) {
        const int64_t i = order ? order[entry] : entry;
        assert(i >= 0 && i < count && "ragged_gather_backward: order out of range");
        const Access* from = reinterpret_cast<const Access*>(static_cast<const T*>(sum.grad) + i * sum.stride);
        Access held[kInFlight] = {};
#pragma unroll
        for (int k = 0; k < kInFlight; ++k)
          if (begin + k * kWarp < accesses) held[k] = from[begin + k * kWarp];
#pragma unroll
        for (int k = 0; k < kInFlight; ++k)
#pragma unroll
          for (int e = 0; e < kElements; ++e) total[k][e] += widened(held[k].element[e]);
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        Access result;
#pragma unroll
        for (int e = 0; e < kElements; ++e) narrow(total[k][e], result.element[e]);
        if (begin + k * kWarp < accesses) to[begin + k * kWarp] = result;
      }
    }
  }
}

template <typename T>
__device__ void sum_rows_as(const RowSum& sum, const int64_t* sorted, const int64_t* order, int64_t count) {
  if (sum.sixteen_byte_accesses)
    sum_rows_of<T, 16 / sizeof(T)>(sum, sorted, order, count);
  else
    sum_rows_of<T, 1>(sum, sorted, order, count);
}

// Grid: x over rows of the sums, y over tensors. A warp owns a row and writes it even if the index does not name it, so
// there are no atomics, nothing is zeroed beforehand, and the order of summation is fixed.
// sorted: the index in ascending order; order: the place of each of its entries in the index, null if that was sorted.
__global__ void __launch_bounds__(kThreads)
    sum_rows(const __grid_constant__ RowSums sums, const int64_t* __restrict__ sorted,
             const int64_t* __restrict__ order, int64_t count) {
  const RowSum& sum = sums.of[blockIdx.y];
  switch (sum.type) {
    case GradType::kFloat32: return sum_rows_as<float>(sum, sorted, order, count);
    case GradType::kFloat16: return sum_rows_as<__half>(sum, sorted, order, count);
    case GradType::kBFloat16: return sum_rows_as<__nv_bfloat16>(sum, sorted, order, count);
    case GradType::kFloat64: return sum_rows_as<double>(sum, sorted, order, count);
  }
}

// ---- launches ----

// Widest access in bytes, 16 at most, that divides all of the addresses and distances or-ed into bits.
inline int widest_access(uint64_t bits) {
  bits |= 16;
  return static_cast<int>(bits & (~bits + 1));
}

inline uint64_t address_bits(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

inline void plan_copy(RowCopy& copy) {
  const uint64_t distances = static_cast<uint64_t>(copy.row_bytes) | static_cast<uint64_t>(copy.stride_bytes);
  copy.access_bytes = widest_access(address_bits(copy.x) | address_bits(copy.out) | distances);
  // Up to a warp, a thread for each access, so that a warp copies several narrow rows; beyond, only as many threads as
  // have kInFlight accesses each.
  const int64_t accesses = copy.row_bytes / copy.access_bytes;
  copy.threads_per_row = 1;
  while (copy.threads_per_row < kWarp && copy.threads_per_row < accesses) copy.threads_per_row *= 2;
  while (copy.threads_per_row < kThreads && copy.threads_per_row * 2 * kInFlight <= accesses) copy.threads_per_row *= 2;
}

inline void plan_sum(RowSum& sum) {
  const int64_t element_bytes = sum.type == GradType::kFloat64 ? 8 : sum.type == GradType::kFloat32 ? 4 : 2;
  const uint64_t distances = static_cast<uint64_t>((sum.width | sum.stride) * element_bytes);
  sum.sixteen_byte_accesses = widest_access(address_bits(sum.grad) | address_bits(sum.sum) | distances) == 16;
}

inline unsigned blocks_for(int64_t rows, int64_t rows_per_block, int64_t max_blocks) {
  return static_cast<unsigned>(std::min((rows + rows_per_block - 1) / rows_per_block, max_blocks));
}

inline void gather(const RowCopy* copies, size_t tensors, const int64_t* index, int64_t count, cudaStream_t stream,
                   int64_t max_blocks = kMaxBlocks) {
  if (count == 0) return;
  for (size_t done = 0; done < tensors; done += kTensorsPerLaunch) {
    const size_t now = std::min<size_t>(tensors - done, kTensorsPerLaunch);
    RowCopies group{};
    unsigned blocks = 0;
    for (size_t t = 0; t < now; ++t) {
      group.of[t] = copies[done + t];
      plan_copy(group.of[t]);
      blocks = std::max(blocks, blocks_for(count, kThreads / group.of[t].threads_per_row, max_blocks));
    }
    MP_LAUNCH(gather_rows, dim3(blocks, static_cast<unsigned>(now)), dim3(kThreads), stream, group, index, count);
  }
}

inline void gather_backward(const RowSum* sums, size_t tensors, const int64_t* sorted, const int64_t* order,
                            int64_t count, cudaStream_t stream, int64_t max_blocks = kMaxBlocks) {
  for (size_t done = 0; done < tensors; done += kTensorsPerLaunch) {
    const size_t now = std::min<size_t>(tensors - done, kTensorsPerLaunch);
    RowSums group{};
    unsigned blocks = 0;
    for (size_t t = 0; t < now; ++t) {
      group.of[t] = sums[done + t];
      plan_sum(group.of[t]);
      if (group.of[t].width > 0) blocks = std::max(blocks, blocks_for(group.of[t].rows, kThreads / kWarp, max_blocks));
    }
    if (blocks == 0) continue;
    MP_LAUNCH(sum_rows, dim3(blocks, static_cast<unsigned>(now)), dim3(kThreads), stream, group, sorted, order, count);
  }
}

}  // namespace mp
