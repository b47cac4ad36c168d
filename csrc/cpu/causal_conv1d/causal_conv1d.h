// Dilated causal convolution with a gate, residual and skip: what the kernels of the instruction sets compute of a block of time.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

enum CausalConv1dGate : std::int64_t { kNoGate, kTanhSigmoid, kGlu, kReglu, kGeglu, kSwiglu, kGates };

struct CausalConv1dSizes {
  // A block's matrices are cut into strips of neighbouring times, [rows][times of a strip]: rows, and times, that fill the strips
  // of every instruction set.
  static constexpr std::int64_t kPadding = 32;

  std::int64_t samples, channels, outputs, taps, times, dilation, gate;
  bool with_out = false;  // a residual, a skip or both follow
  std::int64_t residuals = 0, skips = 0;

  std::int64_t history() const { return (taps - 1) * dilation; }
  std::int64_t inputs() const { return taps * channels; }
  int halves() const { return gate == kNoGate ? 1 : 2; }
  std::int64_t rows() const { return outputs / halves(); }  // of y
  std::int64_t out() const { return residuals + skips; }

  // Rows that a call needs as scratch: of a block's times, and of kPadding times.
  std::int64_t forward_rows() const { return inputs(); }
  std::int64_t forward_strips() const { return outputs + rows() + out(); }
  std::int64_t backward_rows() const { return 2 * padded(inputs()) + outputs + (with_out ? padded(rows()) + out() : 0); }
  std::int64_t backward_strips() const { return outputs + padded(rows()) + channels; }

  static std::int64_t padded(std::int64_t count) { return (count + kPadding - 1) / kPadding * kPadding; }
};

template <typename T>
struct CausalConv1dData {
  CausalConv1dSizes sizes;
  const T *x, *state;
  const T* matrix;  // the weight as [O][taps * channels]
  const T *bias, *condition;
  bool constant;  // the condition is [N][O], for all times
  T* y;  // of the forward, [N][H][T]; or with a residual or a skip
  const T *out_weight, *out_bias, *skip;
  bool constant_skip;  // [N][S]
  T *residual_to, *skip_to;

  const T *grad, *grad_skip;  // backward: of y, or of residual and skip
  const T* turned;  // the weight as [taps][C][O]
  const T* out_turned;  // [H][R + S]
  T* of_x;
  T *of_condition, *of_skip;  // [N][O][T] and [N][S][T], or null where the condition or the skip before is constant
};

// `count` times of the sample n from t on, at most those of a block.
struct CausalConv1dBlock {
  std::int64_t n, t, count;
};

// Where a block of the backward leaves what is summed over blocks.
template <typename T>
struct CausalConv1dSums {
  double *of_matrix, *of_out_weight;  // added to, or begun
  bool begun;
  double *of_sums, *of_out;  // over the block's times, [O] and [R + S]
  // Of x, added: gradients of the `history` times [C] before the time `start`, at which the blocks that one thread takes begin.
  std::int64_t start;
  T* before;
};

template <typename T>
using CausalConv1dKernel = void (*)(const CausalConv1dData<T>&, T* scratch, const CausalConv1dBlock&);
template <typename T>
using CausalConv1dBackward = void (*)(const CausalConv1dData<T>&, T* scratch, const CausalConv1dBlock&,
                                      const CausalConv1dSums<T>&);

struct CausalConv1dKernels {
  CausalConv1dKernel<float> forward_float;
  CausalConv1dKernel<double> forward_double;
  CausalConv1dBackward<float> backward_float;
  CausalConv1dBackward<double> backward_double;
};

FASTGEN_ISA_TABLES(CausalConv1dKernels, causal_conv1d_kernels)

}  // namespace fastgen
