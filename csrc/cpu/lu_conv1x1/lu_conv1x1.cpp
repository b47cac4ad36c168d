// The LU-parameterised 1x1 convolution: fastgen::lu_conv1x1 (its inverse) and fastgen::lu_conv1x1_backward on the CPU.
#include "cpu/lu_conv1x1/lu_conv1x1.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrainFlops = 1 << 17;  // that a thread takes at least

// The factors, and the solution of both systems that they make.
template <typename T>
class Factors {
 public:
  Factors(const Tensor& permutation, const Tensor& lower, const Tensor& upper, const Tensor& diagonal)
      : channels_(diagonal.size(0)), slots_((channels_ + kLuRows - 1) / kLuRows * kLuRows), rows_(channels_), sources_(channels_),
        lower_(lower.const_data_ptr<T>()), upper_(upper.const_data_ptr<T>()), diagonal_(diagonal.const_data_ptr<T>()) {
    std::iota(rows_.begin(), rows_.end(), 0);
    const std::int64_t* places = permutation.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < channels_; ++i) sources_[places[i]] = i;
  }

  // x of P L U x = y, less `bias`; or, transposed, y of (P L U)^T y = x. `between`, unless null, gets what solves the first
  // triangle.
  void solve(const Tensor& given, const T* bias, bool transposed, const Tensor& solved, T* between) const {
    const LuConv1x1Kernels& kernels = lu_conv1x1_kernels();
    const auto kernel = [&] {
      if constexpr (sizeof(T) == 4) return kernels.solve_float;
      else return kernels.solve_double;
    }();
    const std::int64_t samples = given.size(0), positions = given.size(2), last = slots_ - 1, c = channels_;
    if (samples * positions == 0) return;
    const Arena triangles(static_cast<std::size_t>(2 * lu_packed_size(slots_)) * sizeof(T));
    T *downwards = reinterpret_cast<T*>(triangles.data()), *upwards = downwards + lu_packed_size(slots_);
    const auto unit = [](std::int64_t) { return T(1); };
    const auto diagonal = [&](std::int64_t i) { return diagonal_[i]; };
    if (transposed) {
      pack([&](std::int64_t i, std::int64_t j) { return upper_[j * c + i]; }, diagonal, 0, 1, downwards);
      pack([&](std::int64_t i, std::int64_t j) { return lower_[j * c + i]; }, unit, last, -1, upwards);
    } else {
      pack([&](std::int64_t i, std::int64_t j) { return lower_[i * c + j]; }, unit, 0, 1, downwards);
      pack([&](std::int64_t i, std::int64_t j) { return upper_[i * c + j]; }, diagonal, last, -1, upwards);
    }
    const LuSolve<T> task{samples,
                          c,
                          positions,
                          slots_,
                          given.const_data_ptr<T>(),
                          downwards,
                          upwards,
                          transposed ? rows_.data() : sources_.data(),
                          transposed ? sources_.data() : rows_.data(),
                          bias,
                          solved.mutable_data_ptr<T>(),
                          between};
    const std::int64_t lanes = kernels.lanes;
    const std::int64_t groups = positions == 1 ? (samples + lanes - 1) / lanes : samples * lu_groups_of_sample(positions, lanes);
    const std::int64_t tiles = (groups + kernels.groups - 1) / kernels.groups;
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainFlops / (2 * c * (c + 8) * lanes * kernels.groups));
    parallel_for(0, tiles, grain, [&](std::int64_t begin, std::int64_t end) {
      const Arena scratch(static_cast<std::size_t>(lu_scratch(slots_, kernels)) * sizeof(T));
      kernel(task, begin * kernels.groups, std::min(end * kernels.groups, groups), reinterpret_cast<T*>(scratch.data()));
    });
  }

  const std::vector<std::int64_t>& sources() const { return sources_; }

 private:
  // Row k in the order of solution is row first + step k of the matrix.
  template <typename Coefficient, typename Diagonal>
  void pack(Coefficient coefficient, Diagonal diagonal, std::int64_t first, std::int64_t step, T* packed) const {
    const auto row_of = [&](std::int64_t k) { return first + step * k; };
    for (std::int64_t k = 0; k < slots_; k += kLuRows) {
      T reciprocals[kLuRows];
      for (std::int64_t r = 0; r < kLuRows; ++r) {
        const std::int64_t row = row_of(k + r);
        *packed++ = reciprocals[r] = row < channels_ ? 1 / diagonal(row) : T(1);
      }
      for (std::int64_t j = 0; j < k + kLuRows; ++j) {
        const std::int64_t column = row_of(j);
        for (std::int64_t r = 0; r < kLuRows; ++r) {
          const std::int64_t row = row_of(k + r);
          const bool counts = j < k + r && row < channels_ && column < channels_;
          *packed++ = counts ? -coefficient(row, column) * reciprocals[r] : T(0);
        }
      }
    }
  }

  std::int64_t channels_, slots_;
  std::vector<std::int64_t> rows_, sources_;  // of a slot: the channel of x, and of y
  const T *lower_, *upper_, *diagonal_;
};

