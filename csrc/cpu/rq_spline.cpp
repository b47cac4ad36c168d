// Rational-quadratic splines: fastgen::rq_spline and fastgen::rq_spline_backward on the CPU.
#include "cpu/rq_spline.h"

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

RqSplineShape shape_of(const Tensor& x, const Tensor& parameters, bool inverse, std::int64_t tails, double left, double right,
                       double bottom, double top, double min_width, double min_height, double min_derivative) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(parameters.scalar_type() == x.scalar_type(), "parameters must have the dtype of x");
  STD_TORCH_CHECK(tails >= 0 && tails <= 2, "tails is ", tails, "; it must be 0, 1 or 2");
  STD_TORCH_CHECK(parameters.dim() == x.dim() + 1, "parameters must have one dimension more than x");
  for (std::int64_t d = 0; d < x.dim(); ++d) {
    STD_TORCH_CHECK(parameters.size(d) == x.size(d), "parameters and x have different sizes in dimension ", d);
  }
  const std::int64_t count = parameters.size(x.dim()), derivatives = count - (tails == 0 ? 1 : tails == 1 ? -1 : 0);
  STD_TORCH_CHECK(derivatives > 0 && derivatives % 3 == 0, "parameters has ", count, " numbers an element, which makes no bins");
  const std::int64_t bins = derivatives / 3;
  const SplineShape shape = {inverse, static_cast<int>(tails), bins, count, left, right, bottom, top, min_width, min_height};
  return {shape, min_derivative};
}

template <typename T, typename Kernel>
void run(const RqSplineShape& shape, const SplineData<T>& data, std::int64_t count, std::int64_t lanes, Kernel kernel) {
  torch::stable::parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(static_cast<std::size_t>(spline_scratch(shape, lanes)) * sizeof(T));
    kernel(shape, data, begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

template <typename T>
const T* read(const Tensor& tensor) {
  return tensor.const_data_ptr<T>();
}
template <typename T>
T* write(const Tensor& tensor) {
  return tensor.mutable_data_ptr<T>();
}

std::tuple<Tensor, Tensor> rq_spline_cpu(Tensor x, Tensor parameters, bool inverse, std::int64_t tails, double left, double right,
                                         double bottom, double top, double min_width, double min_height, double min_derivative) {
  const RqSplineShape shape =
      shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height, min_derivative);
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  Tensor y = torch::stable::new_empty(x, x.sizes()), log_det = torch::stable::new_empty(x, x.sizes());
  const RqSplineKernels& kernels = rq_spline_kernels();
  const auto forward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    SplineData<T> data{};
    data.x = read<T>(x);
    data.parameters = read<T>(parameters);
    data.y = write<T>(y);
    data.log_det = write<T>(log_det);
    run(shape, data, x.numel(), kernels.lanes, kernel);
  };
  x.scalar_type() == ScalarType::Float ? forward(kernels.forward_float, 0.0f) : forward(kernels.forward_double, 0.0);
  return {y, log_det};
}

std::tuple<Tensor, Tensor> rq_spline_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, bool inverse,
                                                  std::int64_t tails, double left, double right, double bottom, double top,
                                                  double min_width, double min_height, double min_derivative) {
  const RqSplineShape shape =
      shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height, min_derivative);
  for (const Tensor& grad : {grad_y, grad_log_det}) {
    STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == x.numel(), "gradients must be like x");
  }
  x = torch::stable::contiguous(x);
  parameters = torch::stable::contiguous(parameters);
  grad_y = torch::stable::contiguous(grad_y);
  grad_log_det = torch::stable::contiguous(grad_log_det);
  Tensor grad_x = torch::stable::new_empty(x, x.sizes());
  Tensor grad_parameters = torch::stable::new_empty(parameters, parameters.sizes());
  const RqSplineKernels& kernels = rq_spline_kernels();
  const auto backward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    SplineData<T> data{};
    data.x = read<T>(x);
    data.parameters = read<T>(parameters);
    data.grad_y = read<T>(grad_y);
    data.grad_log_det = read<T>(grad_log_det);
    data.grad_x = write<T>(grad_x);
    data.grad_parameters = write<T>(grad_parameters);
    run(shape, data, x.numel(), kernels.lanes, kernel);
  };
  x.scalar_type() == ScalarType::Float ? backward(kernels.backward_float, 0.0f) : backward(kernels.backward_double, 0.0);
  return {grad_x, grad_parameters};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("rq_spline", TORCH_BOX(&fastgen::rq_spline_cpu));
  m.impl("rq_spline_backward", TORCH_BOX(&fastgen::rq_spline_backward_cpu));
}
