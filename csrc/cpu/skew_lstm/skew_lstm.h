// The recurrence of the Row LSTM and of the Diagonal BiLSTM: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kLstmRows = 4;  // outputs that are computed together: the gates of a unit, or units of the backward

// Weights are packed in blocks of kLstmRows outputs: for each input channel and tap, the coefficients of the block's outputs.
template <typename T>
struct SkewLstm {
  std::int64_t hidden, steps, positions, taps;
  const T *gates, *h0, *c0;
  const T *forwards, *backwards;  // packed; the latter has the taps in the reverse order
  T *h, *c;
  const T *grad_h, *grad_c;
  T *grad_gates, *grad_h0, *grad_c0;
};

// Samples begin .. end, one after the other; the backward adds to the gradient of the weight.
struct SkewLstmKernels {
  std::int64_t lanes;
  void (*forward_float)(const SkewLstm<float>&, std::int64_t begin, std::int64_t end, float* scratch);
  void (*forward_double)(const SkewLstm<double>&, std::int64_t begin, std::int64_t end, double* scratch);
  void (*backward_float)(const SkewLstm<float>&, std::int64_t begin, std::int64_t end, float* grad_weight, float* scratch);
  void (*backward_double)(const SkewLstm<double>&, std::int64_t begin, std::int64_t end, double* grad_weight, double* scratch);
};

// A row of positions in scratch: whole vectors, and zeros for the taps that reach beyond the ends.
struct LstmRow {
  std::int64_t columns, size;
};

inline LstmRow lstm_row(std::int64_t positions, std::int64_t taps, std::int64_t lanes) {
  const std::int64_t columns = (positions + lanes - 1) / lanes * lanes;
  return {columns, columns + taps - 1};
}

// Zeroed numbers that a kernel needs: h and c of two steps; backward, those of all steps and the gates' gradients.
inline std::int64_t lstm_scratch(std::int64_t hidden, std::int64_t steps, LstmRow row, bool backward) {
  const std::int64_t kept = backward ? steps + 1 : 2;
  return hidden * kept * (row.size + row.columns) + (backward ? hidden * (4 * steps * row.size + row.columns) : 0);
}

FASTGEN_ISA_TABLES(SkewLstmKernels, skew_lstm_kernels)

}  // namespace fastgen
