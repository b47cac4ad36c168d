// Monotone cubic splines: what the kernels of the instruction sets compute.
#pragma once

#include "cpu/spline/spline.h"

namespace fastgen {

using CubicSplineKernels = SplineKernels<SplineShape>;

FASTGEN_ISA_TABLES(CubicSplineKernels, cubic_spline_kernels)

}  // namespace fastgen
