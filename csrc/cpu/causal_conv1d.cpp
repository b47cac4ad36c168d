// Dilated causal convolution with a gate: fastgen::causal_conv1d and fastgen::causal_conv1d_residual on the CPU, and backward.
//
// Time goes in blocks. What a block reads is laid out as a panel [taps * channels, times], the sums are one product of PyTorch's,
// and bias, condition and gate follow while the sums are in the cache; then residual and skip, from a second product.
#include "cpu/causal_conv1d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <tuple>

#include "cpu/causal_conv1d_launcher.h"
#include "cpu/causal_conv1d_sequence.h"
#include "cpu/causal_conv1d_sizes.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using Sizes = CausalConv1dSizes;
using Block = CausalConv1dBlock;
using Blocks = CausalConv1dBlocks;

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
      : s_(sizes),
        x_(torch::stable::contiguous(given.x)),
        bias_(torch::stable::contiguous(given.bias)),
        condition_(torch::stable::contiguous(given.condition)),
        state_(torch::stable::contiguous(given.state)),
        weight_(torch::stable::contiguous(given.weight)),
        matrix_(torch::stable::new_empty(weight_, {s_.outputs, s_.inputs()})),
        bias_at_(bias_.const_data_ptr<T>()),
        condition_at_(condition_.const_data_ptr<T>()),
        constant_(condition_.size(2) == 1),
        blocks_{s_.samples, s_.times, s_.block(sizeof(T)), s_.most_runs()} {
    const T* from = weight_.const_data_ptr<T>();
    T* to = matrix_.mutable_data_ptr<T>();
    s_.each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      to[o * s_.inputs() + k * s_.channels + c] = from[place];
    });
  }

  void forward(const Tensor& y, void (*kernel)(const CausalConv1dRow<T>&)) const {
    T* to = y.mutable_data_ptr<T>();
    causal_conv1d_each(blocks_, [&] { return scratch(s_.inputs(), s_.outputs); },
        [&](const Scratch& own, const Block& b) {
          multiply(own, b);
          apply(own, b, to + b.n * s_.rows() * s_.times + b.t, s_.times, kernel);
        });
  }

  void backward(const Tensor& grad, const Tensors& to, void (*kernel)(CausalConv1dRow<T>&)) const {
    const T* from = grad.const_data_ptr<T>();
    Partial partial(*this, to);
    causal_conv1d_each(blocks_, [&] { return scratch(s_.inputs(), s_.outputs); },
        [&](const Scratch& own, const Block& b) {
          s_.gate == kNoGate ? read(own, b) : multiply(own, b);
          pull_block(own, b, partial, from + b.n * s_.rows() * s_.times + b.t, nullptr, s_.times, kernel);
        });
    finish(partial, to, nullptr);
  }

 protected:
  struct Scratch {
    Tensor panel, sums;
  };

  // What the blocks of the backward leave.
  struct Partial {
    Partial(const Convolution& c, const Tensors& to)
        : constant(c.constant_ && c.s_.times != 1),
          of_sums(constant ? torch::stable::new_empty(c.x_, {c.s_.samples, c.s_.outputs, c.s_.times}) : to.condition),
          of_matrix(c.blocks_.runs(), c.s_.outputs * c.s_.inputs()),
          of_samples(c.blocks_.runs(), c.s_.samples * c.s_.outputs) {}

    bool constant;  // one condition for all times
    Tensor of_sums;
    CausalConv1dSums of_matrix, of_samples;
  };

  Tensor panel(std::int64_t rows) const { return torch::stable::new_empty(matrix_, {rows, blocks_.size}); }
  Scratch scratch(std::int64_t from, std::int64_t to) const { return {panel(from), panel(to)}; }

  // y of a block from its sums.
  void apply(const Scratch& own, const Block& b, T* y, std::int64_t stride, void (*kernel)(const CausalConv1dRow<T>&)) const {
    T* sums = own.sums.template mutable_data_ptr<T>();
    for (std::int64_t r = 0; r < s_.rows(); ++r) {
      CausalConv1dRow<T> row = row_of(sums, b, r);
      row.y = y + r * stride;
      kernel(row);
    }
  }

  // The gradients of the sums from that of y, over the sums; y, too, if it is not null.
  void pull_block(const Scratch& own, const Block& b, Partial& partial, const T* grad, T* y, std::int64_t stride,
                  void (*kernel)(CausalConv1dRow<T>&)) const {
    T *sums = own.sums.template mutable_data_ptr<T>(), *to = partial.of_sums.template mutable_data_ptr<T>();
    for (std::int64_t r = 0; r < s_.rows(); ++r) {
      CausalConv1dRow<T> row = row_of(sums, b, r);
      row.grad = grad + r * stride;
      row.y = y ? y + r * stride : nullptr;
      kernel(row);
      for (int half = 0; half < s_.halves(); ++half) {
        const std::int64_t place = b.n * s_.outputs + half * s_.rows() + r;
        partial.of_samples.add(b.run, place, row.total[half]);
        std::copy_n(row.sums[half], b.count, to + place * s_.times + b.t);
      }
    }
    partial.of_matrix.add(b.run, outer(own.sums, own.panel, b.count).template const_data_ptr<T>());
  }

  void finish(const Partial& partial, const Tensors& to, const T* residual) const {
    const auto of_matrix = partial.of_matrix.total(), of_samples = partial.of_samples.total();
    const auto of_bias = CausalConv1dSums::over_rows(of_samples, s_.outputs);
    std::copy(of_bias.begin(), of_bias.end(), to.bias.template mutable_data_ptr<T>());
    if (partial.constant) std::copy(of_samples.begin(), of_samples.end(), to.condition.template mutable_data_ptr<T>());
    T* of_weight = to.weight.template mutable_data_ptr<T>();
    s_.each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      of_weight[place] = static_cast<T>(of_matrix[o * s_.inputs() + k * s_.channels + c]);
    });
    CausalConv1dPull<T>(s_, blocks_, weight_, partial.of_sums).pull(to.x, to.state, residual);
  }

  // The product of a's first columns and the transpose of b's.
  Tensor outer(const Tensor& a, const Tensor& b, std::int64_t count) const {
    const Tensor to = torch::stable::new_empty(matrix_, {a.size(0), b.size(0)});
    causal_conv1d_product(causal_conv1d_columns(a, count), torch::stable::transpose(causal_conv1d_columns(b, count), 0, 1), to);
    return to;
  }

  // Leaves what a block reads.
  void read(const Scratch& own, const Block& b) const {
    const CausalConv1dSequence<T> seen{state_.const_data_ptr<T>(), x_.const_data_ptr<T>(), s_.history(), s_.times};
    T* panel = own.panel.template mutable_data_ptr<T>();
    seen.panel(panel, blocks_.size, b.n, s_.channels, s_.taps, b.t, s_.dilation, b.count);
  }

  // And its sums, without bias.
  void multiply(const Scratch& own, const Block& b) const {
    read(own, b);
    causal_conv1d_product(matrix_, causal_conv1d_columns(own.panel, b.count), causal_conv1d_columns(own.sums, b.count));
  }

  CausalConv1dRow<T> row_of(T* sums, const Block& b, std::int64_t r) const {
    CausalConv1dRow<T> row{};
    row.gate = s_.gate;
    row.count = b.count;
    for (int half = 0; half < s_.halves(); ++half) {
      const std::int64_t output = half * s_.rows() + r, place = b.n * s_.outputs + output;
      row.sums[half] = sums + output * blocks_.size;
      row.add[half] = bias_at_[output] + (constant_ ? condition_at_[place] : T(0));
      row.condition[half] = constant_ ? nullptr : condition_at_ + place * s_.times + b.t;
    }
    return row;
  }

  const Sizes& s_;
  const Tensor x_, bias_, condition_, state_, weight_;
  const Tensor matrix_;  // [O, taps * channels]
  const T *bias_at_, *condition_at_;
  const bool constant_;  // one condition for all times
  const Blocks blocks_;
};

