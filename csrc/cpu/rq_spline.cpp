// Rational-quadratic splines: fastgen::rq_spline and fastgen::rq_spline_backward on the CPU.
#include "cpu/rq_spline.h"

#include "cpu/spline_launcher.h"

namespace fastgen {
namespace {

using torch::stable::Tensor;

RqSplineShape shape_of(const Tensor& x, const Tensor& parameters, bool inverse, std::int64_t tails, double left, double right,
                       double bottom, double top, double min_width, double min_height, double min_derivative) {
  const std::int64_t count = spline_parameters(x, parameters, tails), derivatives = count - (tails == 0 ? 1 : tails == 1 ? -1 : 0);
  STD_TORCH_CHECK(derivatives > 0 && derivatives % 3 == 0, "parameters has ", count, " numbers an element, which makes no bins");
  const std::int64_t bins = derivatives / 3;
  const SplineShape shape = {inverse, static_cast<int>(tails), bins, count, left, right, bottom, top, min_width, min_height};
  return {shape, min_derivative};
}

std::tuple<Tensor, Tensor> rq_spline_cpu(Tensor x, Tensor parameters, bool inverse, std::int64_t tails, double left, double right,
                                         double bottom, double top, double min_width, double min_height, double min_derivative) {
  const RqSplineShape shape =
      shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height, min_derivative);
  return spline_forward(shape, rq_spline_kernels(), x, parameters);
}

std::tuple<Tensor, Tensor> rq_spline_backward_cpu(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor parameters, bool inverse,
                                                  std::int64_t tails, double left, double right, double bottom, double top,
                                                  double min_width, double min_height, double min_derivative) {
  const RqSplineShape shape =
      shape_of(x, parameters, inverse, tails, left, right, bottom, top, min_width, min_height, min_derivative);
  return spline_backward(shape, rq_spline_kernels(), grad_y, grad_log_det, x, parameters);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("rq_spline", TORCH_BOX(&fastgen::rq_spline_cpu));
  m.impl("rq_spline_backward", TORCH_BOX(&fastgen::rq_spline_backward_cpu));
}
