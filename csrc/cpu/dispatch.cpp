// Choice of the build of the kernels at run time, by the instruction sets of the processor.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

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
#endif

const Kernels* const* runnable_kernels() {
  static const struct Table {
    const Kernels* entries[4] = {};
    Table() {
      int n = 0;
#ifdef MP_BUILD_X86
      __builtin_cpu_init();
      const bool has_avx2 =
          __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
      if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        entries[n++] = &avx512::kKernels;
      if (has_avx2) entries[n++] = &avx2::kKernels;
#endif
      entries[n] = &portable::kKernels;
    }
  } table;
  return table.entries;
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const Kernels* const* runnable = runnable_kernels();
    if (const char* wanted = std::getenv("MP_KERNELS_ISA"))
      for (const Kernels* const* k = runnable; *k; ++k)
        if (std::strcmp((*k)->name, wanted) == 0) return **k;
    return **runnable;
  }();
  return chosen;
}

}  // namespace mp