// The convolution followed by z = out_weight y + out_bias, which the residual adds to x and the skip to the one before.
template <typename T>
class ResidualConvolution : public Convolution<T> {
 public:
  ResidualConvolution(const Sizes& sizes, const Tensors& given)
      : Convolution<T>(sizes, given),
        out_weight_(torch::stable::new_empty(given.out_weight, {s_.out(), s_.rows()})),
        out_bias_(torch::stable::contiguous(given.out_bias)),
        skip_(torch::stable::contiguous(given.skip)) {
    const Tensor from = torch::stable::contiguous(given.out_weight);
    std::copy_n(from.const_data_ptr<T>(), from.numel(), out_weight_.mutable_data_ptr<T>());
  }

  void forward(const Tensor& residual, const Tensor& skip, void (*kernel)(const CausalConv1dRow<T>&)) const {
    const auto to = outputs(residual.mutable_data_ptr<T>(), skip.mutable_data_ptr<T>());
    const auto before = outputs(x_.template const_data_ptr<T>(), skip_.template const_data_ptr<T>());
    const T* bias = out_bias_.template const_data_ptr<T>();
    causal_conv1d_each(blocks_, [&] { return scratch(); },
        [&](const Scratch& own, const Block& b) {
          this->multiply(own, b);
          this->apply(own, b, own.y.template mutable_data_ptr<T>(), blocks_.size, kernel);
          causal_conv1d_product(out_weight_, causal_conv1d_columns(own.y, b.count), causal_conv1d_columns(own.z, b.count));
          T* z = own.z.template mutable_data_ptr<T>();
          for (std::int64_t output = 0; output < s_.out(); ++output) {
            const bool same = output >= s_.residuals && skip_.size(2) == 1;  // at all times
            CausalConv1dRow<T> row = row_of(z, b, output);
            row.add[0] = bias[output];
            if (same) row.add[0] += before.skip[b.n * s_.skips + output - s_.residuals];
            row.condition[0] = same ? nullptr : before.at(b.n, output, b.t);
            row.y = to.at(b.n, output, b.t);
            kernel(row);
          }
        });
  }

