#pragma once

#include <pybind11/pybind11.h>

namespace fastgen {

// Adds `Machine` and the probes to the module.
void bind_machine(pybind11::module_& module);

}  // namespace fastgen
