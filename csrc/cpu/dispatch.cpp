// Choice of the build of the kernels at run time, by the instruction sets of the processor.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#ifdef MP_BUILD_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mp {

namespace portable {
extern const Kernels kKernels;
}
#ifdef MP_BUILD_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_vnni {
extern const Kernels kKernels;
}
#endif
#ifdef MP_BUILD_AVX512_BF16
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif
#ifdef MP_BUILD_AMX
namespace amx {
extern const Kernels kKernels;
}

namespace {

// Whether the processor has tiles for int8 and bfloat16 (and vectors to round to the latter), and the system lets this
// process use them.
bool has_tiles() {
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 22 | 1u << 24 | 1u << 25, kHalfVectors = 1u << 5;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) != kTiles) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & kHalfVectors) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
#endif

const Kernels* const* runnable_kernels() {
  static const struct Table {
    const Kernels* entries[7] = {};
    Table() {
      int n = 0;
#ifdef MP_BUILD_X86
      __builtin_cpu_init();
      const bool has_avx2 =
          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
      const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#ifdef MP_BUILD_AMX
      if (has_avx512 && has_tiles()) entries[n++] = &amx::kKernels;
#endif
      const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
#ifdef MP_BUILD_AVX512_BF16
      if (has_vnni && __builtin_cpu_supports("avx512bf16")) entries[n++] = &avx512_bf16::kKernels;
#endif
      if (has_vnni) entries[n++] = &avx512_vnni::kKernels;
      if (has_avx512) entries[n++] = &avx512::kKernels;
      if (has_avx2) entries[n++] = &avx2::kKernels;
#endif
      entries[n] = &portable::kKernels;
    }
  } table;
  return table.entries;
}

const Kernels& kernels() {
  static const Kernels* const chosen = [] {
    const Kernels* const* runnable = runnable_kernels();
    if (const char* wanted = std::getenv("MP_KERNELS_ISA"))
      for (const Kernels* const* k = runnable; *k; ++k)
        if (std::strcmp((*k)->name, wanted) == 0) return *k;
    return *runnable;
  }();
  return *chosen;
}

}  // namespace mp
