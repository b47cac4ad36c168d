// Dilated causal convolution with a gate, residual and skip: block by block of time, each strip of a block in the cache.
#include "common/lanes.h"
#include "cpu/causal_conv1d/causal_conv1d.h"
#include "cpu/causal_conv1d/causal_conv1d_strips.h"

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

// `count` times of the sample n from t on, at most those of a strip.
struct Place {
  std::int64_t n, t, count;
};

template <typename V, typename T>
inline V sum_at(const CausalConv1dData<T>& d, const Place& p, const T* sums, std::int64_t output, std::int64_t i) {
  const std::int64_t row = p.n * d.sizes.outputs + output;
  const V sum = load_vector<V>(sums + output * kStrip<T> + i) + d.bias[output];
  if (d.constant) return sum + d.condition[row];
  const T* condition = d.condition + row * d.sizes.times + p.t + i;
  ask_for_next(condition);
  return sum + load_first<V>(condition, p.count - i);
}

// y of a strip's sums, its rows `stride` numbers from one another.
template <std::int64_t kGate, typename T>
void gate_of(const CausalConv1dData<T>& d, const Place& p, const T* sums, T* y, std::int64_t stride) {
  using V = typename VectorOf<T>::type;
  const std::int64_t rows = d.sizes.rows();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < p.count; i += kWidth) {
      const V a = sum_at<V>(d, p, sums, r, i), g = kGate == kNoGate ? V{} : sum_at<V>(d, p, sums, rows + r, i);
      ask_for_next(y + r * stride + i);
      store_first(y + r * stride + i, unit_of<kGate>(a, g).value, p.count - i);
    }
  }
}

// The gradients of the sums in place of the sums, from that of y; with kValue y replaces its gradient. Adds to the sums of rows.
template <std::int64_t kGate, bool kValue, typename T>
void pull_gate_of(const CausalConv1dData<T>& d, const Place& p, T* sums, std::conditional_t<kValue, T, const T>* grad,
                  std::int64_t stride, T* lanes) {
  using V = typename VectorOf<T>::type;
  const std::int64_t rows = d.sizes.rows(), times = d.sizes.times, first = p.n * d.sizes.outputs * times + p.t;
  const auto leave = [&](std::int64_t output, std::int64_t i, V gradient) {
    gradient = first_lanes(gradient, p.count - i);
    store_vector(sums + output * kStrip<T> + i, gradient);
    store_vector(lanes + output * kWidth, load_vector<V>(lanes + output * kWidth) + gradient);
    if (!d.of_condition || i >= p.count) return;
    ask_for_next(d.of_condition + first + output * times + i);
    store_first(d.of_condition + first + output * times + i, gradient, p.count - i);
  };
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < kStrip<T>; i += kWidth) {
      Unit<V> unit{};
      V of_y{};
      if (i < p.count) {
        const V a = sum_at<V>(d, p, sums, r, i), g = kGate == kNoGate ? V{} : sum_at<V>(d, p, sums, rows + r, i);
        unit = unit_of<kGate>(a, g);
        of_y = load_first<V>(grad + r * stride + i, p.count - i);
        if constexpr (!kValue) ask_for_next(grad + r * stride + i);
      }
      if constexpr (kValue) store_vector(grad + r * stride + i, unit.value);
      leave(r, i, of_y * unit.of_a);
      if constexpr (kGate != kNoGate) leave(rows + r, i, of_y * unit.of_g);
    }
  }
}

template <typename T, typename Function>
void with_gate(const CausalConv1dData<T>& d, Function function) {
  switch (d.sizes.gate) {
    case kTanhSigmoid: return function(std::integral_constant<std::int64_t, kTanhSigmoid>());
    case kGlu: return function(std::integral_constant<std::int64_t, kGlu>());
    case kReglu: return function(std::integral_constant<std::int64_t, kReglu>());
    case kGeglu: return function(std::integral_constant<std::int64_t, kGeglu>());
    case kSwiglu: return function(std::integral_constant<std::int64_t, kSwiglu>());
    default: return function(std::integral_constant<std::int64_t, kNoGate>());
  }
}

// What a block's sums read, in strips of `rows`, which are those of all taps or more.
template <typename T>
void read(const CausalConv1dData<T>& d, const CausalConv1dBlock& b, T* panel, std::int64_t rows) {
  const CausalConv1dSizes& s = d.sizes;
  for (std::int64_t row = 0; row < s.inputs(); ++row) {
    const std::int64_t channel = b.n * s.channels + row % s.channels;
    const Sequence<T> seen{d.state + channel * s.history(), d.x + channel * s.times, s.history(), s.times};
    seen.copy(b.t + row / s.channels * s.dilation, b.count, panel + row * kStrip<T>, rows * kStrip<T>);
  }
  each_strip<T>(b.count, [&](std::int64_t strip, auto...) {
    T* strips = panel + strip * rows * kStrip<T>;
    for (std::int64_t i = s.inputs() * kStrip<T>; i < rows * kStrip<T>; ++i) strips[i] = 0;
  });
}

