#include "common/isa.h"

#include <cstdlib>
#include <string>

#include "common/check.h"

namespace fastgen {

Isa widest_isa() {
#if defined(FASTGEN_X86)
  const bool fma = __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (fma && __builtin_cpu_supports("avx2")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa isa() {
  static const Isa widest = widest_isa();
  const char* forced = std::getenv("FASTGEN_ISA");
  if (!forced || !*forced) return widest;
  std::string allowed;
  for (int i = 0; i <= static_cast<int>(widest); ++i) {
    if (std::string(kIsaNames[i]) == forced) return static_cast<Isa>(i);
    allowed += (i ? ", " : "") + std::string(kIsaNames[i]);
  }
  FASTGEN_CHECK(false, "FASTGEN_ISA is '", forced, "'; this build and processor run ", allowed);
  return Isa::baseline;
}

}  // namespace fastgen
