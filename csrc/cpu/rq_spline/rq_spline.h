// Rational-quadratic splines: what the kernels of the instruction sets compute.
#pragma once

#include "cpu/spline/spline.h"

namespace fastgen {

struct RqSplineShape : SplineShape {
  double min_derivative;
};

template <typename T>
using RqSplineData = SplineData<T>;

using RqSplineKernels = SplineKernels<RqSplineShape>;

FASTGEN_ISA_TABLES(RqSplineKernels, rq_spline_kernels)

// Raw parameters that another library clips softly, as the spline takes them.
template <typename T>
struct SoftClipData {
  std::int64_t parameters, sizes;  // numbers in a row, and how many of them, the first ones, are widths and heights
  double softness;                 // 1 over the largest size of a clipped logarithm
  double least;                    // what the spline adds to its derivatives
  const T* raw;
  const T* gradient;  // backward
  T* out;             // forward: the parameters; backward: the gradient of raw
};

// Rows begin .. end.
template <typename T>
using SoftClipKernel = void (*)(const SoftClipData<T>&, std::int64_t begin, std::int64_t end);

struct SoftClipKernels {
  SoftClipKernel<float> forward_float;
  SoftClipKernel<double> forward_double;
  SoftClipKernel<float> backward_float;
  SoftClipKernel<double> backward_double;
};

FASTGEN_ISA_TABLES(SoftClipKernels, soft_clip_kernels)

}  // namespace fastgen
