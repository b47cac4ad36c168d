// The affine map of a coupling layer: fastgen::affine_coupling, affine_coupling_ and affine_coupling_backward on the CPU.
#include "cpu/affine_coupling/affine_coupling.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 16384;  // elements a thread takes at least: about 1 ns each

AffineCouplingShape shape_of(const Tensor& x, const Tensor& parameters, const Tensor& scale, const std::optional<Tensor>& mask,
                             bool inverse, std::int64_t parameterisation, bool interleaved) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(parameters.scalar_type() == x.scalar_type() && scale.scalar_type() == x.scalar_type(),
                  "parameters and scale must have the dtype of x");
  STD_TORCH_CHECK(parameterisation >= 0 && parameterisation <= 2, "parameterisation must be 0, 1 or 2, got ", parameterisation);
  STD_TORCH_CHECK(x.dim() >= 2 && parameters.dim() == x.dim(), "x and parameters must be [N, C, ...]");
  const std::int64_t channels = x.size(1);
  std::int64_t positions = 1, elements = 0;
  bool too_large = false;
  for (std::int64_t d = 0; d < x.dim(); ++d) {
    const std::int64_t numbers = d == 1 ? 2 : 1;  // for each channel of x
    STD_TORCH_CHECK(parameters.size(d) % numbers == 0 && parameters.size(d) / numbers == x.size(d),
                    "parameters does not fit x in dimension ", d);
    if (d > 1) too_large |= __builtin_mul_overflow(positions, x.size(d), &positions);
  }
  too_large |= __builtin_mul_overflow(channels, positions, &elements);
  STD_TORCH_CHECK(!too_large, "x has too many elements");
  STD_TORCH_CHECK(scale.numel() == x.size(1), "scale must have a number for each channel");
  STD_TORCH_CHECK(!mask || (mask->scalar_type() == ScalarType::Byte && mask->numel() == elements),
                  "mask must be uint8, one number for each element of a sample");
  const bool by_channel = positions > 1 && (interleaved || parameterisation == 1);
  const std::int64_t pieces = by_channel ? channels : (elements + kAffineCouplingPiece - 1) / kAffineCouplingPiece;
  return {inverse, static_cast<int>(parameterisation), interleaved, channels, positions, elements, by_channel, pieces};
}

template <typename T>
AffineCouplingData<T> inputs_of(const Tensor& x, const Tensor& parameters, const Tensor& scale,
                                const std::optional<Tensor>& mask) {
  AffineCouplingData<T> data{};
  data.x = x.const_data_ptr<T>();
  data.parameters = parameters.const_data_ptr<T>();
  data.scale = scale.const_data_ptr<T>();
  data.mask = mask ? mask->const_data_ptr<std::uint8_t>() : nullptr;
  return data;
}

template <typename T>
void run(const AffineCouplingShape& shape, const AffineCouplingData<T>& data, std::int64_t samples,
         AffineCouplingKernel<T> kernel) {
  const std::int64_t pieces = shape.pieces;
  if (samples * pieces == 0) return;
  const std::int64_t size = std::max<std::int64_t>(1, shape.elements / pieces);
  parallel_for(0, samples * pieces, std::max<std::int64_t>(1, kGrain / size),
               [&](std::int64_t begin, std::int64_t end) { kernel(shape, data, begin, end); });
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& mask) {
  return mask ? std::optional<Tensor>(torch::stable::contiguous(*mask)) : std::nullopt;
}

// Writes y, which may be x itself; returns the log-determinant.
template <typename T>
void forward_into(const AffineCouplingShape& shape, AffineCouplingData<T> data, const Tensor& y, const Tensor& log_det,
                  AffineCouplingKernel<T> kernel) {
  const std::int64_t samples = y.size(0), pieces = shape.pieces;
  std::vector<double> parts(samples * pieces);
  data.y = y.mutable_data_ptr<T>();
  data.log_det = parts.data();
  run(shape, data, samples, kernel);
  T* to = log_det.mutable_data_ptr<T>();
  for (std::int64_t n = 0; n < samples; ++n) {
    double sum = 0;
    for (std::int64_t j = 0; j < pieces; ++j) sum += parts[n * pieces + j];
    to[n] = static_cast<T>(sum);
  }
}

Tensor transform(const Tensor& x, Tensor parameters, Tensor scale, std::optional<Tensor> mask, const Tensor& y,
                 const AffineCouplingShape& shape) {
  parameters = torch::stable::contiguous(parameters);
  scale = torch::stable::contiguous(scale);
  mask = contiguous(mask);
  Tensor log_det = torch::stable::new_empty(x, {x.size(0)});
  const AffineCouplingKernels& kernels = affine_coupling_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    forward_into(shape, inputs_of<float>(x, parameters, scale, mask), y, log_det, kernels.forward_float);
  } else {
    forward_into(shape, inputs_of<double>(x, parameters, scale, mask), y, log_det, kernels.forward_double);
  }
  return log_det;
}

