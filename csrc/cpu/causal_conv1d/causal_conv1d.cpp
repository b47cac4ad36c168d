// Dilated causal convolution with a gate: fastgen::causal_conv1d and fastgen::causal_conv1d_residual on the CPU, and backward.
//
// Time goes in blocks, which threads share. Blocks go in runs, whose gradients of weights are summed apart: neither depends on the
// number of threads, so that the results do not.
#include "cpu/causal_conv1d/causal_conv1d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/causal_conv1d/causal_conv1d_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Sizes = CausalConv1dSizes;
using Block = CausalConv1dBlock;
using Blocks = CausalConv1dBlocks;

constexpr std::int64_t kRunsBytes = 16 << 20;  // of the gradients of the weights that are summed apart
constexpr std::int64_t kMostRuns = 16;
constexpr std::int64_t kAnyRuns = std::numeric_limits<std::int64_t>::max();

// The arguments, or their gradients; the last three are those of causal_conv1d_residual.
struct Tensors {
  Tensor x, weight, bias, condition, state, out_weight, out_bias, skip;
};

void check(const Tensor& tensor, const Tensor& x, std::initializer_list<std::int64_t> shape, const char* message) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "all arguments must have the dtype of x");
  STD_TORCH_CHECK(std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()), message);
}

Sizes sizes_of(const Tensors& a, std::int64_t dilation, std::int64_t gate) {
  const Tensor &x = a.x, &weight = a.weight;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3 && weight.size(2) > 0, "x must be [N, C, T] and weight [O, C, K]");
  STD_TORCH_CHECK(gate >= 0 && gate < kGates && dilation > 0, "gate is ", gate, " and dilation ", dilation);
  std::int64_t history = 0;
  STD_TORCH_CHECK(!__builtin_mul_overflow(weight.size(2) - 1, dilation, &history), "dilation must be smaller, got ", dilation);
  const Sizes s{x.size(0), x.size(1), weight.size(0), weight.size(2), x.size(2), dilation, gate};
  STD_TORCH_CHECK(s.outputs % s.halves() == 0, "weight has ", s.outputs, " output channels; a gate needs an even one");
  const bool constant = a.condition.dim() == 3 && a.condition.size(2) == 1;
  check(weight, x, {s.outputs, s.channels, s.taps}, "weight must be [O, C, K]");
  check(a.bias, x, {s.outputs}, "bias must be [O]");
  check(a.condition, x, {s.samples, s.outputs, constant ? 1 : s.times}, "condition must be [N, O, T] or [N, O, 1]");
  check(a.state, x, {s.samples, s.channels, s.history()}, "state must be [N, C, (K - 1) dilation]");
  return s;
}

Sizes residual_sizes_of(const Tensors& a, std::int64_t dilation, std::int64_t gate) {
  Sizes s = sizes_of(a, dilation, gate);
  STD_TORCH_CHECK(a.skip.dim() == 3 && a.out_weight.dim() == 2, "skip must be [N, S, T] and out_weight [R + S, H]");
  s.with_out = true;
  s.skips = a.skip.size(1);
  s.residuals = a.out_weight.size(0) - s.skips;
  STD_TORCH_CHECK(s.residuals == 0 || s.residuals == s.channels, "out_weight must have S rows or C + S");
  check(a.out_weight, a.x, {s.out(), s.rows()}, "out_weight must be [R + S, H]");
  check(a.out_bias, a.x, {s.out()}, "out_bias must be [R + S]");
  check(a.skip, a.x, {s.samples, s.skips, a.skip.size(2) == 1 ? 1 : s.times}, "skip must be [N, S, T] or [N, S, 1]");
  return s;
}

template <typename T>
class Convolution {
 public:
  Convolution(const Sizes& sizes, const Tensors& given)
      : s_(sizes), x_(torch::stable::contiguous(given.x)), state_(torch::stable::contiguous(given.state)),
        weight_(torch::stable::contiguous(given.weight)), bias_(torch::stable::contiguous(given.bias)),
        condition_(torch::stable::contiguous(given.condition)),
        matrix_(torch::stable::new_empty(weight_, {s_.outputs, s_.inputs()})) {
    T* to = matrix_.mutable_data_ptr<T>();
    const T* from = at(weight_);
    each_weight([&](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t k) {
      to[(o * s_.taps + k) * s_.channels + c] = from[place];
    });
    data_.sizes = s_;
    data_.x = at(x_);
    data_.state = at(state_);
    data_.matrix = at(matrix_);
    data_.bias = at(bias_);
    data_.condition = at(condition_);
    data_.constant = condition_.size(2) == 1;
    if (!s_.with_out) return;
    out_weight_ = torch::stable::contiguous(given.out_weight);
    out_bias_ = torch::stable::contiguous(given.out_bias);
    skip_ = torch::stable::contiguous(given.skip);
    data_.out_weight = at(out_weight_);
    data_.out_bias = at(out_bias_);
    data_.skip = at(skip_);
    data_.constant_skip = skip_.size(2) == 1;
  }

