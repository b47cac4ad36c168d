// The gate of a causal convolution, kWidth times at once.
#include <type_traits>

#include "common/lanes.h"
#include "cpu/causal_conv1d.h"

namespace fastgen {
namespace {

inline Double erf(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_erf(x[i]);
  return x;
}

// The gated unit of a and g, and its derivatives.
template <typename V>
struct Unit {
  V value, of_a, of_g;
};

template <std::int64_t kGate, typename V>
inline Unit<V> unit_of(V a, V g) {
  using T = std::remove_reference_t<decltype(a[0])>;
  const V one = V{} + 1;
  if constexpr (kGate == kTanhSigmoid) {
    const V t = tanh(a), s = sigmoid(g);
    return {t * s, (one - t) * (one + t) * s, t * s * (one - s)};
  } else if constexpr (kGate == kGlu) {
    const V s = sigmoid(g);
    return {a * s, s, a * s * (one - s)};
  } else if constexpr (kGate == kReglu) {
    const auto open = g > V{};
    return {a * (g < V{} ? V{} : g), g < V{} ? V{} : g, open ? a : V{}};  // NaN passes
  } else if constexpr (kGate == kGeglu) {
    const V whole = (one + erf(g * T(0.70710678118654752440))) / 2;
    const V density = exp(-g * g / 2) * T(0.39894228040143267794);
    return {a * g * whole, g * whole, a * (whole + g * density)};
  } else if constexpr (kGate == kSwiglu) {
    const V s = sigmoid(g);
    return {a * g * s, g * s, a * (s + g * s * (one - s))};
  } else {
    return {a, one, V{}};
  }
}

template <typename V, typename T>
inline V sum_at(const CausalConv1dRow<T>& row, int half, std::int64_t i, std::int64_t n) {
  const V sum = load_first<V>(row.sums[half] + i, n) + row.add[half];
  return row.condition[half] ? sum + load_first<V>(row.condition[half] + i, n) : sum;
}

template <typename V>
inline double total_of(V v, std::int64_t n) {
  double total = 0;
  for (std::int64_t i = 0; i < (n < kWidth ? n : kWidth); ++i) total += double(v[i]);
  return total;
}

template <std::int64_t kGate, typename T>
void forward_of(const CausalConv1dRow<T>& row) {
  using V = typename VectorOf<T>::type;
  for (std::int64_t i = 0; i < row.count; i += kWidth) {
    const std::int64_t n = row.count - i;
    const V a = sum_at<V>(row, 0, i, n), g = kGate == kNoGate ? V{} : sum_at<V>(row, 1, i, n);
    store_first(row.y + i, unit_of<kGate>(a, g).value, n);
  }
}

template <std::int64_t kGate, bool kValue, typename T>
void backward_of(CausalConv1dRow<T>& row) {
  using V = typename VectorOf<T>::type;
  row.total[0] = row.total[1] = 0;
  constexpr std::int64_t kTogether = 32 * kWidth;  // added in the lanes' own precision before they go into the total
  for (std::int64_t begin = 0; begin < row.count; begin += kTogether) {
    const std::int64_t end = begin + kTogether < row.count ? begin + kTogether : row.count;
    V of_a{}, of_g{};
    for (std::int64_t i = begin; i < end; i += kWidth) {
      const std::int64_t n = row.count - i;
      const V a = sum_at<V>(row, 0, i, n), g = kGate == kNoGate ? V{} : sum_at<V>(row, 1, i, n);
      const V grad = load_first<V>(row.grad + i, n);
      const Unit<V> unit = unit_of<kGate>(a, g);
      if constexpr (kValue) store_first(row.y + i, unit.value, n);
      const V first = grad * unit.of_a, second = grad * unit.of_g;
      store_first(row.sums[0] + i, first, n);
      if constexpr (kGate != kNoGate) store_first(row.sums[1] + i, second, n);
      if (n < kWidth) {
        row.total[0] += total_of(first, n);
        row.total[1] += total_of(second, n);
      } else {
        of_a += first;
        of_g += second;
      }
    }
    row.total[0] += total_of(of_a, kWidth);
    row.total[1] += total_of(of_g, kWidth);
  }
}

template <typename T>
void forward(const CausalConv1dRow<T>& row) {
  constexpr void (*kernels[kGates])(const CausalConv1dRow<T>&) = {forward_of<kNoGate, T>, forward_of<kTanhSigmoid, T>,
                                                                   forward_of<kGlu, T>,    forward_of<kReglu, T>,
                                                                   forward_of<kGeglu, T>,  forward_of<kSwiglu, T>};
  kernels[row.gate](row);
}

template <bool kValue, typename T>
void backward_of_gate(CausalConv1dRow<T>& row) {
  constexpr void (*kernels[kGates])(CausalConv1dRow<T>&) = {
      backward_of<kNoGate, kValue, T>, backward_of<kTanhSigmoid, kValue, T>, backward_of<kGlu, kValue, T>,
      backward_of<kReglu, kValue, T>,  backward_of<kGeglu, kValue, T>,       backward_of<kSwiglu, kValue, T>};
  kernels[row.gate](row);
}

template <typename T>
void backward(CausalConv1dRow<T>& row) {
  row.y ? backward_of_gate<true>(row) : backward_of_gate<false>(row);
}

}  // namespace

const CausalConv1dKernels& FASTGEN_OF_ISA(causal_conv1d_kernels)() {
  static const CausalConv1dKernels kernels = {forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
