// Masked 2-d convolution by the taps that its mask leaves: fastgen::masked_conv2d_taps and its backward on the CPU.
#include "cpu/masked_conv2d/masked_conv2d_taps.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <tuple>
#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kBandBytes = 768 << 10;  // of a band's padded copy: most of a second-level cache
constexpr std::int64_t kLeastRows = 4;          // of a band
constexpr std::int64_t kWork = 16;              // bands at least, if rows suffice: any number of threads up to it
constexpr std::int64_t kTurned = 256;  // positions, about, of a band of the backward: what a product reads fits the cache
constexpr std::int64_t kTogether = 1024;  // positions whose gradients are summed in the dtype of x, then in float64
constexpr std::int64_t kRuns = 16;  // of bands, at most, whose gradients are summed apart
constexpr std::int64_t kRunsBytes = 16 << 20;

// The taps of which any output sees any channel, and where they lie. Of those that lie beyond the image, whatever the dilation, no
// output sees anything but zeros.
struct Taps {
  std::vector<std::int64_t> places, down, right;

  Taps(const Tensor& x, const Tensor& seen, std::int64_t dilation) {
    const bool* any = seen.const_data_ptr<bool>();
    const std::int64_t height = seen.size(2), width = seen.size(3), size = height * width, pairs = seen.size(0) * seen.size(1);
    const std::int64_t centre = height > 1 ? width / 2 : width - 1;
    std::vector<char> shown(size);
    for (std::int64_t pair = 0; pair < pairs; ++pair)
      for (std::int64_t i = 0; i < size; ++i) shown[i] |= any[pair * size + i];
    const std::int64_t most_down = (x.size(2) - 1) / dilation, most_right = (x.size(3) - 1) / dilation;
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t rows = i / width - (height - 1), columns = i % width - centre;
      if (!shown[i] || std::abs(rows) > most_down || std::abs(columns) > most_right) continue;
      places.push_back(i);
      down.push_back(rows * dilation);
      right.push_back(columns * dilation);
    }
  }

  std::int64_t count() const { return static_cast<std::int64_t>(places.size()); }

  // Those that reach from where it is read back to what reads it.
  Taps back() const {
    Taps turned = *this;
    for (auto* offsets : {&turned.down, &turned.right})
      for (std::int64_t& offset : *offsets) offset = -offset;
    return turned;
  }
};

std::int64_t least_of(const std::vector<std::int64_t>& offsets) {
  return offsets.empty() ? 0 : std::min<std::int64_t>(0, *std::min_element(offsets.begin(), offsets.end()));
}
std::int64_t most_of(const std::vector<std::int64_t>& offsets) {
  return offsets.empty() ? 0 : std::max<std::int64_t>(0, *std::max_element(offsets.begin(), offsets.end()));
}

template <typename T>
MaskedConv2dTaps<T> task_of(const Tensor& x, std::int64_t outputs, const Taps& taps) {
  MaskedConv2dTaps<T> task{};
  task.samples = x.size(0);
  task.channels = x.size(1);
  task.outputs = outputs;
  task.height = x.size(2);
  task.width = x.size(3);
  task.taps = taps.count();
  task.down = taps.down.data();
  task.right = taps.right.data();
  task.above = -least_of(taps.down);
  task.below = most_of(taps.down);
  task.before = -least_of(taps.right);
  task.after = most_of(taps.right);
  task.x = x.const_data_ptr<T>();
  return task;
}

// Bands of `rows` rows of every sample.
struct Bands {
  std::int64_t samples, height, rows;

  std::int64_t of_sample() const { return (height + rows - 1) / rows; }
  std::int64_t count() const { return samples * of_sample(); }
  MaskedConv2dBand band(std::int64_t i) const {
    const std::int64_t first = i % of_sample() * rows;
    return {i / of_sample(), first, std::min(rows, height - first)};
  }
};