void check(const Tensor& y, const Tensor& permutation, const Tensor& lower, const Tensor& upper, const Tensor& diagonal,
           const Tensor& bias) {
  STD_TORCH_CHECK(y.scalar_type() == ScalarType::Float || y.scalar_type() == ScalarType::Double, "y must be float32 or float64");
  STD_TORCH_CHECK(y.dim() == 3 && y.size(1) > 0, "y must be [N, C, positions], C at least 1");
  const std::int64_t channels = y.size(1);
  for (const Tensor& tensor : {lower, upper}) {
    STD_TORCH_CHECK(tensor.scalar_type() == y.scalar_type(), "lower and upper must have the dtype of y");
    const bool fits = tensor.dim() == 2 && tensor.size(0) == channels && tensor.size(1) == channels;
    STD_TORCH_CHECK(fits, "lower and upper must be [C, C]");
  }
  for (const Tensor& tensor : {diagonal, bias}) {
    STD_TORCH_CHECK(tensor.scalar_type() == y.scalar_type(), "diagonal and bias must have the dtype of y");
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == channels, "diagonal and bias must be [C]");
  }
  STD_TORCH_CHECK(permutation.scalar_type() == ScalarType::Long && permutation.dim() == 1 && permutation.size(0) == channels,
                  "permutation must be int64 [C]");
  std::vector<bool> seen(channels);
  const Tensor in_order = torch::stable::contiguous(permutation);
  const std::int64_t* places = in_order.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < channels; ++i) {
    const bool is_new = places[i] >= 0 && places[i] < channels && !seen[places[i]];
    STD_TORCH_CHECK(is_new, "permutation must have every number below ", channels, " once");
    seen[places[i]] = true;
  }
}

Tensor lu_conv1x1_cpu(Tensor y, Tensor permutation, Tensor lower, Tensor upper, Tensor diagonal, Tensor bias) {
  check(y, permutation, lower, upper, diagonal, bias);
  for (Tensor* tensor : {&y, &permutation, &lower, &upper, &diagonal, &bias}) *tensor = torch::stable::contiguous(*tensor);
  Tensor x = torch::stable::new_empty(y, y.sizes());
  const auto solve = [&](auto zero) {
    using T = decltype(zero);
    Factors<T>(permutation, lower, upper, diagonal).solve(y, bias.const_data_ptr<T>(), false, x, nullptr);
  };
  y.scalar_type() == ScalarType::Float ? solve(0.0f) : solve(0.0);
  return x;
}

// Of float32 under autocast too, which knows nothing of the form that writes to a tensor.
Tensor product(const char* name, const Tensor& a, const Tensor& b, const Tensor& result) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(result)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// [C, N positions].
Tensor by_channel(const Tensor& tensor) {
  return torch::stable::reshape(torch::stable::transpose(tensor, 0, 1), {tensor.size(1), tensor.size(0) * tensor.size(2)});
}

