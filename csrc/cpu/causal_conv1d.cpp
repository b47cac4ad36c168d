// Dilated causal convolution with a gate: fastgen::causal_conv1d and fastgen::causal_conv1d_backward on the CPU.
//
// Time goes in blocks. What a block reads is laid out as a panel [taps * channels, times], the sums are one product of PyTorch's,
// and bias, condition and gate follow while the sums are in the cache.
#include "cpu/causal_conv1d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>
#include <vector>

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kBlockBytes = 768 << 10;  // of a panel and its sums: most of a second-level cache
constexpr std::int64_t kMostTimes = 2048;        // of a block
constexpr std::int64_t kRunsBytes = 16 << 20;    // of the gradients of the weights that are summed apart

struct Sizes {
  std::int64_t samples, channels, outputs, taps, times, dilation, history, gate, rows, block;  // rows: of the result
};

Sizes sizes_of(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& condition, const Tensor& state,
               std::int64_t dilation, std::int64_t gate) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  for (const Tensor& tensor : {weight, bias, condition, state}) {
    STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "all arguments must have the dtype of x");
  }
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3 && weight.size(1) == x.size(1) && weight.size(2) > 0,
                  "x must be [N, C, T] and weight [O, C, K]");
  STD_TORCH_CHECK(gate >= 0 && gate < kGates && dilation > 0, "gate is ", gate, " and dilation ", dilation);
  Sizes s{x.size(0), x.size(1), weight.size(0), weight.size(2), x.size(2), dilation, 0, gate, 0, 0};
  s.history = (s.taps - 1) * dilation;
  s.rows = gate == kNoGate ? s.outputs : s.outputs / 2;
  STD_TORCH_CHECK(gate == kNoGate || s.outputs % 2 == 0, "weight has ", s.outputs, " output channels; a gate needs an even one");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == s.outputs, "bias must be [O]");
  STD_TORCH_CHECK(condition.dim() == 3 && condition.size(0) == s.samples && condition.size(1) == s.outputs &&
                      (condition.size(2) == 1 || condition.size(2) == s.times),
                  "condition must be [N, O, T] or [N, O, 1]");
  STD_TORCH_CHECK(state.dim() == 3 && state.size(0) == s.samples && state.size(1) == s.channels && state.size(2) == s.history,
                  "state must be [N, C, (K - 1) dilation]");
  const std::int64_t bytes = x.scalar_type() == ScalarType::Float ? 4 : 8;
  s.block = std::max<std::int64_t>(256, kBlockBytes / bytes / std::max<std::int64_t>(1, s.taps * s.channels + s.outputs) / 64 * 64);
  // two blocks at least, for two threads
  s.block = std::min({s.block, kMostTimes, std::max<std::int64_t>(256, (s.times / 2 + 63) / 64 * 64)});
  return s;
}

// a @ b, of float32 under autocast too, which knows nothing of the form that writes to a tensor.
void product(const Tensor& a, const Tensor& b, const Tensor& to) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(to)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor first_columns(Tensor matrix, std::int64_t count) { return torch::stable::narrow(matrix, 1, 0, count); }

// Rows of numbers at neighbouring times of a sequence that is `state` before `rest`; zeros beyond both.
template <typename T>
struct Sequence {
  const T *state, *rest;
  std::int64_t before, after;  // times of each

  void copy(T* to, std::int64_t row, std::int64_t first, std::int64_t count) const {
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = first + done, left = count - done;
      std::int64_t length = left;
      if (at < 0 || at >= before + after) {
        length = at < 0 ? std::min(left, -at) : left;
        std::fill_n(to + done, length, T(0));
      } else {
        const bool early = at < before;
        length = std::min(left, early ? before - at : before + after - at);
        const T* from = early ? state + row * before + at : rest + row * after + at - before;
        std::memcpy(to + done, from, static_cast<std::size_t>(length) * sizeof(T));
      }
      done += length;
    }
  }
};

// The blocks of all samples in runs that do not depend on the number of threads: function(run, sample, first time, times).
struct Blocks {
  std::int64_t samples, times, size, most_runs;

