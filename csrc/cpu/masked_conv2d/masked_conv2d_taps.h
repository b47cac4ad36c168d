// A convolution by some taps of its kernel, at stride 1: what the kernels of the instruction sets compute.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace fastgen {

constexpr std::int64_t kTapsLanes = 16;  // of the widest instruction set

// y [N][O][H][W] of x [N][C][H][W], zeros around it: y[o][p] = bias[o] + sum over taps and channels of
// matrix[o][tap][c] x[c][p + tap].
template <typename T>
struct MaskedConv2dTaps {
  std::int64_t samples, channels, outputs, height, width;
  std::int64_t taps;
  const std::int64_t *down, *right;  // where a tap lies, which may be negative
  std::int64_t above, below, before, after;  // rows and columns of zeros that the taps reach
  std::int64_t band;                         // rows of a band at most
  const T *x, *matrix;
  const T* bias;  // or null
  T* y;
  const T* grad;  // of y, for the gradient of the matrix

  // Numbers of a row of a channel with zeros on both sides, as far as vectors read.
  std::int64_t stride() const { return before + (width + kTapsLanes - 1) / kTapsLanes * kTapsLanes + after; }
  std::int64_t padded_channels() const { return (channels + 2 * kTapsLanes - 1) / (2 * kTapsLanes) * 2 * kTapsLanes; }

  // Rows of a band and those that its taps reach; the numbers that they take, zeros at first; and with a band's sums.
  std::int64_t rows() const { return band + above + below; }
  std::int64_t image() const { return (rows() * stride() + kTapsLanes - 1) / kTapsLanes * kTapsLanes * padded_channels(); }
  std::int64_t scratch() const { return image() + 2 * kTapsLanes * outputs; }
};

// Rows first .. first + count of the sample n.
struct MaskedConv2dBand {
  std::int64_t n, first, count;
};

template <typename T>
using MaskedConv2dKernel = void (*)(const MaskedConv2dTaps<T>&, T* scratch, const MaskedConv2dBand&);

// Adds a band's part of the gradient of the matrix, [O][taps][padded channels].
template <typename T>
using MaskedConv2dBackward = void (*)(const MaskedConv2dTaps<T>&, T* scratch, const MaskedConv2dBand&, T* of_matrix);

struct MaskedConv2dKernels {
  MaskedConv2dKernel<float> forward_float;
  MaskedConv2dKernel<double> forward_double;
  MaskedConv2dBackward<float> backward_float;
  MaskedConv2dBackward<double> backward_double;
};

FASTGEN_ISA_TABLES(MaskedConv2dKernels, masked_conv2d_kernels)

}  // namespace fastgen
