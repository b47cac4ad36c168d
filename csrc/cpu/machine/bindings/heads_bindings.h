#pragma once

#include <pybind11/pybind11.h>

#include "program/heads.h"

namespace fastgen {

// The HeadSpec of a Python head's `spec()`; raises ValueError where it is not one.
HeadSpec head_spec(const pybind11::dict& spec);

// Adds `draw` to the module.
void bind_heads(pybind11::module_& module);

}  // namespace fastgen
