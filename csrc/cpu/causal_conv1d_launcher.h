// Dilated causal convolution with a gate: the products and threads of its launchers, and the gradient of what it reads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>

#include "cpu/causal_conv1d_sequence.h"
#include "cpu/causal_conv1d_sizes.h"

namespace fastgen {

// a @ b, of float32 under autocast too, which knows nothing of the form that writes to a tensor.
inline void causal_conv1d_product(const torch::stable::Tensor& a, const torch::stable::Tensor& b, const torch::stable::Tensor& to) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(to)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<torch::stable::Tensor>(stack[0]);
}

inline torch::stable::Tensor causal_conv1d_columns(torch::stable::Tensor matrix, std::int64_t count, std::int64_t first = 0) {
  return torch::stable::narrow(matrix, 1, first, count);
}

// Of blocks, on all threads.
template <typename Scratch, typename Function>
void causal_conv1d_each(const CausalConv1dBlocks& blocks, Scratch scratch, Function function) {
  blocks.each([](auto... given) { torch::stable::parallel_for(given...); }, scratch, function);
}

// Takes the gradients of the sums [N, O, T] back to x and to the state.
template <typename T>
class CausalConv1dPull {
  using Tensor = torch::stable::Tensor;

 public:
  CausalConv1dPull(const CausalConv1dSizes& sizes, const CausalConv1dBlocks& blocks, const Tensor& weight, const Tensor& of_sums)
      : s_(sizes),
        blocks_(blocks),
        of_sums_(of_sums),
        taps_(torch::stable::new_empty(of_sums, {s_.taps, s_.channels, s_.outputs})) {
    T* turned = taps_.mutable_data_ptr<T>();
    const T* from = weight.const_data_ptr<T>();
    s_.each_weight([&](std::int64_t place, std::int64_t o, std::int64_t k, std::int64_t c) {
      turned[(k * s_.channels + c) * s_.outputs + o] = from[place];
    });
  }

  // The residual, if it is not null, carries its own gradient to x.
  void pull(const Tensor& to_x, const Tensor& to_state, const T* residual) const {
    std::fill_n(to_state.mutable_data_ptr<T>(), to_state.numel(), T(0));
    T* of_x = to_x.mutable_data_ptr<T>();
    const auto scratch = [&] { return torch::stable::new_empty(taps_, {s_.channels, blocks_.size}); };
    causal_conv1d_each(blocks_, scratch, [&](const Tensor& own, const CausalConv1dBlock& b) {
      for (std::int64_t t = 0; t < s_.history() && b.t == 0; t += blocks_.size) {
        carry(own, {b.run, b.n, t, std::min(blocks_.size, s_.history() - t)}, to_state, -s_.history());
      }
      carry(own, b, to_x, 0);
      for (std::int64_t c = 0; c < s_.channels && residual; ++c) {
        const std::int64_t place = (b.n * s_.channels + c) * s_.times + b.t;
        add_to(of_x + place, residual + place, b.count);
      }
    });
  }

 private:
  // To a block of inputs, of which `to` has those from the time `start` on: a tap takes the gradient of the sums at t + ahead to
  // the input at t. The last tap, whose ahead is 0, is alone to reach all of x, and reaches nothing before.
  void carry(const Tensor& own, const CausalConv1dBlock& b, const Tensor& to, std::int64_t start) const {
    const Tensor sums = torch::stable::select(of_sums_, 0, b.n), inputs = torch::stable::select(to, 0, b.n);
    for (std::int64_t k = s_.taps - 1; k >= 0; --k) {
      const std::int64_t ahead = (s_.taps - 1 - k) * s_.dilation, begin = std::max(start + b.t, -ahead);
      const std::int64_t count = std::min(start + b.t + b.count, s_.times - ahead) - begin;
      if (count <= 0) continue;
      const Tensor tap = torch::stable::select(taps_, 0, k), from = causal_conv1d_columns(sums, count, begin + ahead);
      if (ahead == 0) {
        causal_conv1d_product(tap, from, causal_conv1d_columns(inputs, count, begin - start));
        continue;
      }
      causal_conv1d_product(tap, from, causal_conv1d_columns(own, count));
      const T* found = own.const_data_ptr<T>();
      T* place = inputs.mutable_data_ptr<T>() + begin - start;
      for (std::int64_t c = 0; c < s_.channels; ++c) add_to(place + c * to.size(2), found + c * blocks_.size, count);
    }
  }

  const CausalConv1dSizes& s_;
  const CausalConv1dBlocks& blocks_;
  const Tensor of_sums_, taps_;
};

}  // namespace fastgen
