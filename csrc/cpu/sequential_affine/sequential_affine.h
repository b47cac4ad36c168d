// Affine autoregressive flows, feature by feature: the program of a sweep, and what the kernels of the instruction sets compute.
//
// Samples lie in lanes, a panel of them at a time. A panel has one row for every number of a sample: the features, the hidden
// units of every layer, and shift and raw scale of every feature; each group in ascending order of degrees. What a row may depend
// on then is a run of rows of the group before, and a sweep is a list of small products over such runs.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

struct SequentialAffineStep {
  enum Kind {
    product,  // rows to .. to + rows += weights [count, rows] of rows from .. from + count
    activate,  // the activation of rows to .. to + rows
    draw,  // feature `to` from its shift, its raw scale and u
    derive,  // gradients of rows to .. to + rows: through the activation
    undraw,  // gradients of shift, raw scale and u of feature `to`
  } kind;
  std::int64_t to, rows, from, count, weights;
};

struct SequentialAffineShape {
  std::int64_t samples, features, rows;  // rows: of a panel
  std::int64_t hidden, outputs;  // where the first hidden layer and the outputs begin
  std::int64_t first_width;  // of the first hidden layer
  std::int64_t stride;  // numbers a sample in `values` and `gradients` of the data
  int activation;  // 0 relu, 1 tanh, 2 sigmoid, 3 elu
  int parameterisation;  // 0 exp, 1 sigmoid, 2 softplus, 3 bounded
  double min_scale, bound;
};

struct SequentialAffineSweep {
  const SequentialAffineStep* steps;
  std::int64_t count;
};

template <typename T>
struct SequentialAffineData {
  SequentialAffineSweep down, up;  // `up` goes through the degrees in reverse, for the gradients
  const T *packed_down, *packed_up;
  const std::int64_t* unit;  // of every row of the features and of the first hidden layer: its number among them
  const T* bias;  // of the rows from `hidden` on
  const T *u, *offset;
  std::int64_t offset_stride;  // 0 where all samples share one
  T *x, *log_det;  // forward
  const T *grad_x, *grad_log_det;
  T* grad_u;
  T *values, *gradients;  // [samples, stride]: the rows of every sample, and their gradients, before the activation
};

// `panel` numbers the panels; scratch holds sequential_affine_scratch() numbers.
template <typename T>
struct SequentialAffineKernels {
  std::int64_t lanes;  // samples of a panel
  std::int64_t tile;  // the most rows of a product
  void (*forward)(const SequentialAffineShape&, const SequentialAffineData<T>&, std::int64_t panel, T* scratch);
  void (*backward)(const SequentialAffineShape&, const SequentialAffineData<T>&, std::int64_t panel, T* scratch);
  // sums [rows, columns] += the products of gradients [samples, rows] and values [columns / lanes, samples, lanes]; `columns` is
  // rounded up to whole `lanes`
  void (*outer)(const T* gradients, const T* values, std::int64_t samples, std::int64_t rows, std::int64_t columns, T* sums,
                std::int64_t stride);
};

// Values and their gradients, each with so many rows beyond its own that whole vectors of rows can be read; u, its gradient, the
// log-determinant and its gradient.
inline std::int64_t sequential_affine_scratch(const SequentialAffineShape& shape, std::int64_t lanes) {
  return (2 * (shape.rows + lanes) + 2 * shape.features + 2) * lanes;
}

struct SequentialAffineTable {
  SequentialAffineKernels<float> of_float;
  SequentialAffineKernels<double> of_double;
};

FASTGEN_ISA_TABLES(SequentialAffineTable, sequential_affine_kernels)

}  // namespace fastgen
