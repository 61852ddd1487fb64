// The gather and its gradient on a device, without torch, so that compute-sanitizer sees nothing else. Results must be
// those of plain loops on the host, bit by bit, for tensors of many widths, alignments and types, in more than one
// launch each.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cuda/gather.cuh"

namespace {

constexpr int kPoison = 0xA5;

void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(2);
}

// Bytes on the device, `offset` bytes after an allocation's beginning.
class OnDevice {
 public:
  OnDevice(size_t size, size_t offset = 0) : size_(size), offset_(offset) {
    require(cudaMalloc(&memory_, size + offset + 16), "cudaMalloc");
    require(cudaMemset(memory_, kPoison, size + offset + 16), "cudaMemset");
  }
  template <typename T>
  explicit OnDevice(const std::vector<T>& values, size_t offset = 0) : OnDevice(values.size() * sizeof(T), offset) {
    require(cudaMemcpy(data(), values.data(), size_, cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  }
  OnDevice(OnDevice&& other) : memory_(other.memory_), size_(other.size_), offset_(other.offset_) {
    other.memory_ = nullptr;
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    if (memory_) cudaFree(memory_);
  }
  char* data() const { return static_cast<char*>(memory_) + offset_; }
  template <typename T>
  std::vector<T> read() const {
    std::vector<T> values(size_ / sizeof(T));
    require(cudaMemcpy(values.data(), data(), size_, cudaMemcpyDeviceToHost), "cudaMemcpy to the host");
    return values;
  }

 private:
  void* memory_ = nullptr;
  size_t size_, offset_;
};

void wait(const char* what) {
  require(cudaGetLastError(), what);
  require(cudaDeviceSynchronize(), what);
}

std::mt19937 draw(0);

// On the host, as the kernels do on the device.
template <typename T>
struct Number {
  using Sum = T;
  static Sum sum_of(T x) { return x; }
  static T of(Sum x) { return x; }
};
template <>
struct Number<__half> {
  using Sum = float;
  static Sum sum_of(__half x) { return __half2float(x); }
  static __half of(Sum x) { return __float2half_rn(x); }
};
template <>
struct Number<__nv_bfloat16> {
  using Sum = float;
  static Sum sum_of(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __nv_bfloat16 of(Sum x) { return __float2bfloat16_rn(x); }
};

std::vector<int64_t> drawn_index(int64_t count, int64_t rows) {
  std::vector<int64_t> index(count);
  for (int64_t& row : index) row = draw() % rows;
  return index;
}

// Rows of so many bytes, some of which keep an access from being wide; more tensors than one launch takes.
int check_gather(int64_t rows, int64_t count, int64_t max_blocks) {
  const std::vector<int64_t> widths = {1536, 3072, 1, 2, 6, 8, 20, 48, 24, 770};
  std::vector<std::vector<char>> sources;
  std::vector<OnDevice> xs, outs;
  std::vector<mp::RowCopy> copies;
  for (size_t t = 0; t < widths.size(); ++t) {
    const int64_t stride = widths[t] + (t % 3 == 1 ? 32 : 0);
    std::vector<char>& source = sources.emplace_back(rows * stride);
    for (char& byte : source) byte = static_cast<char>(draw());
    xs.emplace_back(source, t % 4);
    outs.emplace_back(static_cast<size_t>(count * widths[t]), t % 2);
    mp::RowCopy& copy = copies.emplace_back();
    copy.x = xs.back().data();
    copy.out = outs.back().data();
    copy.rows = rows;
    copy.row_bytes = widths[t];
    copy.stride_bytes = stride;
  }
  const std::vector<int64_t> index = drawn_index(count, rows);
  const OnDevice places(index);
  mp::gather(copies.data(), copies.size(), reinterpret_cast<const int64_t*>(places.data()), count, nullptr, max_blocks);
  wait("gather");
  int wrong = 0;
  for (size_t t = 0; t < widths.size(); ++t) {
    const std::vector<char> got = outs[t].read<char>();
    for (int64_t i = 0; i < count; ++i) {
      const char* from = sources[t].data() + index[i] * copies[t].stride_bytes;
      if (std::memcmp(got.data() + i * widths[t], from, widths[t])) {
        std::fprintf(stderr, "gather: row %lld of tensor %zu differs\n", static_cast<long long>(i), t);
        ++wrong;
        break;
      }
    }
  }
  return wrong;
}

template <typename T>
int check_sum(mp::GradType type, const char* name, int64_t rows, int64_t count, int64_t width, bool by_order,
              int64_t max_blocks) {
  std::vector<int64_t> index = drawn_index(count, rows), order(count), sorted(count);
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  if (!by_order) std::sort(index.begin(), index.end());
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return index[a] < index[b]; });
  for (int64_t i = 0; i < count; ++i) sorted[i] = index[order[i]];
  std::vector<T> grad(count * width);
  for (T& value : grad) value = Number<T>::of(static_cast<float>(draw() % 2001) / 1000.0f - 1.0f);

  const OnDevice grads(grad), sums(rows * width * sizeof(T)), entries(sorted), places(order);
  mp::RowSum sum{};
  sum.type = type;
  sum.grad = grads.data();
  sum.sum = sums.data();
  sum.rows = rows;
  sum.width = sum.stride = width;
  const int64_t* by = by_order ? reinterpret_cast<const int64_t*>(places.data()) : nullptr;
  mp::gather_backward(&sum, 1, reinterpret_cast<const int64_t*>(entries.data()), by, count, nullptr, max_blocks);
  wait("gather_backward");

  const std::vector<T> got = sums.template read<T>();
  std::vector<typename Number<T>::Sum> total(rows * width, 0);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t e = 0; e < width; ++e) total[index[i] * width + e] += Number<T>::sum_of(grad[i * width + e]);
  for (size_t place = 0; place < got.size(); ++place) {
    const T expected = Number<T>::of(total[place]);
    if (std::memcmp(&got[place], &expected, sizeof(T))) {
      std::fprintf(stderr, "gather_backward, %s: element %zu differs\n", name, place);
      return 1;
    }
  }
  return 0;
}

int check_sums(int64_t rows, int64_t count, int64_t max_blocks) {
  int wrong = 0;
  for (const int64_t width : {1, 7, 64, 768})
    for (const bool by_order : {false, true}) {
      wrong += check_sum<float>(mp::GradType::kFloat32, "float32", rows, count, width, by_order, max_blocks);
      wrong += check_sum<__half>(mp::GradType::kFloat16, "float16", rows, count, width, by_order, max_blocks);
      wrong += check_sum<__nv_bfloat16>(mp::GradType::kBFloat16, "bfloat16", rows, count, width, by_order, max_blocks);
      wrong += check_sum<double>(mp::GradType::kFloat64, "float64", rows, count, width, by_order, max_blocks);
    }
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const int64_t max_blocks : {int64_t{3}, mp::kMaxBlocks})
    for (const int64_t count : {0, 1, 33, 500}) {
      wrong += check_gather(177, count, max_blocks);
      wrong += check_sums(61, count, max_blocks);
    }
  std::printf(wrong ? "%d results differ\n" : "all results are those of the host\n", wrong);
  return wrong ? 1 : 0;
}
