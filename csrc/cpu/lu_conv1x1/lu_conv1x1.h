// The inverse of the LU-parameterised 1x1 convolution: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kLuRows = 4;  // unknowns that are solved together

// The channels of a position are solved in `slots`, which are the channels and zeros up to a multiple of kLuRows.
//
// A packed triangle holds, for every kLuRows rows in the order of their solution: the reciprocals of their diagonal; minus their
// coefficients of each unknown solved before, column by column, then of one another, all divided by the diagonal.
constexpr std::int64_t lu_packed_size(std::int64_t slots) {
  const std::int64_t blocks = slots / kLuRows;
  return blocks * (blocks - 1) / 2 * kLuRows * kLuRows + blocks * (kLuRows * kLuRows + kLuRows);
}

template <typename T>
struct LuSolve {
  std::int64_t samples, channels, positions, slots;
  const T *given, *downwards, *upwards;  // the triangle solved from the first slot on, then the one from the last
  const std::int64_t *from, *to;         // the channel that a slot is read from and written to
  const T* bias;                         // subtracted in the end
  T* solved;
  T* between;  // null, or where the slots go after the first triangle
};

// Groups of positions: kWidth of a sample, or kWidth samples where they have one position each.
struct LuConv1x1Kernels {
  std::int64_t lanes, groups;  // of a group; that are solved together
  void (*solve_float)(const LuSolve<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*solve_double)(const LuSolve<double>&, std::int64_t begin, std::int64_t end, double* scratch);
};

inline std::int64_t lu_groups_of_sample(std::int64_t positions, std::int64_t lanes) { return (positions + lanes - 1) / lanes; }

// The slots of the groups solved together, twice, and of one group more.
inline std::int64_t lu_scratch(std::int64_t slots, const LuConv1x1Kernels& kernels) {
  return (2 * kernels.groups + 1) * slots * kernels.lanes;
}

FASTGEN_ISA_TABLES(LuConv1x1Kernels, lu_conv1x1_kernels)

}  // namespace fastgen
