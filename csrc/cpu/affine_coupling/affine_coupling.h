// The affine map of a coupling layer: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kAffineCouplingPiece = 4096;

// A sample is computed in pieces, each with its own part of the log-determinant: channels where a channel has an address or a
// scale of its own, else runs of kAffineCouplingPiece elements.
struct AffineCouplingShape {
  bool inverse;
  int parameterisation;  // 0 exp, 1 tanh, 2 sigmoid
  bool interleaved;
  std::int64_t channels, positions, elements;
  bool by_channel;
  std::int64_t pieces;
};

template <typename T>
struct AffineCouplingData {
  const T *x, *parameters, *scale;
  const std::uint8_t* mask;  // or null
  T* y;
  double* log_det;  // of every piece
  const T *grad_y, *grad_log_det;
  bool same_grad_y;  // grad_y is one number for all elements
  T *grad_x, *grad_parameters;
  double* grad_scale;  // [N, C]; null unless the parameterisation is tanh
};

// Pieces begin .. end of all samples.
template <typename T>
using AffineCouplingKernel = void (*)(const AffineCouplingShape&, const AffineCouplingData<T>&, std::int64_t begin,
                                      std::int64_t end);

struct AffineCouplingKernels {
  AffineCouplingKernel<float> forward_float, backward_float;
  AffineCouplingKernel<double> forward_double, backward_double;
};

FASTGEN_ISA_TABLES(AffineCouplingKernels, affine_coupling_kernels)

}  // namespace fastgen
