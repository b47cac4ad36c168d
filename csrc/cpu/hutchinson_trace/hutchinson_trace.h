// The trace of a dense field between pairs of vectors, and its gradient: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kTraceSamples = 6;  // whose products with a layer are summed in registers
constexpr std::int64_t kTraceProbes = 16;  // carried at once: their tangents stay in the cache
constexpr std::int64_t kActivationPiece = 512;  // numbers of a sample that an activation takes at a time

// Rows of `columns` numbers, [inputs][columns], columns a multiple of the vectors' width with zeros behind the layer's own.
template <typename T>
struct TraceLayer {
  const T *weight, *bias;
  std::int64_t inputs, columns;
  const T* own;  // in place of the bias where each sample has its own, [samples][outputs], or null
  T* grad_own;
};

template <typename T>
struct TraceData {
  int activation;  // 0 tanh, 1 softplus, 2 swish, 3 elu
  std::int64_t samples, probes, features, hidden;
  std::int64_t rows;            // samples of a tile, which go through a layer together: a multiple of kTraceSamples
  const TraceLayer<T>* layers;  // hidden + 1 of them, the last one giving y
  const TraceLayer<T>* back;    // the same transposed: the weights as they are, [outputs][columns of the inputs]
  const T *x, *left, *right;
  std::int64_t left_probe, left_sample, right_probe, right_sample;  // strides
  T *y, *trace;                      // forward
  T* kept;                           // what the forward leaves to the backward, or null: see trace_kept()
  std::int64_t kept_columns;
  std::int64_t powers;               // of the Jacobian, applied to the vectors on the left:
  T* products;                       // [powers][probes][samples][features]
  const T *grad_y, *grad_trace;      // backward
  T* grad_x;
};

constexpr std::int64_t trace_probes_held(std::int64_t probes) { return probes < kTraceProbes ? probes : kTraceProbes; }

// The numbers of `kept` before a tile that begins with sample `first`. A tile has, for each run of probes, [hidden][probes] matrices
// [rows][columns of the layer]: tangents that meet an activation; then as many as one layer's: vectors carried back to the last one.
template <typename T>
constexpr std::int64_t trace_kept(const TraceData<T>& data, std::int64_t first) {
  return first * (data.hidden + 1) * data.probes * data.kept_columns;
}

// Matrices of a tile's rows and the widest layer's columns that a call needs as scratch.
constexpr std::int64_t trace_scratch(std::int64_t hidden, std::int64_t probes) {
  return hidden + 3 + 2 * trace_probes_held(probes);
}
constexpr std::int64_t trace_backward_scratch(std::int64_t hidden, std::int64_t probes) {
  return 4 * hidden + 3 + (hidden + 4) * trace_probes_held(probes);
}

// Samples begin .. end; `widest` is the largest number of columns.
template <typename T>
using TraceKernel = void (*)(const TraceData<T>&, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end);

// Adds to `grads` the gradients of each layer: of the weight as `back` has it, and of the bias, [columns of the layer].
template <typename T>
using TraceBackwardKernel = void (*)(const TraceData<T>&, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end,
                                     T* grads);

// An activation between two layers that PyTorch multiplies by: of a [N, numbers], with tangents and carried [P, N, numbers].
template <typename T>
struct ActivationData {
  int activation;
  std::int64_t samples, numbers, probes;
  std::int64_t tangents_probe, tangents_sample, carried_probe, carried_sample;  // strides, the last two of a contraction alone
  const T *a, *tangents;
  T *value, *slope, *scaled;  // scaled: the tangents times the slope
  const T *gradient, *carried;  // backward, which reads value and slope
  T *grad_a, *scaled_carried;
};

// Pieces begin .. end of kActivationPiece numbers; each sample has whole pieces, the last one shorter.
template <typename T>
using ActivationKernel = void (*)(const ActivationData<T>&, std::int64_t begin, std::int64_t end);

struct TraceKernels {
  std::int64_t width;
  TraceKernel<float> run_float;
  TraceKernel<double> run_double;
  TraceKernel<float> powers_float;
  TraceKernel<double> powers_double;
  TraceBackwardKernel<float> backward_float;
  TraceBackwardKernel<double> backward_double;
  ActivationKernel<float> activation_float;
  ActivationKernel<double> activation_double;
  ActivationKernel<float> activation_backward_float;
  ActivationKernel<double> activation_backward_double;
  ActivationKernel<float> contraction_float;  // value = slope sum_p tangents_p carried_p
  ActivationKernel<double> contraction_double;
};

FASTGEN_ISA_TABLES(TraceKernels, trace_kernels)

}  // namespace fastgen
