// Affine autoregressive flows, feature by feature: fastgen::sequential_affine and its backward on the CPU.
#include "cpu/sequential_affine/sequential_affine.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"
#include "cpu/sequential_affine/sequential_affine_plan.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kSamples = 256;  // whose values and gradients are multiplied at once: they stay in the cache

template <typename T>
const T* read(const Tensor& tensor) {
  return tensor.const_data_ptr<T>();
}
template <typename T>
T* write(const Tensor& tensor) {
  return tensor.mutable_data_ptr<T>();
}

template <typename T>
Tensor packed_weights(const Sweep& sweep, const Tensor& parameters) {
  Tensor packed = torch::stable::new_empty(parameters, {sweep.weights()});
  const T* from = read<T>(parameters);
  T* to = write<T>(packed);
  parallel_for(0, sweep.steps().count, 16, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) sweep.pack(i, from, to);
  });
  return packed;
}

// -1 where it is beyond `most`.
std::int64_t sum_of(const std::vector<std::int64_t>& widths, std::int64_t most) {
  std::int64_t sum = 0;
  for (std::int64_t width : widths) {
    if (width > most - sum) return -1;
    sum += width;
  }
  return sum;
}

Layout checked_layout(const Tensor& u, const Tensor& offset, const Tensor& parameters, Tensor degrees,
                      const std::vector<std::int64_t>& widths) {
  STD_TORCH_CHECK(u.scalar_type() == ScalarType::Float || u.scalar_type() == ScalarType::Double, "u must be float32 or float64");
  for (const Tensor& tensor : {offset, parameters}) {
    STD_TORCH_CHECK(tensor.scalar_type() == u.scalar_type(), "offset and parameters must have the dtype of u");
  }
  STD_TORCH_CHECK(widths.size() >= 2 && *std::min_element(widths.begin(), widths.end()) > 0,
                  "widths must have the features and at least one hidden layer, each at least 1");
  STD_TORCH_CHECK(u.dim() == 2 && u.size(1) == widths[0], "u must be [N, ", widths[0], "]");
  STD_TORCH_CHECK(offset.dim() == 2 && offset.size(1) == widths[1] && (offset.size(0) == 1 || offset.size(0) == u.size(0)),
                  "offset must be [", u.size(0), ", ", widths[1], "] or [1, ", widths[1], "]");
  STD_TORCH_CHECK(
      degrees.scalar_type() == ScalarType::Long && degrees.dim() == 1 && degrees.size(0) == sum_of(widths, degrees.size(0)),
      "degrees must be int64, one for every feature and hidden unit");
  degrees = torch::stable::contiguous(degrees);
  const std::int64_t* numbers = read<std::int64_t>(degrees);
  std::vector<bool> seen(widths[0] + 1);
  for (std::int64_t i = 0; i < degrees.size(0); ++i) {
    STD_TORCH_CHECK(numbers[i] >= 0 && numbers[i] <= widths[0], "degrees must stay within 0 to ", widths[0]);
    if (i >= widths[0]) continue;
    STD_TORCH_CHECK(numbers[i] > 0 && !seen[numbers[i]], "the features' degrees must be 1 to ", widths[0], ", each once");
    seen[numbers[i]] = true;
  }
  Layout layout(numbers, widths);
  STD_TORCH_CHECK(parameters.dim() == 1 && parameters.size(0) == layout.parameters(), "parameters must be [", layout.parameters(),
                  "]");
  return layout;
}

SequentialAffineShape shape_of(const Layout& layout, std::int64_t samples, std::int64_t lanes, std::int64_t activation,
                               std::int64_t parameterisation, double min_scale, double bound) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, "activation must be 0, 1, 2 or 3, got ", activation);
  STD_TORCH_CHECK(parameterisation >= 0 && parameterisation <= 3, "parameterisation must be 0, 1, 2 or 3, got ",
                  parameterisation);
  const Rows first = layout.all(1);
  return {samples,
          layout.features(),
          layout.rows(),
          first.begin,
          layout.all(layout.groups() - 1).begin,
          first.count(),
          layout.rows() + lanes,
          static_cast<int>(activation),
          static_cast<int>(parameterisation),
          min_scale,
          bound};
}

template <typename T>
std::vector<T> biases_of(const Layout& layout, const T* parameters) {
  std::vector<T> biases;
  for (std::int64_t group = 1; group < layout.groups(); ++group) {
    const Rows rows = layout.all(group);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      biases.push_back(parameters[layout.maps()[group - 1].bias() + layout.unit(row)]);
    }
  }
  return biases;
}

template <typename T, typename Kernel>
void over_panels(const SequentialAffineShape& shape, const SequentialAffineData<T>& data, std::int64_t lanes, Kernel kernel) {
  parallel_for(0, (shape.samples + lanes - 1) / lanes, 1, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(sequential_affine_scratch(shape, lanes)) * sizeof(T));
    for (std::int64_t panel = begin; panel < end; ++panel) kernel(shape, data, panel, reinterpret_cast<T*>(scratch.data()));
  });
}

