// The transform of Flow++ by a mixture of logistics: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

template <typename T>
struct LogisticMixtureCdfData {
  std::int64_t components;
  bool inverse;
  const T *x, *parameters;
  T *y, *log_det;  // forward
  const T *grad_y, *grad_log_det;
  T *grad_x, *grad_parameters;  // backward
};

// Elements begin .. end; `scratch` holds logistic_mixture_cdf_scratch() values.
template <typename T>
using LogisticMixtureCdfKernel = void (*)(const LogisticMixtureCdfData<T>&, std::int64_t begin, std::int64_t end, T* scratch);

struct LogisticMixtureCdfKernels {
  std::int64_t lanes;
  LogisticMixtureCdfKernel<float> forward_float, backward_float;
  LogisticMixtureCdfKernel<double> forward_double, backward_double;
};

// Columns: three of parameters and one of inverse scales, six of terms for each component.
inline std::int64_t logistic_mixture_cdf_scratch(std::int64_t components, std::int64_t lanes) { return 10 * components * lanes; }

FASTGEN_ISA_TABLES(LogisticMixtureCdfKernels, logistic_mixture_cdf_kernels)

}  // namespace fastgen
