#include "isa.h"

#include <cstdlib>

#include "../../common/check.h"

namespace fastgen {

std::vector<std::string> isas() {
  std::vector<std::string> names = {"baseline"};
#if defined(FASTGEN_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    names.push_back("avx512");
  }
#endif
  return names;
}

const Kernels& kernels() {
  const std::vector<std::string> names = isas();
  const char* forced = std::getenv("FASTGEN_ISA");
  const std::string name = forced && *forced ? forced : names.back();
  std::string allowed;
  for (const std::string& known : names) {
    if (known == name) {
#if defined(FASTGEN_X86)
      if (name == "avx512") return kernels_avx512();
      if (name == "avx2") return kernels_avx2();
#endif
      return kernels_baseline();
    }
    allowed += (allowed.empty() ? "" : ", ") + known;
  }
  FASTGEN_CHECK(false, "FASTGEN_ISA is '", name, "'; this build and processor run ", allowed);
  return kernels_baseline();
}

}  // namespace fastgen