template <typename T>
void convolve(MaskedConv2dTaps<T> task, MaskedConv2dKernel<T> kernel) {
  const std::int64_t each = (kWork + task.samples - 1) / std::max<std::int64_t>(1, task.samples);
  const std::int64_t row_bytes = task.padded_channels() * task.stride() * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t fitting = kBandBytes / std::max<std::int64_t>(1, row_bytes) - task.above - task.below;
  const std::int64_t rows = std::max(kLeastRows, std::min(fitting, (task.height + each - 1) / each));
  task.band = std::min(rows, std::max<std::int64_t>(1, task.height));
  const Bands bands{task.samples, task.height, task.band};
  parallel_for(0, bands.count(), 1, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(task.scratch()) * sizeof(T));
    for (std::int64_t i = begin; i < end; ++i) kernel(task, reinterpret_cast<T*>(scratch.data()), bands.band(i));
  });
}

// function(place in the weight [O, C, h, w], output, channel, tap) for all that is seen.
template <typename Function>
void each_seen(const Tensor& seen, const Taps& taps, Function function) {
  const bool* any = seen.const_data_ptr<bool>();
  const std::int64_t outputs = seen.size(0), channels = seen.size(1), size = seen.size(2) * seen.size(3);
  for (std::int64_t o = 0; o < outputs; ++o)
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t tap = 0; tap < taps.count(); ++tap) {
        const std::int64_t place = (o * channels + c) * size + taps.places[tap];
        if (any[place]) function(place, o, c, tap);
      }
}

// The gradient of the weight, of which what is not seen has zeros.
template <typename T>
void weigh(MaskedConv2dTaps<T> task, const Tensor& seen, const Taps& taps, MaskedConv2dBackward<T> kernel, const Tensor& to) {
  const std::int64_t columns = task.padded_channels(), numbers = task.outputs * task.taps * columns;
  const std::int64_t width = std::max<std::int64_t>(1, task.width), height = std::max<std::int64_t>(1, task.height);
  task.band = std::clamp<std::int64_t>(kTurned / width, 1, height);
  const Bands bands{task.samples, task.height, task.band};
  const std::int64_t most = kRunsBytes / static_cast<std::int64_t>(sizeof(double)) / std::max<std::int64_t>(1, numbers);
  std::int64_t runs = kRuns;  // a power of two: cores are, mostly
  while (runs > 2 && (runs > most || runs > bands.count())) runs /= 2;
  runs = std::min(runs, bands.count());
  const std::int64_t together = std::max<std::int64_t>(1, kTogether / (task.band * width));
  const std::unique_ptr<double[]> sums(new double[runs * numbers]);
  parallel_for(0, runs, 1, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(task.scratch() + numbers) * sizeof(T));
    T *part = reinterpret_cast<T*>(scratch.data()), *own = part + numbers;
    for (std::int64_t run = begin; run < end; ++run) {
      double* sum = sums.get() + run * numbers;
      std::fill_n(sum, numbers, 0.0);
      const std::int64_t last = (run + 1) * bands.count() / runs;
      for (std::int64_t i = run * bands.count() / runs; i < last; i += together) {
        std::fill_n(part, numbers, T(0));
        for (std::int64_t band = i; band < std::min(i + together, last); ++band) kernel(task, own, bands.band(band), part);
        for (std::int64_t k = 0; k < numbers; ++k) sum[k] += part[k];
      }
    }
  });
  T* place_of = to.mutable_data_ptr<T>();
  std::fill_n(place_of, to.numel(), T(0));
  each_seen(seen, taps, [&](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t tap) {
    double total = 0;
    for (std::int64_t run = 0; run < runs; ++run) total += sums[run * numbers + (o * task.taps + tap) * columns + c];
    place_of[place] = static_cast<T>(total);
  });
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& seen, std::int64_t dilation) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() && bias.scalar_type() == x.scalar_type(),
                  "weight and bias must have the dtype of x");
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && weight.size(1) == x.size(1),
                  "x must be [N, in, H, W] and weight [out, in, h, w]");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), "bias must be [out]");
  STD_TORCH_CHECK(seen.scalar_type() == ScalarType::Bool && seen.dim() == 4, "seen must be bool, of weight's shape");
  for (int i = 0; i < 4; ++i) STD_TORCH_CHECK(seen.size(i) == weight.size(i), "seen must be bool, of weight's shape");
  STD_TORCH_CHECK(dilation > 0, "dilation must be at least 1, got ", dilation);
  STD_TORCH_CHECK(weight.size(2) > 0 && weight.size(3) > 0, "weight must have a row and a column at least");
}