  void backward(const Tensor& grad, const Tensor& grad_skip, const Tensors& to, void (*kernel)(CausalConv1dRow<T>&)) const {
    const auto from = outputs(grad.const_data_ptr<T>(), grad_skip.const_data_ptr<T>());
    const bool same = skip_.size(2) == 1 && s_.times != 1;  // one skip before for all times
    T* of_skip = to.skip.template mutable_data_ptr<T>();
    const Tensor turned = torch::stable::transpose(out_weight_, 0, 1);
    typename Convolution<T>::Partial partial(*this, to);
    CausalConv1dSums of_weight(blocks_.runs(), s_.out() * s_.rows()), of_samples(blocks_.runs(), s_.samples * s_.out());
    causal_conv1d_each(blocks_, [&] { return scratch(); },
        [&](const Scratch& own, const Block& b) {
          this->multiply(own, b);
          T* z = own.z.template mutable_data_ptr<T>();
          for (std::int64_t output = 0; output < s_.out(); ++output) {
            CausalConv1dRow<T> row = row_of(z, b, output);
            row.grad = from.at(b.n, output, b.t);
            kernel(row);  // which copies it to z
            of_samples.add(b.run, b.n * s_.out() + output, row.total[0]);
            const std::int64_t place = b.n * s_.skips + output - s_.residuals;
            if (output >= s_.residuals && !same) std::copy_n(row.grad, b.count, of_skip + place * s_.times + b.t);
          }
          causal_conv1d_product(turned, causal_conv1d_columns(own.z, b.count), causal_conv1d_columns(own.y, b.count));
          T* y = own.y.template mutable_data_ptr<T>();  // takes the place of its gradient
          this->pull_block(own, b, partial, y, y, blocks_.size, kernel);
          of_weight.add(b.run, this->outer(own.z, own.y, b.count).template const_data_ptr<T>());
        });
    const auto weight = of_weight.total(), samples = of_samples.total(), bias = CausalConv1dSums::over_rows(samples, s_.out());
    std::copy(weight.begin(), weight.end(), to.out_weight.template mutable_data_ptr<T>());
    for (std::int64_t n = 0; n < s_.samples && same; ++n) {
      std::copy_n(samples.begin() + n * s_.out() + s_.residuals, s_.skips, of_skip + n * s_.skips);
    }
    std::copy(bias.begin(), bias.end(), to.out_bias.template mutable_data_ptr<T>());
    this->finish(partial, to, s_.residuals > 0 ? grad.const_data_ptr<T>() : nullptr);
  }

