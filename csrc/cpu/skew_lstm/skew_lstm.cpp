// The recurrence of the Row LSTM and of the Diagonal BiLSTM: fastgen::skew_lstm and fastgen::skew_lstm_backward on the CPU.
#include "cpu/skew_lstm/skew_lstm.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrainFlops = 1 << 17;  // that a thread takes at least
constexpr std::int64_t kGroups = 16;           // of samples that share a sum of the weight's gradient, whatever the threads

void check(const Tensor& gates, const Tensor& weight, const Tensor& h0, const Tensor& c0) {
  STD_TORCH_CHECK(gates.scalar_type() == ScalarType::Float || gates.scalar_type() == ScalarType::Double,
                  "gates must be float32 or float64");
  STD_TORCH_CHECK(gates.dim() == 4 && gates.size(1) > 0 && gates.size(1) % 4 == 0 && gates.size(2) > 0,
                  "gates must be [N, 4 H, R, L], H and R at least 1");
  const std::int64_t hidden = gates.size(1) / 4;
  STD_TORCH_CHECK(weight.scalar_type() == gates.scalar_type() && weight.dim() == 3 && weight.size(0) == 4 * hidden &&
                      weight.size(1) == hidden && weight.size(2) > 0,
                  "weight must be [4 H, H, k] of the dtype of gates");
  for (const Tensor& state : {h0, c0}) {
    STD_TORCH_CHECK(state.scalar_type() == gates.scalar_type() && state.dim() == 3 && state.size(0) == gates.size(0) &&
                        state.size(1) == hidden && state.size(2) == gates.size(3),
                    "h0 and c0 must be [N, H, L] of the dtype of gates");
  }
}

template <typename T>
std::vector<T> pack_forwards(const T* weight, std::int64_t hidden, std::int64_t taps) {
  std::vector<T> packed;
  packed.reserve(hidden * hidden * taps * kLstmRows);
  const std::int64_t columns = hidden * taps;
  for (std::int64_t unit = 0; unit < hidden; ++unit) {
    for (std::int64_t column = 0; column < columns; ++column) {
      for (std::int64_t gate = 0; gate < kLstmRows; ++gate) packed.push_back(weight[(gate * hidden + unit) * columns + column]);
    }
  }
  return packed;
}

template <typename T>
std::vector<T> pack_backwards(const T* weight, std::int64_t hidden, std::int64_t taps) {
  std::vector<T> packed;
  packed.reserve((hidden + kLstmRows) * 4 * hidden * taps);
  for (std::int64_t first = 0; first < hidden; first += kLstmRows) {
    for (std::int64_t output = 0; output < 4 * hidden; ++output) {
      for (std::int64_t tap = taps - 1; tap >= 0; --tap) {
        for (std::int64_t unit = first; unit < first + kLstmRows; ++unit) {
          packed.push_back(unit < hidden ? weight[(output * hidden + unit) * taps + tap] : T(0));
        }
      }
    }
  }
  return packed;
}

template <typename T>
SkewLstm<T> inputs_of(const Tensor& gates, const Tensor& weight, const Tensor& h0, const Tensor& c0,
                      const std::vector<T>& packed) {
  SkewLstm<T> task{};
  task.hidden = gates.size(1) / 4;
  task.steps = gates.size(2);
  task.positions = gates.size(3);
  task.taps = weight.size(2);
  task.gates = gates.const_data_ptr<T>();
  task.h0 = h0.const_data_ptr<T>();
  task.c0 = c0.const_data_ptr<T>();
  task.forwards = packed.data();
  return task;
}

// function(begin, end, scratch) of all samples, or groups of them.
template <typename T, typename Function>
void in_parallel(const SkewLstm<T>& task, std::int64_t count, std::int64_t samples_each, bool backward, Function function) {
  const std::int64_t each = 8 * task.hidden * task.hidden * task.taps * task.steps * task.positions;
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainFlops / std::max<std::int64_t>(1, each * samples_each));
  const LstmRow row = lstm_row(task.positions, task.taps, skew_lstm_kernels().lanes);
  const std::size_t bytes = lstm_scratch(task.hidden, task.steps, row, backward) * sizeof(T);
  parallel_for(0, count, grain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(bytes);
    function(begin, end, reinterpret_cast<T*>(scratch.data()));
  });
}

