// Monotone splines: what the kernels of rq_spline and cubic_spline are given.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct SplineShape {
  bool inverse;
  int tails;  // 0 bounded, 1 linear, 2 circular
  std::int64_t bins, parameters;
  double left, right, bottom, top, min_width, min_height;
};

template <typename T>
struct SplineData {
  const T *x, *parameters;
  T *y, *log_det;  // forward
  const T *grad_y, *grad_log_det;
  T *grad_x, *grad_parameters;  // backward
};

// Elements begin .. end; `scratch` holds spline_scratch() values.
template <typename Shape>
struct SplineKernels {
  std::int64_t lanes;
  void (*forward_float)(const Shape&, const SplineData<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*forward_double)(const Shape&, const SplineData<double>&, std::int64_t begin, std::int64_t end, double* scratch);
  void (*backward_float)(const Shape&, const SplineData<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*backward_double)(const Shape&, const SplineData<double>&, std::int64_t begin, std::int64_t end, double* scratch);
};

// Columns of parameters, and of their gradients.
inline std::int64_t spline_scratch(const SplineShape& shape, std::int64_t lanes) { return 2 * shape.parameters * lanes; }

}  // namespace fastgen