// A row of the residual or the skip, whatever they are called.
template <typename T>
inline T* out_row(const CausalConv1dSizes& s, T* residual, T* skip, std::int64_t n, std::int64_t row) {
  return row < s.residuals ? residual + (n * s.residuals + row) * s.times : skip + (n * s.skips + row - s.residuals) * s.times;
}

// Residual and skip of a strip from out_weight y.
template <typename T>
void add_out(const CausalConv1dData<T>& d, const Place& p, const T* z) {
  using V = typename VectorOf<T>::type;
  const CausalConv1dSizes& s = d.sizes;
  for (std::int64_t row = 0; row < s.out(); ++row) {
    const bool constant = d.constant_skip && row >= s.residuals;
    const T* before = constant ? d.skip + p.n * s.skips + row - s.residuals : out_row(s, d.x, d.skip, p.n, row) + p.t;
    T* to = out_row(s, d.residual_to, d.skip_to, p.n, row) + p.t;
    for (std::int64_t i = 0; i < p.count; i += kWidth) {
      ask_for_next(before + i);
      ask_for_next(to + i);
      const V sum = load_vector<V>(z + row * kStrip<T> + i) + d.out_bias[row];
      store_first(to + i, constant ? sum + before[0] : sum + load_first<V>(before + i, p.count - i), p.count - i);
    }
  }
}

template <typename T>
void forward(const CausalConv1dData<T>& d, T* scratch, const CausalConv1dBlock& b) {
  const CausalConv1dSizes& s = d.sizes;
  T *sums = scratch, *y = sums + s.outputs * kStrip<T>, *z = y + s.rows() * kStrip<T>, *panel = z + s.out() * kStrip<T>;
  read(d, b, panel, s.inputs());
  each_strip<T>(b.count, [&](std::int64_t strip, std::int64_t t, std::int64_t count) {
    const Place p{b.n, b.t + t, count};
    multiply(d.matrix, s.outputs, s.inputs(), panel + strip * s.inputs() * kStrip<T>, sums);
    with_gate(d, [&](auto gate) {
      constexpr std::int64_t kGate = decltype(gate)::value;
      T* to = s.with_out ? y : d.y + p.n * s.rows() * s.times + p.t;
      gate_of<kGate>(d, p, sums, to, s.with_out ? kStrip<T> : s.times);
    });
    if (!s.with_out) return;
    multiply(d.out_weight, s.out(), s.rows(), y, z);
    add_out(d, p, z);
  });
}

// Sums over the times of each row, from those of every lane.
template <typename T>
void add_lanes(const T* lanes, std::int64_t rows, double* to) {
  for (std::int64_t row = 0; row < rows; ++row) {
    to[row] = 0;
    for (int i = 0; i < kWidth; ++i) to[row] += lanes[row * kWidth + i];
  }
}

// The gradients of residual and skip in strips, and their sums over the times.
template <typename T>
void read_out(const CausalConv1dData<T>& d, const CausalConv1dBlock& b, T* of_z, double* totals) {
  using V = typename VectorOf<T>::type;
  const CausalConv1dSizes& s = d.sizes;
  for (std::int64_t row = 0; row < s.out(); ++row) {
    const T* from = out_row(s, d.grad, d.grad_skip, b.n, row);
    T* to = of_z + row * kStrip<T>;
    Sequence<T>{nullptr, from, 0, s.times}.copy(b.t, b.count, to, s.out() * kStrip<T>);
    V sum{};
    each_strip<T>(b.count, [&](std::int64_t strip, auto...) {
      for (std::int64_t i = 0; i < kStrip<T>; i += kWidth) sum += load_vector<V>(to + strip * s.out() * kStrip<T> + i);
    });
    add_lanes(reinterpret_cast<const T*>(&sum), 1, totals + row);
    if (row >= s.residuals && d.of_skip) {
      T* skip = d.of_skip + (b.n * s.skips + row - s.residuals) * s.times + b.t;
      std::memcpy(skip, from + b.t, static_cast<std::size_t>(b.count) * sizeof(T));
    }
  }
}