template <typename T>
const SequentialAffineKernels<T>& kernels_of();
template <>
const SequentialAffineKernels<float>& kernels_of() {
  return sequential_affine_kernels().of_float;
}
template <>
const SequentialAffineKernels<double>& kernels_of() {
  return sequential_affine_kernels().of_double;
}

// Gradients of a map's weight and bias from the rows of all samples. Every sum has one fixed order.
template <typename T>
void add_parameter_gradients(const Layout& layout, const SequentialAffineShape& shape, const SequentialAffineData<T>& data,
                             std::int64_t group, T* grad_parameters) {
  const SequentialAffineKernels<T>& kernels = kernels_of<T>();
  const Map& map = layout.maps()[group - 1];
  const Rows to = layout.all(group), from = layout.all(group - 1);
  const bool outputs = group + 1 == layout.groups();
  std::vector<std::int64_t> used(to.count());  // how many inputs a row has
  for (std::int64_t d = 0; d <= layout.features(); ++d) {
    const Rows rows = layout.of(group, d, d + 1);
    const std::int64_t inputs = layout.of(group - 1, 0, outputs ? d : d + 1).count();
    std::fill(used.begin() + (rows.begin - to.begin), used.begin() + (rows.end - to.begin), inputs);
  }
  const std::int64_t stride = (from.count() + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  const std::int64_t tiles = (to.count() + kernels.tile - 1) / kernels.tile;
  parallel_for(0, tiles, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t own = (end - begin) * kernels.tile;
    const Arena arena(static_cast<std::size_t>(own * (stride + 1) + kSamples * (stride + kernels.tile)) * sizeof(T));
    T *sums = reinterpret_cast<T*>(arena.data()), *biases = sums + own * stride;
    T *values = biases + own, *gradients = values + kSamples * stride;
    // a thread takes tiles from both ends: the last rows have the most inputs
    const auto tile_rows = [&](std::int64_t i) {
      const std::int64_t first = (i % 2 ? tiles - 1 - i / 2 : i / 2) * kernels.tile;
      return Rows{first, std::min(first + kernels.tile, to.count())};
    };
    for (std::int64_t sample = 0; sample < shape.samples; sample += kSamples) {
      const std::int64_t samples = std::min(kSamples, shape.samples - sample);
      for (std::int64_t column = 0; column < stride; column += kernels.lanes) {
        for (std::int64_t n = 0; n < samples; ++n) {
          const T* row = data.values + (sample + n) * shape.stride + from.begin + column;
          std::copy_n(row, kernels.lanes, values + column * samples + n * kernels.lanes);
        }
      }
      for (std::int64_t i = begin; i < end; ++i) {
        const Rows rows = tile_rows(i);
        const std::int64_t place = (i - begin) * kernels.tile, count = rows.count();
        for (std::int64_t n = 0; n < samples; ++n) {
          const T* row = data.gradients + (sample + n) * shape.stride + to.begin + rows.begin;
          std::copy_n(row, count, gradients + n * count);
          for (std::int64_t r = 0; r < count; ++r) biases[place + r] += row[r];
        }
        kernels.outer(gradients, values, samples, count, used[rows.end - 1], sums + place * stride, stride);
      }
    }
    for (std::int64_t i = begin; i < end; ++i) {
      const Rows rows = tile_rows(i);
      for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const std::int64_t place = (i - begin) * kernels.tile + row - rows.begin, unit = layout.unit(to.begin + row);
        T* weights = grad_parameters + map.weight + unit * map.inputs;
        std::fill(weights, weights + map.inputs, T(0));
        for (std::int64_t k = 0; k < used[row]; ++k) weights[layout.unit(from.begin + k)] = sums[place * stride + k];
        grad_parameters[map.bias() + unit] = biases[place];
      }
    }
  });
}

template <typename T>
void add_offset_gradients(const Layout& layout, const SequentialAffineShape& shape, const SequentialAffineData<T>& data,
                          const T* grad_parameters, bool shared, T* grad_offset) {
  if (shared) {
    std::memcpy(grad_offset, grad_parameters + layout.maps()[0].bias(), shape.first_width * sizeof(T));
    return;
  }
  for (std::int64_t n = 0; n < shape.samples; ++n) {
    const T* gradients = data.gradients + n * shape.stride + shape.hidden;
    for (std::int64_t k = 0; k < shape.first_width; ++k) {
      grad_offset[n * shape.first_width + layout.unit(shape.hidden + k)] = gradients[k];
    }
  }
}

