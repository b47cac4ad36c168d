// Monotone cubic splines: fastgen::cubic_spline and fastgen::cubic_spline_backward on the CPU.
#include "cpu/cubic_spline.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/arena.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 1024;  // elements a thread takes at least: about 10 ns each

CubicSplineShape shape_of(const Tensor& x, const Tensor& parameters, bool inverse, double left, double right, double bottom,
                          double top, double min_width, double min_height) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(parameters.scalar_type() == x.scalar_type(), "parameters must have the dtype of x");
  STD_TORCH_CHECK(parameters.dim() == x.dim() + 1, "parameters must have one dimension more than x");
  for (std::int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(parameters.size(d) == x.size(d), "parameters and x have different sizes in dimension ", d);
  }
  const std::int64_t count = parameters.size(x.dim());
  STD_TORCH_CHECK(count >= 4 && count % 2 == 0, "parameters has ", count, " numbers an element, which makes no bins");
  return {inverse, count / 2 - 1, count, left, right, bottom, top, min_width, min_height};
}

template <typename T>
void run(CubicSplineKernel<T> kernel, const CubicSplineShape& shape, const CubicSplineData<T>& data, std::int64_t count,
         std::int64_t lanes) {
  torch::stable::parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(cubic_spline_scratch(shape, lanes)) * sizeof(T));
    kernel(shape, data, begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

template <typename T>
void run_forward(CubicSplineKernel<T> kernel, const CubicSplineShape& shape, const Tensor& x, const Tensor& parameters, Tensor& y,
                 Tensor& log_det, std::int64_t lanes) {
  CubicSplineData<T> data{};
  data.x = x.const_data_ptr<T>();
  data.parameters = parameters.const_data_ptr<T>();
  data.y = y.mutable_data_ptr<T>();
  data.log_det = log_det.mutable_data_ptr<T>();
  run(kernel, shape, data, x.numel(), lanes);
}

template <typename T>
void run_backward(CubicSplineKernel<T> kernel, const CubicSplineShape& shape, const Tensor& grad_y, const Tensor& grad_log_det,
                  const Tensor& x, const Tensor& parameters, Tensor& grad_x, Tensor& grad_parameters, std::int64_t lanes) {
  CubicSplineData<T> data{};
  data.x = x.const_data_ptr<T>();
  data.parameters = parameters.const_data_ptr<T>();
  data.grad_y = grad_y.const_data_ptr<T>();
  data.grad_log_det = grad_log_det.const_data_ptr<T>();
  data.grad_x = grad_x.mutable_data_ptr<T>();
  data.grad_parameters = grad_parameters.mutable_data_ptr<T>();
  run(kernel, shape, data, x.numel(), lanes);
}

std::tuple<Tensor, Tensor> cubic_spline_cpu(Tensor x, Tensor parameters, bool inverse, double left, double right, double bottom,
                                            double top, double min_width, double min_height) {
  const CubicSplineShape shape = shape_of(x, parameters, inverse, left, right, bottom, top, min_width, min_height);
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  Tensor y = torch::stable::new_empty(x, x.sizes()), log_det = torch::stable::new_empty(x, x.sizes());
  const CubicSplineKernels& kernels = cubic_spline_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    run_forward(kernels.forward_float, shape, x, parameters, y, log_det, kernels.lanes);
  } else {
    run_forward(kernels.forward_double, shape, x, parameters, y, log_det, kernels.lanes);
  }
  return {y, log_det};
}

std::tuple<Tensor, Tensor> cubic_spline_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, bool inverse,
                                                     double left, double right, double bottom, double top, double min_width,
                                                     double min_height) {
  const CubicSplineShape shape = shape_of(x, parameters, inverse, left, right, bottom, top, min_width, min_height);
  for (const Tensor& grad : {grad_y, grad_log_det}) {
    STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == x.numel(), "gradients must be like x");
  }
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  grad_y = torch::stable::contiguous(grad_y);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const CubicSplineKernels& kernels = cubic_spline_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    run_backward(kernels.backward_float, shape, grad_y, grad_log_det, x, parameters, grad_x, grad_parameters, kernels.lanes);
  } else {
    run_backward(kernels.backward_double, shape, grad_y, grad_log_det, x, parameters, grad_x, grad_parameters, kernels.lanes);
  }
  return {grad_x, grad_parameters};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("cubic_spline", TORCH_BOX(&fastgen::cubic_spline_cpu));
  m.impl("cubic_spline_backward", TORCH_BOX(&fastgen::cubic_spline_backward_cpu));
}
