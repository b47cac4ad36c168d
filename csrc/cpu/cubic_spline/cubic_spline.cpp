// Monotone cubic splines: fastgen::cubic_spline and fastgen::cubic_spline_backward on the CPU.
#include "cpu/cubic_spline/cubic_spline.h"

#include "cpu/spline/spline_launcher.h"

namespace fastgen {
namespace {

using torch::stable::Tensor;

SplineShape shape_of(const Tensor& x, const Tensor& parameters, bool inverse, std::int64_t tails, double left, double right,
                     double bottom, double top, double min_width, double min_height) {
  const std::int64_t count = spline_parameters(x, parameters, tails), sizes = count - (tails == 2 ? 0 : 2);
  STD_TORCH_CHECK(sizes > 0 && sizes % 2 == 0, "parameters has ", count, " numbers an element, which makes no bins");
  return {inverse, static_cast<int>(tails), sizes / 2, count, left, right, bottom, top, min_width, min_height};
}

std::tuple<Tensor, Tensor> cubic_spline_cpu(Tensor x, Tensor parameters, bool inverse, std::int64_t tails, double left,
                                            double right, double bottom, double top, double min_width, double min_height) {
  const SplineShape shape = shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height);
  return spline_forward(shape, cubic_spline_kernels(), x, parameters);
}

std::tuple<Tensor, Tensor> cubic_spline_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters,
                                                     bool inverse, std::int64_t tails, double left, double right, double bottom,
                                                     double top, double min_width, double min_height) {
  const SplineShape shape = shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height);
  return spline_backward(shape, cubic_spline_kernels(), grad_y, grad_log_det, x, parameters);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("cubic_spline", TORCH_BOX(&fastgen::cubic_spline_cpu));
  m.impl("cubic_spline_backward", TORCH_BOX(&fastgen::cubic_spline_backward_cpu));
}