template <typename Function>
void in_type_of(const Tensor& x, Function function) {
  const MaskedConv2dKernels& k = masked_conv2d_kernels();
  x.scalar_type() == ScalarType::Float ? function(0.0f, k.forward_float, k.backward_float)
                                       : function(0.0, k.forward_double, k.backward_double);
}

Tensor masked_conv2d_taps_cpu(Tensor x, Tensor weight, Tensor bias, Tensor seen, std::int64_t dilation) {
  check(x, weight, bias, seen, dilation);
  for (Tensor* tensor : {&x, &weight, &bias, &seen}) *tensor = torch::stable::contiguous(*tensor);
  const std::int64_t outputs = weight.size(0), channels = weight.size(1);
  const Taps taps(x, seen, dilation);
  Tensor y = torch::stable::new_empty(x, {x.size(0), outputs, x.size(2), x.size(3)});
  in_type_of(x, [&](auto zero, auto forward, auto) {
    using T = decltype(zero);
    MaskedConv2dTaps<T> task = task_of<T>(x, outputs, taps);
    std::vector<T> matrix(outputs * taps.count() * channels);
    const T* from = weight.const_data_ptr<T>();
    each_seen(seen, taps, [&](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t tap) {
      matrix[(o * taps.count() + tap) * channels + c] = from[place];
    });
    task.matrix = matrix.data();
    task.bias = bias.const_data_ptr<T>();
    task.y = y.mutable_data_ptr<T>();
    convolve(task, forward);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> masked_conv2d_taps_backward_cpu(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor seen,
                                                                   std::int64_t dilation) {
  check(x, weight, bias, seen, dilation);
  for (Tensor* tensor : {&grad, &x, &weight, &bias, &seen}) *tensor = torch::stable::contiguous(*tensor);
  const std::int64_t outputs = weight.size(0), channels = weight.size(1);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.dim() == 4 && grad.size(0) == x.size(0) &&
                      grad.size(1) == outputs && grad.size(2) == x.size(2) && grad.size(3) == x.size(3),
                  "grad must be like the result");
  const Taps taps(x, seen, dilation), back = taps.back();
  Tensor grad_x = torch::stable::new_empty(x, x.sizes()), grad_weight = torch::stable::new_empty(weight, weight.sizes());
  in_type_of(x, [&](auto zero, auto forward, auto backward) {
    using T = decltype(zero);
    MaskedConv2dTaps<T> there = task_of<T>(grad, channels, back);
    std::vector<T> matrix(channels * taps.count() * outputs);
    const T* from = weight.const_data_ptr<T>();
    each_seen(seen, taps, [&](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t tap) {
      matrix[(c * taps.count() + tap) * outputs + o] = from[place];
    });
    there.matrix = matrix.data();
    there.y = grad_x.mutable_data_ptr<T>();
    convolve(there, forward);
    MaskedConv2dTaps<T> task = task_of<T>(x, outputs, taps);
    task.grad = grad.const_data_ptr<T>();
    weigh(task, seen, taps, backward, grad_weight);
  });
  return {grad_x, grad_weight, torch::stable::sum(grad, torch::headeronly::IntHeaderOnlyArrayRef({0, 2, 3}))};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("masked_conv2d_taps", TORCH_BOX(&fastgen::masked_conv2d_taps_cpu));
  m.impl("masked_conv2d_taps_backward", TORCH_BOX(&fastgen::masked_conv2d_taps_backward_cpu));
}
