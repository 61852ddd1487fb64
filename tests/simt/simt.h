// Emulator that runs CUDA kernels on a CPU, to test their results and their accesses to memory. Every thread of a block
// is a fibre with its own stack. It runs until it reaches a barrier or an operation of its warp, and continues when all
// threads that take part have reached it. Blocks run one after the other.
//
// Kernel files include CUDA's headers as usual, and find those of tests/simt/include instead. The emulation shows
// nothing about memory ordering between threads that do not synchronise, and nothing about speed. Shared memory is not
// cleared between blocks.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace simt {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024;

// An error that a device would answer with a trap, a hang or an undefined value.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The place in the source where a thread waits.
struct Site {
  const char* operation;
  const char* file;
  int line;
};

inline bool same(const Site& a, const Site& b) {
  return a.line == b.line && !std::strcmp(a.file, b.file) && !std::strcmp(a.operation, b.operation);
}

enum class State { kRuns, kWaitsForBlock, kWaitsForWarp, kHasEnded };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  uint3 index;
  int lane;
  State state;
  Site site;
  uint32_t mask;                          // lanes that the warp's operation waits for
  uint64_t given;                         // value of this thread in that operation
  std::array<uint64_t, kLanes> received;  // values of all lanes of the mask
};

inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline std::exception_ptr thrown;
inline std::function<void()> body;
// 0: threads and blocks run in ascending order. Any other number seeds a random order for every pass. A result that
// depends on the order shows a missing barrier.
inline unsigned schedule = 0;

// ---- switches between fibres, of which AddressSanitizer must be told ----

#if defined(__SANITIZE_ADDRESS__)
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline void leave(void** saved, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(saved, stack, bytes);
}
inline void arrive(void* saved, const void** stack, size_t* bytes) {
  __sanitizer_finish_switch_fiber(saved, stack, bytes);
}
#else
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline void leave(void**, const void*, size_t) {}
inline void arrive(void*, const void**, size_t*) {}
#endif

inline void resume(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  void* saved = nullptr;
  leave(&saved, thread.stack.get(), kStackBytes);
  swapcontext(&scheduler, &thread.context);
  arrive(saved, nullptr, nullptr);
  if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
}

inline void wait(State state) {
  Thread& self = *current;
  self.state = state;
  void* saved = nullptr;
  leave(&saved, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self.context, &scheduler);
  arrive(saved, &scheduler_stack, &scheduler_stack_bytes);
}

inline void run_thread() {
  arrive(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  try {
    body();
  } catch (...) {
    thrown = std::current_exception();  // resume throws it again, on the scheduler's stack
  }
  current->state = State::kHasEnded;
  leave(nullptr, scheduler_stack, scheduler_stack_bytes);
  setcontext(&scheduler);
}

// ---- errors ----

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw Error(message.str());
}

inline std::string text(const uint3& index) {
  std::ostringstream out;
  out << '(' << index.x << ", " << index.y << ", " << index.z << ')';
  return out.str();
}

inline std::string text(const Site& site) {
  std::ostringstream out;
  out << site.operation << " at " << site.file << ':' << site.line;
  return out.str();
}

[[noreturn]] inline void fail_assert(const char* condition, const char* file, int line) {
  fail("device assert failed: ", condition, " at ", file, ':', line, ", block ", text(blockIdx), ", thread ",
       text(threadIdx));
}

// ---- a block ----

class Block {
 public:
  explicit Block(dim3 size) {
    blockDim = size;
    for (unsigned z = 0; z < size.z; ++z)
      for (unsigned y = 0; y < size.y; ++y)
        for (unsigned x = 0; x < size.x; ++x) {
          Thread& thread = threads_.emplace_back();
          thread.index = {x, y, z};
          thread.lane = static_cast<int>(threads_.size() - 1) % kLanes;
          thread.stack.reset(new char[kStackBytes]);
        }
  }