std::tuple<Tensor, Tensor> skew_lstm_cpu(Tensor gates, Tensor weight, Tensor h0, Tensor c0) {
  check(gates, weight, h0, c0);
  for (Tensor* tensor : {&gates, &weight, &h0, &c0}) *tensor = torch::stable::contiguous(*tensor);
  const std::int64_t samples = gates.size(0), hidden = h0.size(1);
  Tensor h = torch::stable::new_empty(gates, {samples, hidden, gates.size(2), gates.size(3)});
  Tensor c = torch::stable::new_empty(c0, c0.sizes());
  const auto forward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    const std::vector<T> packed = pack_forwards(weight.const_data_ptr<T>(), hidden, weight.size(2));
    SkewLstm<T> task = inputs_of(gates, weight, h0, c0, packed);
    task.h = h.mutable_data_ptr<T>();
    task.c = c.mutable_data_ptr<T>();
    const auto run = [&](std::int64_t begin, std::int64_t end, T* scratch) { kernel(task, begin, end, scratch); };
    in_parallel(task, samples, 1, false, run);
  };
  const SkewLstmKernels& kernels = skew_lstm_kernels();
  gates.scalar_type() == ScalarType::Float ? forward(kernels.forward_float, 0.0f) : forward(kernels.forward_double, 0.0);
  return {h, c};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> skew_lstm_backward_cpu(Tensor grad_h, Tensor grad_c, Tensor gates, Tensor weight,
                                                                  Tensor h0, Tensor c0) {
  check(gates, weight, h0, c0);
  for (Tensor* tensor : {&grad_h, &grad_c, &gates, &weight, &h0, &c0}) *tensor = torch::stable::contiguous(*tensor);
  STD_TORCH_CHECK(grad_h.scalar_type() == gates.scalar_type() && grad_h.numel() == gates.numel() / 4, "grad_h must be like h");
  STD_TORCH_CHECK(grad_c.scalar_type() == gates.scalar_type() && grad_c.numel() == c0.numel(), "grad_c must be like c0");
  Tensor grad_gates = torch::stable::new_empty(gates, gates.sizes());
  Tensor grad_weight = torch::stable::new_empty(weight, weight.sizes());
  Tensor grad_h0 = torch::stable::new_empty(h0, h0.sizes()), grad_c0 = torch::stable::new_empty(c0, c0.sizes());
  const auto backward = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    const std::int64_t samples = gates.size(0), hidden = h0.size(1), taps = weight.size(2), size = weight.numel();
    const std::int64_t groups = std::min(samples, kGroups);
    const std::vector<T> forwards = pack_forwards(weight.const_data_ptr<T>(), hidden, taps);
    const std::vector<T> backwards = pack_backwards(weight.const_data_ptr<T>(), hidden, taps);
    SkewLstm<T> task = inputs_of(gates, weight, h0, c0, forwards);
    task.backwards = backwards.data();
    task.grad_h = grad_h.const_data_ptr<T>();
    task.grad_c = grad_c.const_data_ptr<T>();
    task.grad_gates = grad_gates.mutable_data_ptr<T>();
    task.grad_h0 = grad_h0.mutable_data_ptr<T>();
    task.grad_c0 = grad_c0.mutable_data_ptr<T>();
    std::vector<T> sums(groups * size);
    const auto run = [&](std::int64_t begin, std::int64_t end, T* scratch) {
      for (std::int64_t g = begin; g < end; ++g) {
        kernel(task, g * samples / groups, (g + 1) * samples / groups, sums.data() + g * size, scratch);
      }
    };
    in_parallel(task, groups, samples / std::max<std::int64_t>(1, groups), true, run);
    T* const total = grad_weight.mutable_data_ptr<T>();
    std::fill(total, total + size, T(0));
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t w = 0; w < size; ++w) total[w] += sums[g * size + w];
    }
  };
  const SkewLstmKernels& kernels = skew_lstm_kernels();
  gates.scalar_type() == ScalarType::Float ? backward(kernels.backward_float, 0.0f) : backward(kernels.backward_double, 0.0);
  return {grad_gates, grad_weight, grad_h0, grad_c0};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("skew_lstm", TORCH_BOX(&fastgen::skew_lstm_cpu));
  m.impl("skew_lstm_backward", TORCH_BOX(&fastgen::skew_lstm_backward_cpu));
}