  // To y, or to the residual and the skip.
  void forward(T* y, T* residual, T* skip, CausalConv1dKernel<T> kernel) {
    data_.y = y;
    data_.residual_to = residual;
    data_.skip_to = skip;
    const Blocks blocks(s_.samples, s_.times, s_.forward_rows() * sizeof(T), kAnyRuns);
    blocks.each([&] { return scratch(blocks, s_.forward_rows(), s_.forward_strips()); },
                [&](const Tensor& own, const Block& b, auto...) { kernel(data_, own.template mutable_data_ptr<T>(), b); });
  }

  // From the gradient of y, or those of the residual and of the skip.
  void backward(const Tensor& grad, const Tensor& grad_skip, const Tensors& to, CausalConv1dBackward<T> kernel) {
    data_.grad = at(grad);
    data_.of_x = to.x.template mutable_data_ptr<T>();
    data_.of_condition = data_.constant ? nullptr : to.condition.template mutable_data_ptr<T>();
    const Tensor turned = torch::stable::new_empty(weight_, {s_.taps, s_.channels, s_.outputs});
    T* place_of = turned.mutable_data_ptr<T>();
    each_weight([&, from = at(weight_)](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t k) {
      place_of[(k * s_.channels + c) * s_.outputs + o] = from[place];
    });
    data_.turned = place_of;
    Tensor out_turned;
    if (s_.with_out) {
      out_turned = torch::stable::contiguous(torch::stable::transpose(out_weight_, 0, 1));
      data_.out_turned = at(out_turned);
      data_.grad_skip = at(grad_skip);
      data_.of_skip = data_.constant_skip ? nullptr : to.skip.template mutable_data_ptr<T>();
    }
    const Blocks blocks(s_.samples, s_.times, s_.backward_rows() * sizeof(T), most_runs());
    const CausalConv1dRows of_matrix(blocks.runs(), s_.outputs * s_.inputs()), of_out_weight(blocks.runs(), s_.out() * s_.rows());
    const CausalConv1dRows of_sums(blocks.count(), s_.outputs), of_out(blocks.count(), s_.out());
    const CausalConv1dBefore<T> before(s_, blocks, to.state.template mutable_data_ptr<T>());
    blocks.each([&] { return scratch(blocks, s_.backward_rows(), s_.backward_strips()); },
                [&](const Tensor& own, const Block& b, std::int64_t i, std::int64_t run) {
                  const std::int64_t start = blocks.start(i, run);
                  kernel(data_, own.template mutable_data_ptr<T>(), b,
                         {of_matrix.row(run), of_out_weight.row(run), i > blocks.first(run), of_sums.row(i), of_out.row(i), start,
                          before.of(run, b.n, start)});
                });
    before.hand_over(data_.of_x);
    T* of_weight = to.weight.template mutable_data_ptr<T>();
    each_weight([&, total = of_matrix.totals()](std::int64_t place, std::int64_t o, std::int64_t c, std::int64_t k) {
      of_weight[place] = static_cast<T>(total[(o * s_.taps + k) * s_.channels + c]);
    });
    copy(of_sums.totals(), to.bias);
    if (data_.constant) of_samples(blocks, of_sums, 0, to.condition);
    if (!s_.with_out) return;
    copy(of_out_weight.totals(), to.out_weight);
    copy(of_out.totals(), to.out_bias);
    if (data_.constant_skip) of_samples(blocks, of_out, s_.residuals, to.skip);
  }

 private:
  std::int64_t most_runs() const {
    const std::int64_t weights = s_.outputs * s_.inputs() + s_.out() * s_.rows();
    const std::int64_t of_weights = kRunsBytes / sizeof(double) / std::max<std::int64_t>(1, weights);
    const std::int64_t of_x = 2 * s_.samples * s_.times / std::max<std::int64_t>(1, s_.history());  // at most twice x's memory
    return std::clamp<std::int64_t>(std::min(of_weights, of_x), 2, kMostRuns);
  }

  static void copy(const std::vector<double>& from, const Tensor& to) {
    std::transform(from.begin(), from.end(), to.mutable_data_ptr<T>(), [](double value) { return static_cast<T>(value); });
  }

  // The totals over each sample's blocks, [N, columns, 1], of the columns from `first` on.
  void of_samples(const Blocks& blocks, const CausalConv1dRows& sums, std::int64_t first, const Tensor& to) const {
    T* place = to.mutable_data_ptr<T>();
    const std::int64_t columns = to.size(1), each = blocks.of_sample();
    for (std::int64_t n = 0; n < s_.samples; ++n)
      for (std::int64_t i = 0; i < columns; ++i)
        place[n * columns + i] = static_cast<T>(sums.total(first + i, n * each, (n + 1) * each));
  }