// The sum over samples and positions of a[i] b[j], [C, C]: in one product, for which both are transposed, or, where that is more
// memory than a matrix a sample, in one a sample.
Tensor sum_of_products(const Tensor& a, const Tensor& b) {
  const std::int64_t samples = a.size(0), channels = a.size(1), positions = a.size(2);
  if (positions < channels) {
    const Tensor result = torch::stable::new_empty(a, {channels, channels});
    return product("aten::mm", by_channel(a), torch::stable::transpose(by_channel(b), 0, 1), result);
  }
  const Tensor each = torch::stable::new_empty(a, {samples, channels, channels});
  product("aten::bmm", a, torch::stable::transpose(b, 1, 2), each);
  return torch::stable::sum(each, torch::headeronly::IntHeaderOnlyArrayRef({0}));
}

// With L a = P^T y, U x = a, and g the gradients, summed over positions: dL = -(P^T g_y) a^T below the diagonal,
// dU = -g_a x^T on it and above.
template <typename T>
void factor_gradients(const Factors<T>& factors, const Tensor& of_l, const Tensor& of_u, const Tensor& grad_lower,
                      const Tensor& grad_upper, const Tensor& grad_diagonal) {
  const std::int64_t c = grad_diagonal.size(0);
  const T *l_from = of_l.const_data_ptr<T>(), *u_from = of_u.const_data_ptr<T>();
  T *l_to = grad_lower.mutable_data_ptr<T>(), *u_to = grad_upper.mutable_data_ptr<T>(),
    *d_to = grad_diagonal.mutable_data_ptr<T>();
  for (std::int64_t i = 0; i < c; ++i) {
    const T* l_row = l_from + factors.sources()[i] * c;
    for (std::int64_t j = 0; j < c; ++j) {
      l_to[i * c + j] = j < i ? -l_row[j] : T(0);
      u_to[i * c + j] = j > i ? -u_from[i * c + j] : T(0);
    }
    d_to[i] = -u_from[i * c + i];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lu_conv1x1_backward_cpu(Tensor grad, Tensor y, Tensor permutation,
                                                                           Tensor lower, Tensor upper, Tensor diagonal,
                                                                           Tensor bias) {
  check(y, permutation, lower, upper, diagonal, bias);
  for (Tensor* tensor : {&grad, &y, &permutation, &lower, &upper, &diagonal, &bias}) *tensor = torch::stable::contiguous(*tensor);
  STD_TORCH_CHECK(grad.scalar_type() == y.scalar_type() && grad.dim() == 3 && grad.size(0) == y.size(0) &&
                      grad.size(1) == y.size(1) && grad.size(2) == y.size(2),
                  "grad must be like y");
  Tensor grad_y = torch::stable::new_empty(y, y.sizes()), x = torch::stable::new_empty(y, y.sizes());
  Tensor grad_a = torch::stable::new_empty(y, y.sizes()), a = torch::stable::new_empty(y, y.sizes());
  Tensor grad_lower = torch::stable::new_empty(lower, lower.sizes()), grad_upper = torch::stable::new_empty(upper, upper.sizes());
  Tensor grad_diagonal = torch::stable::new_empty(diagonal, diagonal.sizes());
  const auto backward = [&](auto zero) {
    using T = decltype(zero);
    const Factors<T> factors(permutation, lower, upper, diagonal);
    const std::vector<T> none(y.size(1));
    factors.solve(y, none.data(), false, x, a.mutable_data_ptr<T>());
    factors.solve(grad, none.data(), true, grad_y, grad_a.mutable_data_ptr<T>());
    factor_gradients(factors, sum_of_products(grad_y, a), sum_of_products(grad_a, x), grad_lower, grad_upper, grad_diagonal);
  };
  y.scalar_type() == ScalarType::Float ? backward(0.0f) : backward(0.0);
  const Tensor sums = torch::stable::sum(grad, torch::headeronly::IntHeaderOnlyArrayRef({0, 2}));
  Tensor grad_bias = torch::stable::subtract(torch::stable::new_zeros(bias, bias.sizes()), sums);
  return {grad_y, grad_lower, grad_upper, grad_diagonal, grad_bias};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("lu_conv1x1", TORCH_BOX(&fastgen::lu_conv1x1_cpu));
  m.impl("lu_conv1x1_backward", TORCH_BOX(&fastgen::lu_conv1x1_backward_cpu));
}