  std::int64_t of_sample() const { return (times + size - 1) / size; }
  std::int64_t runs() const { return std::min(most_runs, samples * of_sample()); }

  template <typename Scratch, typename Function>
  void each(Scratch scratch, Function function) const {
    const std::int64_t all = samples * of_sample(), count = runs();
    torch::stable::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
      auto own = scratch();
      for (std::int64_t run = begin; run < end; ++run) {
        for (std::int64_t i = run * all / count; i < (run + 1) * all / count; ++i) {
          const std::int64_t t = i % of_sample() * size;
          function(own, run, i / of_sample(), t, std::min(size, times - t));
        }
      }
    });
  }
};

template <typename T>
class Convolution {
 public:
  Convolution(const Sizes& sizes, Tensor x, const Tensor& weight, Tensor bias, Tensor condition, Tensor state)
      : s_(sizes),
        x_(torch::stable::contiguous(x)),
        bias_(torch::stable::contiguous(bias)),
        condition_(torch::stable::contiguous(condition)),
        state_(torch::stable::contiguous(state)),
        weight_(torch::stable::contiguous(weight)),
        matrix_(torch::stable::new_empty(weight_, {s_.outputs, inputs()})),
        blocks_{s_.samples, s_.times, s_.block, most_runs()} {
    const T* from = weight_.const_data_ptr<T>();
    T* to = matrix_.mutable_data_ptr<T>();
    each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      to[o * inputs() + k * s_.channels + c] = from[place];
    });
  }

  void forward(const Tensor& y, void (*kernel)(const CausalConv1dRow<T>&)) {
    T* to = y.mutable_data_ptr<T>();
    blocks_.each([&] { return scratch(inputs(), s_.outputs); },
                 [&](const Scratch& own, std::int64_t, std::int64_t n, std::int64_t t, std::int64_t count) {
                   multiply(own, n, t, count);
                   for (std::int64_t r = 0; r < s_.rows; ++r) {
                     CausalConv1dRow<T> row = row_of(own, n, t, count, r);
                     row.y = to + (n * s_.rows + r) * s_.times + t;
                     kernel(row);
                   }
                 });
  }

  void backward(const Tensor& grad, const Tensor& grad_x, const Tensor& grad_weight, const Tensor& grad_bias,
                const Tensor& grad_condition, const Tensor& grad_state, void (*kernel)(CausalConv1dRow<T>&)) {
    const bool constant = condition_.size(2) == 1 && s_.times != 1;
    const Tensor of_sums = constant ? torch::stable::new_empty(x_, {s_.samples, s_.outputs, s_.times}) : grad_condition;
    const std::int64_t weights = s_.outputs * inputs();
    std::vector<double> of_matrix(blocks_.runs() * weights);
    std::vector<double> of_samples(blocks_.runs() * s_.samples * s_.outputs);
    const T* from = grad.const_data_ptr<T>();
    T* to = of_sums.mutable_data_ptr<T>();
    blocks_.each(
        [&] { return scratch(inputs(), s_.outputs); },
        [&](const Scratch& own, std::int64_t run, std::int64_t n, std::int64_t t, std::int64_t count) {
          multiply(own, n, t, count);
          for (std::int64_t r = 0; r < s_.rows; ++r) {
            CausalConv1dRow<T> row = row_of(own, n, t, count, r);
            row.grad = from + (n * s_.rows + r) * s_.times + t;
            kernel(row);
            for (int half = 0; half < halves(); ++half) {
              const std::int64_t place = n * s_.outputs + half * s_.rows + r;
              of_samples[run * s_.samples * s_.outputs + place] += row.total[half];
              std::copy_n(row.sums[half], count, to + place * s_.times + t);
            }
          }
          const Tensor part = torch::stable::new_empty(matrix_, {s_.outputs, inputs()});
          product(first_columns(own.sums, count), torch::stable::transpose(first_columns(own.panel, count), 0, 1), part);
          const T* found = part.const_data_ptr<T>();
          for (std::int64_t i = 0; i < weights; ++i) of_matrix[run * weights + i] += found[i];
        });
    for (std::int64_t run = 1; run < blocks_.runs(); ++run) {
      for (std::int64_t i = 0; i < weights; ++i) of_matrix[i] += of_matrix[run * weights + i];
      for (std::int64_t i = 0; i < s_.samples * s_.outputs; ++i) of_samples[i] += of_samples[run * s_.samples * s_.outputs + i];
    }
    std::vector<double> of_bias(s_.outputs);
    for (std::int64_t i = 0; i < s_.samples * s_.outputs && blocks_.runs() > 0; ++i) of_bias[i % s_.outputs] += of_samples[i];
    std::copy(of_bias.begin(), of_bias.end(), grad_bias.mutable_data_ptr<T>());
    T* of_condition = grad_condition.mutable_data_ptr<T>();
    for (std::int64_t i = 0; i < s_.samples * s_.outputs && constant; ++i) {
      of_condition[i] = blocks_.runs() > 0 ? static_cast<T>(of_samples[i]) : T(0);
    }
    T* of_weight = grad_weight.mutable_data_ptr<T>();
    each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      of_weight[place] = blocks_.runs() > 0 ? static_cast<T>(of_matrix[o * inputs() + k * s_.channels + c]) : T(0);
    });
    pull(of_sums, grad_x, grad_state);
  }

 private:
  struct Scratch {
    Tensor panel, sums;
  };

  std::int64_t inputs() const { return s_.taps * s_.channels; }
  // Each has sums of its own for the gradient of the weights.
  std::int64_t most_runs() const {
    return std::clamp<std::int64_t>(kRunsBytes / 8 / std::max<std::int64_t>(1, s_.outputs * inputs()), 2, 16);
  }
  int halves() const { return s_.gate == kNoGate ? 1 : 2; }
  Scratch scratch(std::int64_t from, std::int64_t to) const {
    return {torch::stable::new_empty(matrix_, {from, s_.block}), torch::stable::new_empty(matrix_, {to, s_.block})};
  }

  template <typename Function>
  void each_weight(Function function) const {
    for (std::int64_t o = 0; o < s_.outputs; ++o)
      for (std::int64_t c = 0; c < s_.channels; ++c)
        for (std::int64_t k = 0; k < s_.taps; ++k) function((o * s_.channels + c) * s_.taps + k, o, k, c);
  }

  // Leaves the sums of a block, without bias.
  void multiply(const Scratch& own, std::int64_t n, std::int64_t t, std::int64_t count) const {
    const Sequence<T> inputs_of_all{state_.const_data_ptr<T>(), x_.const_data_ptr<T>(), s_.history, s_.times};
    T* panel = own.panel.template mutable_data_ptr<T>();
    for (std::int64_t row = 0; row < inputs(); ++row) {
      inputs_of_all.copy(panel + row * s_.block, n * s_.channels + row % s_.channels, t + row / s_.channels * s_.dilation, count);
    }
    product(matrix_, first_columns(own.panel, count), first_columns(own.sums, count));
  }

  // The gradients of x and of the state: tap k carries the gradient of the sums at t to the input at t + k dilation.
  void pull(const Tensor& of_sums, const Tensor& grad_x, const Tensor& grad_state) const {
    Tensor back = torch::stable::new_empty(matrix_, {s_.channels, s_.taps * s_.outputs});
    T *turned = back.mutable_data_ptr<T>(), *of_x = grad_x.mutable_data_ptr<T>(), *of_state = grad_state.mutable_data_ptr<T>();
    const T* weight = weight_.const_data_ptr<T>();
    each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      turned[(c * s_.taps + k) * s_.outputs + o] = weight[place];
    });
    const Sequence<T> sums{nullptr, of_sums.const_data_ptr<T>(), 0, s_.times};
    const Blocks all{s_.samples, s_.history + s_.times, s_.block, most_runs()};
    all.each([&] { return scratch(s_.taps * s_.outputs, s_.channels); },
             [&](const Scratch& own, std::int64_t, std::int64_t n, std::int64_t t, std::int64_t count) {
               T* panel = own.panel.template mutable_data_ptr<T>();
               for (std::int64_t row = 0; row < s_.taps * s_.outputs; ++row) {
                 sums.copy(panel + row * s_.block, n * s_.outputs + row % s_.outputs, t - row / s_.outputs * s_.dilation, count);
               }
               product(back, first_columns(own.panel, count), first_columns(own.sums, count));
               const T* found = own.sums.template const_data_ptr<T>();
               const std::int64_t early = std::clamp<std::int64_t>(s_.history - t, 0, count);
               for (std::int64_t c = 0; c < s_.channels; ++c) {
                 const std::int64_t place = n * s_.channels + c;
                 std::copy_n(found + c * s_.block, early, of_state + place * s_.history + std::min(t, s_.history));
                 std::copy_n(found + c * s_.block + early, count - early, of_x + place * s_.times + t + early - s_.history);
               }
             });
  }

  CausalConv1dRow<T> row_of(const Scratch& own, std::int64_t n, std::int64_t t, std::int64_t count, std::int64_t r) const {
    CausalConv1dRow<T> row{};
    row.gate = s_.gate;
    row.count = count;
    const bool constant = condition_.size(2) == 1;
    for (int half = 0; half < halves(); ++half) {
      const std::int64_t output = half * s_.rows + r, place = n * s_.outputs + output;
      const T* condition = condition_.const_data_ptr<T>();
      row.sums[half] = own.sums.template mutable_data_ptr<T>() + output * s_.block;
      row.add[half] = bias_.const_data_ptr<T>()[output] + (constant ? condition[place] : T(0));
      row.condition[half] = constant ? nullptr : condition + place * s_.times + t;
    }
    return row;
  }

  const Sizes& s_;
  const Tensor x_, bias_, condition_, state_, weight_;
  const Tensor matrix_;  // [O, taps * channels]
  const Blocks blocks_;
};

