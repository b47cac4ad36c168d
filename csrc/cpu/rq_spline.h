// Rational-quadratic splines: what the kernels of the instruction sets compute.
#pragma once

#include "cpu/spline.h"

namespace fastgen {

struct RqSplineShape : SplineShape {
  double min_derivative;
};

template <typename T>
using RqSplineData = SplineData<T>;

using RqSplineKernels = SplineKernels<RqSplineShape>;

FASTGEN_ISA_TABLES(RqSplineKernels, rq_spline_kernels)

}  // namespace fastgen