template <typename T>
inline void add_to(T* to, const T* from, std::int64_t count) {
  using V = typename VectorOf<T>::type;
  for (std::int64_t i = 0; i < count; i += kWidth) {
    store_first(to + i, load_first<V>(to + i, count - i) + load_first<V>(from + i, count - i), count - i);
  }
}

// Takes a strip's gradients of the sums to x, to which the residual hands on its own, and to what is before x or before `start`.
template <typename T>
void pull_taps(const CausalConv1dData<T>& d, const Place& p, const T* of_sums, T* of_seen, std::int64_t start, T* before) {
  using V = typename VectorOf<T>::type;
  const CausalConv1dSizes& s = d.sizes;
  for (std::int64_t tap = s.taps - 1; tap >= 0; --tap) {
    multiply(d.turned + tap * s.channels * s.outputs, s.channels, s.outputs, of_sums, of_seen);
    const std::int64_t first = p.t - (s.taps - 1 - tap) * s.dilation;
    const std::int64_t early = first < start ? least(start - first, p.count) : 0;
    for (std::int64_t c = 0; c < s.channels; ++c) {
      const std::int64_t row = (p.n * s.channels + c) * s.times;
      const T* from = of_seen + c * kStrip<T>;
      if (tap + 1 < s.taps) {
        add_to(before + c * s.history() + first - start + s.history(), from, early);
        add_to(d.of_x + row + first + early, from + early, p.count - early);
        continue;
      }
      for (std::int64_t i = 0; i < p.count; i += kWidth) {  // the last tap reaches every time of x, before all others
        ask_for_next(d.of_x + row + p.t + i);
        V of_x = load_vector<V>(from + i);
        if (s.residuals > 0) of_x += load_first<V>(d.grad + row + p.t + i, p.count - i);
        store_first(d.of_x + row + p.t + i, of_x, p.count - i);
      }
    }
  }
}

template <typename T>
void backward(const CausalConv1dData<T>& d, T* scratch, const CausalConv1dBlock& b, const CausalConv1dSums<T>& to) {
  const CausalConv1dSizes& s = d.sizes;
  const std::int64_t inputs = s.padded(s.inputs()), rows = s.padded(s.rows());
  const std::int64_t strips = (b.count + kStrip<T> - 1) / kStrip<T>, numbers = strips * kStrip<T>;
  T *lanes = scratch, *y = lanes + s.outputs * kWidth, *of_seen = y + rows * kStrip<T>, *panel = of_seen + s.channels * kStrip<T>;
  T *turned = panel + inputs * numbers, *sums = turned + inputs * numbers, *turned_y = sums + s.outputs * numbers;
  T* of_z = turned_y + rows * numbers;
  for (std::int64_t i = 0; i < s.outputs * kWidth; ++i) lanes[i] = 0;
  for (std::int64_t i = s.rows() * kStrip<T>; i < rows * kStrip<T>; ++i) y[i] = 0;
  read(d, b, panel, inputs);
  if (s.with_out) read_out(d, b, of_z, to.of_out);
  each_strip<T>(b.count, [&](std::int64_t strip, std::int64_t t, std::int64_t count) {
    const Place p{b.n, b.t + t, count};
    const T* seen = panel + strip * inputs * kStrip<T>;
    T* own = sums + strip * s.outputs * kStrip<T>;
    if (s.with_out || s.gate != kNoGate) multiply(d.matrix, s.outputs, s.inputs(), seen, own);
    if (s.with_out) multiply(d.out_turned, s.rows(), s.out(), of_z + strip * s.out() * kStrip<T>, y);
    with_gate(d, [&](auto gate) {
      constexpr std::int64_t kGate = decltype(gate)::value;
      const T* grad = d.grad + p.n * s.rows() * s.times + p.t;
      s.with_out ? pull_gate_of<kGate, true>(d, p, own, y, kStrip<T>, lanes)
                 : pull_gate_of<kGate, false>(d, p, own, grad, s.times, lanes);
    });
    pull_taps(d, p, own, of_seen, to.start, to.before);
    turn(seen, inputs, turned + strip * inputs * kStrip<T>);
    if (s.with_out) turn(y, rows, turned_y + strip * rows * kStrip<T>);
  });
  add_lanes(lanes, s.outputs, to.of_sums);
  outer(strips, sums, s.outputs, turned, s.inputs(), to.of_matrix, to.begun);
  if (s.with_out) outer(strips, of_z, s.out(), turned_y, s.rows(), to.of_out_weight, to.begun);
}

}  // namespace

const CausalConv1dKernels& FASTGEN_OF_ISA(causal_conv1d_kernels)() {
  static const CausalConv1dKernels kernels = {forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