std::tuple<Tensor, Tensor> sequential_affine_cpu(Tensor u, Tensor offset, Tensor parameters, Tensor degrees,
                                                 std::vector<std::int64_t> widths, std::int64_t activation,
                                                 std::int64_t parameterisation, double min_scale, double bound) {
  const Layout layout = checked_layout(u, offset, parameters, degrees, widths);
  u = torch::stable::contiguous(u);
  offset = torch::stable::contiguous(offset);
  parameters = torch::stable::contiguous(parameters);
  Tensor x = torch::stable::new_empty(u, u.sizes()), log_det = torch::stable::new_empty(u, {u.size(0)});
  const auto forward = [&](auto zero) {
    using T = decltype(zero);
    const SequentialAffineKernels<T>& kernels = kernels_of<T>();
    const SequentialAffineShape shape =
        shape_of(layout, u.size(0), kernels.lanes, activation, parameterisation, min_scale, bound);
    const Sweep down(layout, kernels.tile, false);
    const Tensor packed = packed_weights<T>(down, parameters);
    const std::vector<T> biases = biases_of(layout, read<T>(parameters));
    SequentialAffineData<T> data{};
    data.down = down.steps();
    data.packed_down = read<T>(packed);
    data.unit = layout.units().data();
    data.bias = biases.data();
    data.u = read<T>(u);
    data.offset = read<T>(offset);
    data.offset_stride = offset.size(0) == 1 ? 0 : shape.first_width;
    data.x = write<T>(x);
    data.log_det = write<T>(log_det);
    over_panels(shape, data, kernels.lanes, kernels.forward);
  };
  u.scalar_type() == ScalarType::Float ? forward(0.0f) : forward(0.0);
  return {x, log_det};
}

std::tuple<Tensor, Tensor, Tensor> sequential_affine_backward_cpu(Tensor grad_x, Tensor grad_log_det, Tensor u, Tensor offset,
                                                                  Tensor parameters, Tensor degrees,
                                                                  std::vector<std::int64_t> widths, std::int64_t activation,
                                                                  std::int64_t parameterisation, double min_scale, double bound) {
  const Layout layout = checked_layout(u, offset, parameters, degrees, widths);
  STD_TORCH_CHECK(grad_x.scalar_type() == u.scalar_type() && grad_x.numel() == u.numel(), "grad_x must be like u");
  STD_TORCH_CHECK(grad_log_det.scalar_type() == u.scalar_type() && grad_log_det.numel() == u.size(0), "grad_log_det must be [",
                  u.size(0), "]");
  u = torch::stable::contiguous(u);
  offset = torch::stable::contiguous(offset);
  parameters = torch::stable::contiguous(parameters);
  grad_x = torch::stable::contiguous(grad_x);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  Tensor grad_u = torch::stable::new_empty(u, u.sizes()), grad_offset = torch::stable::new_empty(offset, offset.sizes());
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const auto backward = [&](auto zero) {
    using T = decltype(zero);
    const SequentialAffineKernels<T>& kernels = kernels_of<T>();
    const SequentialAffineShape shape =
        shape_of(layout, u.size(0), kernels.lanes, activation, parameterisation, min_scale, bound);
    const Sweep down(layout, kernels.tile, false), up(layout, kernels.tile, true);
    const Tensor packed_down = packed_weights<T>(down, parameters), packed_up = packed_weights<T>(up, parameters);
    const std::vector<T> biases = biases_of(layout, read<T>(parameters));
    Tensor values = torch::stable::new_empty(u, {shape.samples, shape.stride});
    Tensor gradients = torch::stable::new_empty(u, {shape.samples, shape.stride});
    SequentialAffineData<T> data{};
    data.down = down.steps();
    data.up = up.steps();
    data.packed_down = read<T>(packed_down);
    data.packed_up = read<T>(packed_up);
    data.unit = layout.units().data();
    data.bias = biases.data();
    data.u = read<T>(u);
    data.offset = read<T>(offset);
    data.offset_stride = offset.size(0) == 1 ? 0 : shape.first_width;
    data.grad_x = read<T>(grad_x);
    data.grad_log_det = read<T>(grad_log_det);
    data.grad_u = write<T>(grad_u);
    data.values = write<T>(values);
    data.gradients = write<T>(gradients);
    over_panels(shape, data, kernels.lanes, kernels.backward);
    for (std::int64_t group = 1; group < layout.groups(); ++group) {
      add_parameter_gradients(layout, shape, data, group, write<T>(grad_parameters));
    }
    add_offset_gradients(layout, shape, data, read<T>(grad_parameters), offset.size(0) == 1, write<T>(grad_offset));
  };
  u.scalar_type() == ScalarType::Float ? backward(0.0f) : backward(0.0);
  return {grad_u, grad_offset, grad_parameters};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("sequential_affine", TORCH_BOX(&fastgen::sequential_affine_cpu));
  m.impl("sequential_affine_backward", TORCH_BOX(&fastgen::sequential_affine_backward_cpu));
}
