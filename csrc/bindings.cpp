// The module fastgen._C: what is not a tensor op. Tensor ops register themselves with torch when the module is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/machine/bindings/heads_bindings.h"
#include "cpu/machine/bindings/machine_bindings.h"

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info;
#if defined(FASTGEN_VERSION)
  info["version"] = FASTGEN_VERSION;
#endif
#if defined(__clang__) || defined(__GNUC__)
  info["compiler"] = __VERSION__;
#endif
  info["standard"] = std::to_string(__cplusplus);
#if defined(__x86_64__)
  info["architecture"] = "x86_64";
#elif defined(__aarch64__)
  info["architecture"] = "aarch64";
#else
  info["architecture"] = "other";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  fastgen::bind_heads(module);
  fastgen::bind_machine(module);
  module.def("build_info", &build_info, "How the extension was built: version, compiler, language standard, architecture.");
}
