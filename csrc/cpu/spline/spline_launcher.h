// What the launchers of the splines share: checks, memory, threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"
#include "cpu/spline/spline.h"

namespace fastgen {

using SplineResults = std::tuple<torch::stable::Tensor, torch::stable::Tensor>;

constexpr std::int64_t kSplineGrain = 1024;  // elements a thread takes at least: about 10 ns each

// The numbers that `parameters` has for each element of x; throws unless the two go together.
inline std::int64_t spline_parameters(const torch::stable::Tensor& x, const torch::stable::Tensor& parameters,
                                      std::int64_t tails) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(parameters.scalar_type() == x.scalar_type(), "parameters must have the dtype of x");
  STD_TORCH_CHECK(tails >= 0 && tails <= 2, "tails must be 0, 1 or 2, got ", tails);
  STD_TORCH_CHECK(parameters.dim() == x.dim() + 1, "parameters must have one dimension more than x");
  for (std::int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(parameters.size(d) == x.size(d), "parameters and x have different sizes in dimension ", d);
  }
  return parameters.size(x.dim());
}

template <typename T, typename Shape, typename Kernel>
void run_spline(const Shape& shape, const SplineData<T>& data, std::int64_t count, std::int64_t lanes, Kernel kernel) {
  parallel_for(0, count, kSplineGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(spline_scratch(shape, lanes)) * sizeof(T));
    kernel(shape, data, begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

// (y, log_det) of the elements.
template <typename Shape>
SplineResults spline_forward(const Shape& shape, const SplineKernels<Shape>& kernels, torch::stable::Tensor x,
                             torch::stable::Tensor parameters) {
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  torch::stable::Tensor y = torch::stable::new_empty(x, x.sizes()), log_det = torch::stable::new_empty(x, x.sizes());
  const auto forward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    SplineData<T> data{};
    data.x = x.const_data_ptr<T>();
    data.parameters = parameters.const_data_ptr<T>();
    data.y = y.mutable_data_ptr<T>();
    data.log_det = log_det.mutable_data_ptr<T>();
    run_spline(shape, data, x.numel(), kernels.lanes, kernel);
  };
  x.scalar_type() == torch::headeronly::ScalarType::Float ? forward(kernels.forward_float, 0.0f)
                                                          : forward(kernels.forward_double, 0.0);
  return {y, log_det};
}

// The gradients (of x, of the parameters).
template <typename Shape>
SplineResults spline_backward(const Shape& shape, const SplineKernels<Shape>& kernels, torch::stable::Tensor grad_y,
                              torch::stable::Tensor grad_log_det, torch::stable::Tensor x, torch::stable::Tensor parameters) {
  for (const torch::stable::Tensor& grad : {grad_y, grad_log_det}) {
    STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == x.numel(), "gradients must be like x");
  }
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  grad_y = torch::stable::contiguous(grad_y);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  torch::stable::Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  torch::stable::Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const auto backward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    SplineData<T> data{};
    data.x = x.const_data_ptr<T>();
    data.parameters = parameters.const_data_ptr<T>();
    data.grad_y = grad_y.const_data_ptr<T>();
    data.grad_log_det = grad_log_det.const_data_ptr<T>();
    data.grad_x = grad_x.mutable_data_ptr<T>();
    data.grad_parameters = grad_parameters.mutable_data_ptr<T>();
    run_spline(shape, data, x.numel(), kernels.lanes, kernel);
  };
  x.scalar_type() == torch::headeronly::ScalarType::Float ? backward(kernels.backward_float, 0.0f)
                                                          : backward(kernels.backward_double, 0.0);
  return {grad_x, grad_parameters};
}

}  // namespace fastgen
