// Rational-quadratic splines: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct RqSplineShape {
  bool inverse;
  int tails;  // 0 bounded, 1 linear, 2 circular
  std::int64_t bins, parameters;
  double left, right, bottom, top, min_width, min_height, min_derivative;
};

template <typename T>
struct RqSplineData {
  const T *x, *parameters;
  T *y, *log_det;  // forward
  const T *grad_y, *grad_log_det;
  T *grad_x, *grad_parameters;  // backward
};

// Elements begin .. end; `scratch` holds rq_spline_scratch() values.
struct RqSplineKernels {
  std::int64_t lanes;
  void (*forward_float)(const RqSplineShape&, const RqSplineData<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*forward_double)(const RqSplineShape&, const RqSplineData<double>&, std::int64_t begin, std::int64_t end, double* scratch);
  void (*backward_float)(const RqSplineShape&, const RqSplineData<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*backward_double)(const RqSplineShape&, const RqSplineData<double>&, std::int64_t begin, std::int64_t end, double* scratch);
};

// Columns of parameters, and of their gradients.
inline std::int64_t rq_spline_scratch(const RqSplineShape& shape, std::int64_t lanes) { return 2 * shape.parameters * lanes; }

FASTGEN_ISA_TABLES(RqSplineKernels, rq_spline_kernels)

}  // namespace fastgen
