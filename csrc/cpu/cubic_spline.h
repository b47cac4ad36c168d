// Monotone cubic splines: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct CubicSplineShape {
  bool inverse;
  std::int64_t bins, parameters;
  double left, right, bottom, top, min_width, min_height;
};

template <typename T>
struct CubicSplineData {
  const T *x, *parameters;
  T *y, *log_det;  // forward
  const T *grad_y, *grad_log_det;
  T *grad_x, *grad_parameters;  // backward
};

template <typename T>
using CubicSplineKernel = void (*)(const CubicSplineShape&, const CubicSplineData<T>&, std::int64_t begin, std::int64_t end,
                                   T* scratch);

// Elements begin .. end; `scratch` holds cubic_spline_scratch() values.
struct CubicSplineKernels {
  std::int64_t lanes;
  CubicSplineKernel<float> forward_float, backward_float;
  CubicSplineKernel<double> forward_double, backward_double;
};

// Columns of parameters, and of their gradients.
inline std::int64_t cubic_spline_scratch(const CubicSplineShape& shape, std::int64_t lanes) { return 2 * shape.parameters * lanes; }

FASTGEN_ISA_TABLES(CubicSplineKernels, cubic_spline_kernels)

}  // namespace fastgen