Tensor causal_conv1d_cpu(Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, std::int64_t dilation,
                         std::int64_t gate) {
  const Sizes sizes = sizes_of(x, weight, bias, condition, state, dilation, gate);
  Tensor y = torch::stable::new_empty(x, {sizes.samples, sizes.rows, sizes.times});
  const CausalConv1dKernels& kernels = causal_conv1d_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    Convolution<float>(sizes, x, weight, bias, condition, state).forward(y, kernels.forward_float);
  } else {
    Convolution<double>(sizes, x, weight, bias, condition, state).forward(y, kernels.forward_double);
  }
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward_cpu(Tensor grad, Tensor x, Tensor weight, Tensor bias,
                                                                              Tensor condition, Tensor state, std::int64_t dilation,
                                                                              std::int64_t gate) {
  const Sizes sizes = sizes_of(x, weight, bias, condition, state, dilation, gate);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type() && grad.numel() == sizes.samples * sizes.rows * sizes.times,
                  "grad must be like the result");
  grad = torch::stable::contiguous(grad);
  const auto like = [](const Tensor& t) { return torch::stable::new_empty(t, t.sizes()); };
  Tensor grad_x = like(x), grad_weight = like(weight), grad_bias = like(bias), grad_condition = like(condition);
  Tensor grad_state = like(state);
  const CausalConv1dKernels& kernels = causal_conv1d_kernels();
  const auto into = [&](auto zero, auto kernel) {
    Convolution<decltype(zero)>(sizes, x, weight, bias, condition, state)
        .backward(grad, grad_x, grad_weight, grad_bias, grad_condition, grad_state, kernel);
  };
  x.scalar_type() == ScalarType::Float ? into(0.0f, kernels.backward_float) : into(0.0, kernels.backward_double);
  return {grad_x, grad_weight, grad_bias, grad_condition, grad_state};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("causal_conv1d", TORCH_BOX(&fastgen::causal_conv1d_cpu));
  m.impl("causal_conv1d_backward", TORCH_BOX(&fastgen::causal_conv1d_backward_cpu));
}
