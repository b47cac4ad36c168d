// Nearest code: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

// Codes are packed in blocks of `lanes`: value d of the codes of block b at (b * width + d) * lanes. A lane beyond the last
// code has offset -infinity.
template <typename T>
struct NearestCode {
  const T *x, *packed, *offsets;  // [rows, width], packed codes, -|e|^2 / 2 of every lane
  std::int64_t width, blocks;
  std::int64_t* codes;
};

struct VectorQuantizeKernels {
  std::int64_t lanes;
  void (*nearest_float)(const NearestCode<float>& task, std::int64_t begin, std::int64_t end);  // rows
  void (*nearest_double)(const NearestCode<double>& task, std::int64_t begin, std::int64_t end);
};

FASTGEN_ISA_TABLES(VectorQuantizeKernels, vector_quantize_kernels)

}  // namespace fastgen
