// Mixtures of discretized logistics: the ops; what they compute is in logistic_mixture_simd.cpp.
#include "cpu/logistic_mixture/logistic_mixture.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 128;  // elements a thread takes at least: about 100 ns each

LogisticMixtureShape shape_of(const Tensor& level, const Tensor& parameters, std::int64_t levels, double min_log_scale) {
  STD_TORCH_CHECK(level.scalar_type() == ScalarType::Long, "level must be int64");
  STD_TORCH_CHECK(parameters.scalar_type() == ScalarType::Float || parameters.scalar_type() == ScalarType::Double,
                  "parameters must be float32 or float64");
  STD_TORCH_CHECK(levels >= 2, "levels must be at least 2, got ", levels);
  const std::int64_t dims = level.dim();
  STD_TORCH_CHECK(dims >= 1 && parameters.dim() == dims, "parameters must have the dimensions of level, at least one");
  for (std::int64_t d = 0; d + 1 < dims; ++d) {
    STD_TORCH_CHECK(parameters.size(d) == level.size(d), "parameters and level have different sizes in dimension ", d);
  }
  const std::int64_t channels = level.size(dims - 1), count = parameters.size(dims - 1);
  STD_TORCH_CHECK(channels == 1 || channels == 3, "level has ", channels, " channels; it must have 1 or 3");
  const std::int64_t each = channels == 1 ? 3 : 10;
  STD_TORCH_CHECK(count >= each && count % each == 0, "parameters has ", count, " numbers an element; it must have ", each, " M");
  return {channels, count / each, levels, min_log_scale};
}

template <typename T, typename Kernel>
void run(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t count, std::int64_t lanes,
         Kernel kernel) {
  parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(logistic_mixture_scratch(shape, lanes)) * sizeof(T));
    kernel(shape, data, begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

Tensor logistic_mixture_cpu(Tensor level, Tensor parameters, std::int64_t levels, double min_log_scale) {
  const LogisticMixtureShape shape = shape_of(level, parameters, levels, min_log_scale);
  level = torch::stable::contiguous(level);
  parameters = torch::stable::contiguous(parameters);
  const std::vector<std::int64_t> sizes(level.sizes().begin(), level.sizes().end() - 1);
  Tensor log_prob = torch::stable::new_empty(parameters, sizes);
  const LogisticMixtureKernels& kernels = logistic_mixture_kernels();
  const auto forward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    LogisticMixtureData<T> data{};
    data.level = level.const_data_ptr<std::int64_t>();
    data.parameters = parameters.const_data_ptr<T>();
    data.log_prob = log_prob.mutable_data_ptr<T>();
    run(shape, data, log_prob.numel(), kernels.lanes, kernel);
  };
  const bool single = parameters.scalar_type() == ScalarType::Float;
  single ? forward(kernels.forward_float, 0.0f) : forward(kernels.forward_double, 0.0);
  return log_prob;
}

Tensor logistic_mixture_backward_cpu(Tensor grad, Tensor level, Tensor parameters, std::int64_t levels, double min_log_scale) {
  const LogisticMixtureShape shape = shape_of(level, parameters, levels, min_log_scale);
  STD_TORCH_CHECK(grad.scalar_type() == parameters.scalar_type() && grad.numel() == level.numel() / shape.channels,
                  "the gradient must be like the log-probability");
  level = torch::stable::contiguous(level);
  parameters = torch::stable::contiguous(parameters);
  grad = torch::stable::contiguous(grad);
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const LogisticMixtureKernels& kernels = logistic_mixture_kernels();
  const auto backward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    LogisticMixtureData<T> data{};
    data.level = level.const_data_ptr<std::int64_t>();
    data.parameters = parameters.const_data_ptr<T>();
    data.grad = grad.const_data_ptr<T>();
    data.grad_parameters = grad_parameters.mutable_data_ptr<T>();
    run(shape, data, grad.numel(), kernels.lanes, kernel);
  };
  const bool single = parameters.scalar_type() == ScalarType::Float;
  single ? backward(kernels.backward_float, 0.0f) : backward(kernels.backward_double, 0.0);
  return grad_parameters;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("logistic_mixture", TORCH_BOX(&fastgen::logistic_mixture_cpu));
  m.impl("logistic_mixture_backward", TORCH_BOX(&fastgen::logistic_mixture_backward_cpu));
}
