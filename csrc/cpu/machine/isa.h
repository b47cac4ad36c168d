// The choice of the instruction set at run time.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace fastgen {

// The instruction sets that were compiled and that this processor runs, the widest last.
std::vector<std::string> isas();

// The widest of isas(), or the one that the environment variable FASTGEN_ISA names; throws std::invalid_argument where that
// is not among them.
const Kernels& kernels();

}  // namespace fastgen