 private:
  using Convolution<T>::s_, Convolution<T>::x_, Convolution<T>::blocks_;
  struct Scratch : Convolution<T>::Scratch {
    Tensor y, z;
  };

  Scratch scratch() const {
    return {Convolution<T>::scratch(s_.inputs(), s_.outputs), this->panel(s_.rows()), this->panel(s_.out())};
  }

  template <typename U>
  CausalConv1dOutputs<U> outputs(U* residual, U* skip) const {
    return {residual, skip, s_.residuals, s_.skips, s_.times};
  }

  CausalConv1dRow<T> row_of(T* z, const Block& b, std::int64_t output) const {
    CausalConv1dRow<T> row{};
    row.count = b.count;
    row.sums[0] = z + output * blocks_.size;
    return row;
  }

  Tensor out_weight_;  // of this op alone: a thread of the pool would record the product of an argument that has a gradient
  const Tensor out_bias_, skip_;
};

template <typename Function>
void in_type_of(const Tensor& x, Function function) {
  const CausalConv1dKernels& kernels = causal_conv1d_kernels();
  x.scalar_type() == ScalarType::Float ? function(0.0f, kernels.forward_float, kernels.backward_float)
                                       : function(0.0, kernels.forward_double, kernels.backward_double);
}

Tensor like(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

Tensor causal_conv1d_cpu(Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, std::int64_t dilation,
                         std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, {}, {}, {}};
  const Sizes s = sizes_of(given, dilation, gate);
  Tensor y = torch::stable::new_empty(x, {s.samples, s.rows(), s.times});
  in_type_of(x, [&](auto zero, auto forward, auto) { Convolution<decltype(zero)>(s, given).forward(y, forward); });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_cpu(
    Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, std::int64_t dilation, std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, {}, {}, {}};
  const Sizes s = sizes_of(given, dilation, gate);
  check(grad, x, {s.samples, s.rows(), s.times}, "grad must be like the result");
  grad = torch::stable::contiguous(grad);
  const Tensors to{like(x), like(weight), like(bias), like(condition), like(state), {}, {}, {}};
  in_type_of(x, [&](auto zero, auto, auto backward) { Convolution<decltype(zero)>(s, given).backward(grad, to, backward); });
  return {to.x, to.weight, to.bias, to.condition, to.state};
}

std::tuple<Tensor, Tensor> causal_conv1d_residual_cpu(Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state,
                                                      Tensor out_weight, Tensor out_bias, Tensor skip, std::int64_t dilation,
                                                      std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, out_weight, out_bias, skip};
  const Sizes s = residual_sizes_of(given, dilation, gate);
  Tensor residual = torch::stable::new_empty(x, {s.samples, s.residuals, s.times});
  Tensor sum = torch::stable::new_empty(x, {s.samples, s.skips, s.times});
  in_type_of(x, [&](auto zero, auto run, auto) { ResidualConvolution<decltype(zero)>(s, given).forward(residual, sum, run); });
  return {residual, sum};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> causal_conv1d_residual_backward_cpu(
    Tensor grad, Tensor grad_skip, Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, Tensor out_weight,
    Tensor out_bias, Tensor skip, std::int64_t dilation, std::int64_t gate) {
  const Tensors given{x, weight, bias, condition, state, out_weight, out_bias, skip};
  const Sizes s = residual_sizes_of(given, dilation, gate);
  check(grad, x, {s.samples, s.residuals, s.times}, "grad must be like the residual");
  check(grad_skip, x, {s.samples, s.skips, s.times}, "grad_skip must be like the skip");
  const Tensors to{like(x),     like(weight),     like(bias),     like(condition),
                   like(state), like(out_weight), like(out_bias), like(skip)};
  in_type_of(x, [&](auto zero, auto, auto backward) {
    ResidualConvolution<decltype(zero)>(s, given)
        .backward(torch::stable::contiguous(grad), torch::stable::contiguous(grad_skip), to, backward);
  });
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