std::tuple<Tensor, Tensor> affine_coupling_cpu(Tensor x, Tensor parameters, Tensor scale, std::optional<Tensor> mask,
                                               bool inverse, std::int64_t parameterisation, bool interleaved) {
  const AffineCouplingShape shape = shape_of(x, parameters, scale, mask, inverse, parameterisation, interleaved);
  x = torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  Tensor log_det = transform(x, parameters, scale, mask, y, shape);
  return {y, log_det};
}

Tensor affine_coupling_over_cpu(Tensor x, Tensor parameters, Tensor scale, std::optional<Tensor> mask, bool inverse,
                                std::int64_t parameterisation, bool interleaved) {
  const AffineCouplingShape shape = shape_of(x, parameters, scale, mask, inverse, parameterisation, interleaved);
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous to be written over");
  parameters = torch::stable::contiguous(parameters);
  const char *begin = static_cast<const char*>(x.const_data_ptr()),
             *other = static_cast<const char*>(parameters.const_data_ptr());
  const std::int64_t bytes = x.numel() * (x.scalar_type() == ScalarType::Float ? 4 : 8);
  STD_TORCH_CHECK(bytes == 0 || begin + bytes <= other || other + 2 * bytes <= begin, "parameters must not share memory with x");
  const Tensor log_det = transform(x, parameters, scale, mask, x, shape);
  Tensor over = x, none = torch::stable::narrow(over, 0, 0, 0);
  torch::stable::zero_(none);  // so that autograd learns of the writing: PyTorch's own operations count the versions of a tensor
  return log_det;
}

// Whether a tensor is one number, expanded, as is the gradient of a sum.
bool is_one_number(const Tensor& tensor) {
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1 && (tensor.size(d) == 0 || tensor.stride(d) != 0)) return false;
  }
  return true;
}

template <typename T>
void backward_into(const AffineCouplingShape& shape, AffineCouplingData<T> data, const Tensor& grad_y, const Tensor& grad_log_det,
                   const Tensor& grad_x, const Tensor& grad_parameters, const Tensor& grad_scale,
                   AffineCouplingKernel<T> kernel) {
  const std::int64_t samples = grad_x.size(0), channels = shape.channels;
  std::vector<double> parts(shape.parameterisation == 1 ? samples * channels : 0);
  data.grad_y = grad_y.const_data_ptr<T>();
  data.same_grad_y = is_one_number(grad_y);
  data.grad_log_det = grad_log_det.const_data_ptr<T>();
  data.grad_x = grad_x.mutable_data_ptr<T>();
  data.grad_parameters = grad_parameters.mutable_data_ptr<T>();
  data.grad_scale = parts.data();
  run(shape, data, samples, kernel);
  std::vector<double> sums(channels);
  for (std::size_t i = 0; i < parts.size(); ++i) sums[i % channels] += parts[i];
  std::copy(sums.begin(), sums.end(), grad_scale.mutable_data_ptr<T>());
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters,
                                                                Tensor scale, std::optional<Tensor> mask, bool inverse,
                                                                std::int64_t parameterisation, bool interleaved) {
  const AffineCouplingShape shape = shape_of(x, parameters, scale, mask, inverse, parameterisation, interleaved);
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() && grad_y.numel() == x.numel(), "grad_y must be like x");
  STD_TORCH_CHECK(grad_log_det.scalar_type() == x.scalar_type() && grad_log_det.numel() == x.size(0),
                  "grad_log_det must have a number for each sample");
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  scale = torch::stable::contiguous(scale);
  mask = contiguous(mask);
  if (!is_one_number(grad_y)) grad_y = torch::stable::contiguous(grad_y);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  Tensor grad_x = torch::stable::new_empty(x, x.sizes()), grad_scale = torch::stable::new_empty(scale, scale.sizes());
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const AffineCouplingKernels& kernels = affine_coupling_kernels();
  const auto backward = [&](auto kernel, auto zero) {
    backward_into(shape, inputs_of<decltype(zero)>(x, parameters, scale, mask), grad_y, grad_log_det, grad_x, grad_parameters,
                  grad_scale, kernel);
  };
  x.scalar_type() == ScalarType::Float ? backward(kernels.backward_float, 0.0f) : backward(kernels.backward_double, 0.0);
  return {grad_x, grad_parameters, grad_scale};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("affine_coupling", TORCH_BOX(&fastgen::affine_coupling_cpu));
  m.impl("affine_coupling_", TORCH_BOX(&fastgen::affine_coupling_over_cpu));
  m.impl("affine_coupling_backward", TORCH_BOX(&fastgen::affine_coupling_backward_cpu));
}
