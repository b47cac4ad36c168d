// Nearest code: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kMostRows = 6;  // that a kernel takes at once

// Codes are packed in blocks of `lanes`: value d of the codes of block b at (b * width + d) * lanes. A lane beyond the last
// code has offset -infinity.
template <typename T>
struct NearestCode {
  const T *x, *centre, *packed, *offsets;  // [rows, width], [width], packed codes less the centre, -|e|^2 / 2 of these
  std::int64_t width, blocks;
  std::int64_t* codes;
};

struct VectorQuantizeKernels {
  std::int64_t lanes;
  // of rows from begin to end; scratch holds kMostRows * width numbers
  void (*nearest_float)(const NearestCode<float>& task, std::int64_t begin, std::int64_t end, float* scratch);
  void (*nearest_double)(const NearestCode<double>& task, std::int64_t begin, std::int64_t end, double* scratch);
};

FASTGEN_ISA_TABLES(VectorQuantizeKernels, vector_quantize_kernels)

}  // namespace fastgen