  template <typename Random>
  void run(Random& random) {
    std::vector<size_t> order(threads_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    for (Thread& thread : threads_) start(thread);
    do {
      if (schedule) std::shuffle(order.begin(), order.end(), random);
      for (size_t t : order)
        if (threads_[t].state == State::kRuns) resume(threads_[t]);
    } while (release_warps() || release_block());
    if (!all([](const Thread& thread) { return thread.state == State::kHasEnded; })) fail_divergent();
  }

 private:
  static void start(Thread& thread) {
    thread.state = State::kRuns;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
  }

  template <typename Holds>
  bool all(const Holds& holds) const {
    return std::all_of(threads_.begin(), threads_.end(), holds);
  }

  // Completes the operations of warps whose lanes have all arrived.
  bool release_warps() {
    bool released = false;
    for (size_t first = 0; first < threads_.size(); first += kLanes)
      for (size_t t = first; t < std::min(first + kLanes, threads_.size()); ++t)
        if (threads_[t].state == State::kWaitsForWarp) released = release_lanes(first, threads_[t]) || released;
    return released;
  }

  bool release_lanes(size_t first, const Thread& asking) {
    const Site site = asking.site;
    const uint32_t mask = asking.mask;
    const size_t end = std::min(first + kLanes, threads_.size());
    std::array<uint64_t, kLanes> given{};
    for (size_t t = first; t < end; ++t) {
      const Thread& thread = threads_[t];
      if (!(mask >> thread.lane & 1)) continue;
      if (thread.state != State::kWaitsForWarp || thread.mask != mask || !same(thread.site, site)) return false;
      given[static_cast<size_t>(thread.lane)] = thread.given;
    }
    for (size_t t = first; t < end; ++t)
      if (mask >> threads_[t].lane & 1) {
        threads_[t].received = given;
        threads_[t].state = State::kRuns;
      }
    return true;
  }

  bool release_block() {
    const Site& site = threads_[0].site;
    if (!all([&](const Thread& thread) { return thread.state == State::kWaitsForBlock && same(thread.site, site); }))
      return false;
    for (Thread& thread : threads_) thread.state = State::kRuns;
    return true;
  }

  [[noreturn]] void fail_divergent() const {
    std::ostringstream message;
    message << "divergent barrier in block " << text(blockIdx) << ':';
    std::vector<std::string> told;
    for (const Thread& thread : threads_) {
      const bool ended = thread.state == State::kHasEnded;
      std::string where = ended ? "has ended" : "waits in " + text(thread.site);
      if (std::find(told.begin(), told.end(), where) != told.end()) continue;
      message << (told.empty() ? " thread " : "; thread ") << text(thread.index) << ' ' << where;
      told.push_back(std::move(where));
    }
    throw Error(message.str());
  }

  std::vector<Thread> threads_;
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535 || !threads ||
      threads > 1024 || block.z > 64)
    fail("invalid launch: grid (", grid.x, ", ", grid.y, ", ", grid.z, "), block (", block.x, ", ", block.y, ", ",
         block.z, ")");
  gridDim = grid;
  body = [&] { kernel(arguments...); };
  std::mt19937 random(schedule);
  std::vector<uint3> blocks;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) blocks.push_back({x, y, z});
  if (schedule) std::shuffle(blocks.begin(), blocks.end(), random);
  Block fibres(block);
  for (const uint3& index : blocks) {
    blockIdx = index;
    fibres.run(random);
  }
}

// The emulator's kernel<<<grid, block, 0, stream>>>, to be called with the kernel's arguments.
template <typename Kernel>
auto launches(Kernel kernel, dim3 grid, dim3 block, cudaStream_t) {
  return [=](auto... arguments) { launch(kernel, grid, block, arguments...); };
}

// ---- operations that kernels call ----

inline void block_barrier(Site site) {
  current->site = site;
  wait(State::kWaitsForBlock);
}

// Every lane of the mask gives a value and receives those of all.
inline const std::array<uint64_t, kLanes>& exchange(Site site, uint32_t mask, uint64_t value) {
  Thread& self = *current;
  if (!(mask >> self.lane & 1)) fail(text(site), ": lane ", self.lane, " is not in its own mask");
  self.site = site;
  self.mask = mask;
  self.given = value;
  wait(State::kWaitsForWarp);
  return self.received;
}

template <typename T>
T shuffle(Site site, uint32_t mask, T value, int (*source)(int lane, int argument), int argument) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane gives 8 bytes at most");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const std::array<uint64_t, kLanes>& received = exchange(site, mask, bits);
  const int from = source(current->lane, argument);
  if (from < 0 || from >= kLanes) return value;
  if (!(mask >> from & 1)) fail(text(site), ": lane ", current->lane, " reads lane ", from, ", not in the mask");
  std::memcpy(&value, &received[static_cast<size_t>(from)], sizeof value);
  return value;
}

inline uint32_t ballot(Site site, uint32_t mask, bool holds) {
  const std::array<uint64_t, kLanes>& received = exchange(site, mask, holds);
  uint32_t votes = 0;
  for (size_t lane = 0; lane < received.size(); ++lane) votes |= static_cast<uint32_t>(received[lane]) << lane;
  return votes;
}

}  // namespace simt
