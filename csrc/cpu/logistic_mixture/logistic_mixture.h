// Mixtures of discretized logistics: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct LogisticMixtureShape {
  std::int64_t channels, mixtures, levels;
  double min_log_scale;

  std::int64_t blocks() const { return channels == 1 ? 2 : 3; }  // of a channel: means, log-scales, coefficients
  std::int64_t parameters() const { return mixtures * (1 + channels * blocks()); }
};

template <typename T>
struct LogisticMixtureData {
  const std::int64_t* level;
  const T* parameters;
  T* log_prob;  // forward
  const T* grad;
  T* grad_parameters;  // backward
};

// Elements begin .. end; `scratch` holds logistic_mixture_scratch() values.
struct LogisticMixtureKernels {
  template <typename T>
  using Kernel = void (*)(const LogisticMixtureShape&, const LogisticMixtureData<T>&, std::int64_t begin, std::int64_t end,
                          T* scratch);
  std::int64_t lanes;
  Kernel<float> forward_float;
  Kernel<double> forward_double;
  Kernel<float> backward_float;
  Kernel<double> backward_double;
};

// Columns of parameters, of their gradients, and nine of each component.
inline std::int64_t logistic_mixture_scratch(const LogisticMixtureShape& shape, std::int64_t lanes) {
  return (2 * shape.parameters() + 9 * shape.mixtures) * lanes;
}

FASTGEN_ISA_TABLES(LogisticMixtureKernels, logistic_mixture_kernels)

}  // namespace fastgen