  Tensor scratch(const Blocks& blocks, std::int64_t rows, std::int64_t strips) const {
    return torch::stable::new_empty(x_, {rows * blocks.size() + strips * Sizes::kPadding});
  }

  // function(its place in the weight, output, channel, tap)
  template <typename Function>
  void each_weight(Function function) const {
    for (std::int64_t o = 0, place = 0; o < s_.outputs; ++o)
      for (std::int64_t c = 0; c < s_.channels; ++c)
        for (std::int64_t k = 0; k < s_.taps; ++k) function(place++, o, c, k);
  }

  static const T* at(const Tensor& tensor) { return tensor.const_data_ptr<T>(); }

  const Sizes& s_;
  const Tensor x_, state_, weight_, bias_, condition_, matrix_;
  Tensor out_weight_, out_bias_, skip_;
  CausalConv1dData<T> data_{};
};

template <typename Function>
void in_type_of(const Tensor& x, Function function) {
  const CausalConv1dKernels& k = causal_conv1d_kernels();
  x.scalar_type() == ScalarType::Float ? function(0.0f, k.forward_float, k.backward_float)
                                       : function(0.0, k.forward_double, k.backward_double);
}

Tensor like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

Tensor causal_conv1d_cpu(Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, std::int64_t dilation,
                         std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, {}, {}, {}};
  const Sizes s = sizes_of(given, dilation, gate);
  Tensor y = torch::stable::new_empty(x, {s.samples, s.rows(), s.times});
  in_type_of(x, [&](auto zero, auto forward, auto) {
    using T = decltype(zero);
    Convolution<T>(s, given).forward(y.mutable_data_ptr<T>(), nullptr, nullptr, forward);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_cpu(Tensor grad, Tensor x, Tensor weight, Tensor bias,
                                                                              Tensor condition, Tensor state,
                                                                              std::int64_t dilation, std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, {}, {}, {}};
  const Sizes s = sizes_of(given, dilation, gate);
  check(grad, x, {s.samples, s.rows(), s.times}, "grad must be like the result");
  grad = torch::stable::contiguous(grad);
  const Tensors to{like(x), like(weight), like(bias), like(condition), like(state), {}, {}, {}};
  in_type_of(x, [&](auto zero, auto, auto backward) { Convolution<decltype(zero)>(s, given).backward(grad, {}, to, backward); });
  return {to.x, to.weight, to.bias, to.condition, to.state};
}

std::tuple<Tensor, Tensor> causal_conv1d_residual_cpu(Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state,
                                                      Tensor out_weight, Tensor out_bias, Tensor skip, std::int64_t dilation,
                                                      std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, out_weight, out_bias, skip};
  const Sizes s = residual_sizes_of(given, dilation, gate);
  Tensor residual = torch::stable::new_empty(x, {s.samples, s.residuals, s.times});
  Tensor sum = torch::stable::new_empty(x, {s.samples, s.skips, s.times});
  in_type_of(x, [&](auto zero, auto forward, auto) {
    using T = decltype(zero);
    Convolution<T>(s, given).forward(nullptr, residual.mutable_data_ptr<T>(), sum.mutable_data_ptr<T>(), forward);
  });
  return {residual, sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> causal_conv1d_residual_backward_cpu(
    Tensor grad, Tensor grad_skip, Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, Tensor out_weight,
    Tensor out_bias, Tensor skip, std::int64_t dilation, std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, out_weight, out_bias, skip};
  const Sizes s = residual_sizes_of(given, dilation, gate);
  check(grad, x, {s.samples, s.residuals, s.times}, "grad must be like the residual");
  check(grad_skip, x, {s.samples, s.skips, s.times}, "grad_skip must be like the skip");
  grad = torch::stable::contiguous(grad);
  grad_skip = torch::stable::contiguous(grad_skip);
  const Tensors to{like(x), like(weight), like(bias), like(condition), like(state), like(out_weight), like(out_bias), like(skip)};
  in_type_of(
      x, [&](auto zero, auto, auto backward) { Convolution<decltype(zero)>(s, given).backward(grad, grad_skip, to, backward); });
  return {to.x, to.weight, to.bias, to.condition, to.state, to.out_weight, to.out_bias, to.skip};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&fastgen::causal_conv1d_cpu));
  m.impl("causal_conv1d_backward", TORCH_BOX(&fastgen::causal_conv1d_backward_cpu));
  m.impl("causal_conv1d_residual", TORCH_BOX(&fastgen::causal_conv1d_residual_cpu));
  m.impl("causal_conv1d_residual_backward", TORCH_BOX(&fastgen::causal_conv1d_residual_backward_cpu));
}
