// The transform of Flow++: fastgen::logistic_mixture_cdf and fastgen::logistic_mixture_cdf_backward on the CPU.
#include "cpu/logistic_mixture_cdf/logistic_mixture_cdf.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 1024;  // elements a thread takes at least: some 10 ns each

std::int64_t components_of(const Tensor& x, const Tensor& parameters) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(parameters.scalar_type() == x.scalar_type(), "parameters must have the dtype of x");
  STD_TORCH_CHECK(parameters.dim() == x.dim() + 1, "parameters must have one dimension more than x");
  for (std::int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(parameters.size(d) == x.size(d), "parameters and x have different sizes in dimension ", d);
  }
  const std::int64_t count = parameters.size(x.dim());
  STD_TORCH_CHECK(count > 0 && count % 3 == 0, "parameters has ", count, " numbers an element; M components need 3 M");
  return count / 3;
}

template <typename T>
LogisticMixtureCdfData<T> inputs_of(const Tensor& x, const Tensor& parameters, std::int64_t components, bool inverse) {
  LogisticMixtureCdfData<T> data{};
  data.components = components;
  data.inverse = inverse;
  data.x = x.const_data_ptr<T>();
  data.parameters = parameters.const_data_ptr<T>();
  return data;
}

template <typename T>
void run(const LogisticMixtureCdfData<T>& data, std::int64_t count, LogisticMixtureCdfKernel<T> kernel) {
  const std::int64_t lanes = logistic_mixture_cdf_kernels().lanes;
  parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(logistic_mixture_cdf_scratch(data.components, lanes)) * sizeof(T));
    kernel(data, begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

template <typename T>
void forward_into(LogisticMixtureCdfData<T> data, const Tensor& y, const Tensor& log_det, LogisticMixtureCdfKernel<T> kernel) {
  data.y = y.mutable_data_ptr<T>();
  data.log_det = log_det.mutable_data_ptr<T>();
  run(data, y.numel(), kernel);
}

std::tuple<Tensor, Tensor> logistic_mixture_cdf_cpu(Tensor x, Tensor parameters, bool inverse) {
  const std::int64_t components = components_of(x, parameters);
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  Tensor y = torch::stable::new_empty(x, x.sizes()), log_det = torch::stable::new_empty(x, x.sizes());
  const LogisticMixtureCdfKernels& kernels = logistic_mixture_cdf_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    forward_into(inputs_of<float>(x, parameters, components, inverse), y, log_det, kernels.forward_float);
  } else {
    forward_into(inputs_of<double>(x, parameters, components, inverse), y, log_det, kernels.forward_double);
  }
  return {y, log_det};
}

template <typename T>
void backward_into(LogisticMixtureCdfData<T> data, const Tensor& grad_y, const Tensor& grad_log_det, const Tensor& grad_x,
                   const Tensor& grad_parameters, LogisticMixtureCdfKernel<T> kernel) {
  data.grad_y = grad_y.const_data_ptr<T>();
  data.grad_log_det = grad_log_det.const_data_ptr<T>();
  data.grad_x = grad_x.mutable_data_ptr<T>();
  data.grad_parameters = grad_parameters.mutable_data_ptr<T>();
  run(data, grad_x.numel(), kernel);
}

std::tuple<Tensor, Tensor> logistic_mixture_cdf_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters,
                                                             bool inverse) {
  const std::int64_t components = components_of(x, parameters);
  for (const Tensor& grad : {grad_y, grad_log_det}) {
    STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == x.numel(), "gradients must be like x");
  }
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  grad_y = torch::stable::contiguous(grad_y);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const LogisticMixtureCdfKernels& kernels = logistic_mixture_cdf_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    backward_into(inputs_of<float>(x, parameters, components, inverse), grad_y, grad_log_det, grad_x, grad_parameters,
                  kernels.backward_float);
  } else {
    backward_into(inputs_of<double>(x, parameters, components, inverse), grad_y, grad_log_det, grad_x, grad_parameters,
                  kernels.backward_double);
  }
  return {grad_x, grad_parameters};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("logistic_mixture_cdf", TORCH_BOX(&fastgen::logistic_mixture_cdf_cpu));
  m.impl("logistic_mixture_cdf_backward", TORCH_BOX(&fastgen::logistic_mixture_cdf_backward_cpu));
}
