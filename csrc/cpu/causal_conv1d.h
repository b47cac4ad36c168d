// Dilated causal convolution with a gate: what the kernels of the instruction sets compute of a block of time.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

enum CausalConv1dGate : std::int64_t { kNoGate, kTanhSigmoid, kGlu, kReglu, kGeglu, kSwiglu, kGates };

// One channel of the result, over `count` neighbouring times: its rows of sums (both halves of a gate, or the first alone), in
// which the kernels add bias and condition. A condition that changes in time has a pointer, another is in `add`.
template <typename T>
struct CausalConv1dRow {
  std::int64_t gate, count;
  T* sums[2];
  const T* condition[2];  // or null
  T add[2];
  T* y;           // of the forward; of the backward, too, if it is not null: grad itself may be there
  const T* grad;  // backward: the gradients of the sums replace the sums
  double total[2];  // backward: the sums of those
};

struct CausalConv1dKernels {
  void (*forward_float)(const CausalConv1dRow<float>&);
  void (*forward_double)(const CausalConv1dRow<double>&);
  void (*backward_float)(CausalConv1dRow<float>&);
  void (*backward_double)(CausalConv1dRow<double>&);
};

FASTGEN_ISA_TABLES(CausalConv1dKernels, causal_conv1d_kernels)

}  // namespace fastgen
