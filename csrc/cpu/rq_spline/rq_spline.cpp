// Rational-quadratic splines: fastgen::rq_spline and fastgen::soft_clip with their backwards on the CPU.
#include "cpu/rq_spline/rq_spline.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel_launcher.h"
#include "cpu/spline/spline_launcher.h"

namespace fastgen {
namespace {

using torch::stable::Tensor;

constexpr std::int64_t kSoftClipGrain = 1 << 13;  // numbers that a thread takes at least

RqSplineShape shape_of(const Tensor& x, const Tensor& parameters, bool inverse, std::int64_t tails, double left, double right,
                       double bottom, double top, double min_width, double min_height, double min_derivative) {
  const std::int64_t count = spline_parameters(x, parameters, tails), derivatives = count - (tails == 0   ? 1
                                                                                             : tails == 1 ? -1
                                                                                                          : 0);
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

// What the kernel makes of `raw`, and of the gradient of its results where there is one.
Tensor run_soft_clip(const Tensor* gradient, const Tensor& raw, std::int64_t sizes, double slope, double least) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(raw.scalar_type() == ScalarType::Float || raw.scalar_type() == ScalarType::Double,
                  "raw must be float32 or float64");
  STD_TORCH_CHECK(raw.dim() >= 1 && sizes >= 0 && sizes <= raw.size(raw.dim() - 1),
                  "sizes must be from 0 to what raw has in its last dimension, got ", sizes);
  STD_TORCH_CHECK(slope > 0 && slope < 1, "slope must be between 0 and 1, got ", slope);
  const Tensor out = torch::stable::new_empty(raw, raw.sizes());
  const std::int64_t width = std::max<std::int64_t>(1, raw.size(raw.dim() - 1));
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    SoftClipData<T> data{};
    data.parameters = width;
    data.sizes = sizes;
    data.softness = -1 / std::log(slope);
    data.least = least;
    data.raw = raw.const_data_ptr<T>();
    data.gradient = gradient ? gradient->const_data_ptr<T>() : nullptr;
    data.out = out.mutable_data_ptr<T>();
    parallel_for(0, raw.numel() / width, std::max<std::int64_t>(1, kSoftClipGrain / width),
                 [&](std::int64_t begin, std::int64_t end) { kernel(data, begin, end); });
  };
  const SoftClipKernels& kernels = soft_clip_kernels();
  if (raw.scalar_type() == ScalarType::Float) {
    run(gradient ? kernels.backward_float : kernels.forward_float, 0.0f);
  } else {
    run(gradient ? kernels.backward_double : kernels.forward_double, 0.0);
  }
  return out;
}

Tensor soft_clip_cpu(Tensor raw, std::int64_t sizes, double slope, double least) {
  return run_soft_clip(nullptr, torch::stable::contiguous(raw), sizes, slope, least);
}

Tensor soft_clip_backward_cpu(Tensor gradient, Tensor raw, std::int64_t sizes, double slope, double least) {
  STD_TORCH_CHECK(gradient.scalar_type() == raw.scalar_type() && gradient.numel() == raw.numel(), "gradient must be like raw");
  gradient = torch::stable::contiguous(gradient);
  return run_soft_clip(&gradient, torch::stable::contiguous(raw), sizes, slope, least);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("rq_spline", TORCH_BOX(&fastgen::rq_spline_cpu));
  m.impl("rq_spline_backward", TORCH_BOX(&fastgen::rq_spline_backward_cpu));
  m.impl("soft_clip", TORCH_BOX(&fastgen::soft_clip_cpu));
  m.impl("soft_clip_backward", TORCH_BOX(&fastgen::soft_clip_backward_cpu));
}
