// Mixtures of discretized logistics, kWidth elements at once: their parameters are transposed into columns first.
//
// With a, b = (x +- h - mean) / scale and d = a - b, the probability of a bin is
//   exp(min(a, 0) + min(-b, 0)) (1 - exp(-d)) / ((1 + exp(-|a|)) (1 + exp(-|b|))).
// Its exponents are summed over the channels; what remains, with min(d, 1) divided out, is within [1/8, 1] a channel, so that it
// is multiplied, and one logarithm is taken of the sum over the components.
#include <algorithm>
#include <cmath>

#include "common/lanes.h"
#include "cpu/logistic_mixture/logistic_mixture.h"

namespace fastgen {
namespace {

// A channel of the elements, the same for every component.
template <typename V>
struct Channel {
  V x, lowest, highest;  // lowest, highest: 1 at level 0, at level L-1; else 0
};

// The discretized logistics of N channels. The product of their probabilities is exp(exponent) numerator / denominator.
template <typename V, int N>
struct Bins {
  V exponent, numerator, denominator;
  V a[N], b[N], ea[N], eb[N], d[N], rest[N], missed[N];  // rest, missed: exp(-d) and 1 - exp(-d)
};

// x <= 0 to exp(x), at least exp(-87), and 1 - exp(x), which keeps its digits near zero.
template <int N>
inline void exp_and_missed(Float (&x)[N], Float (&missed)[N]) {
  const Float magic = broadcast(12582912.0f);  // as in exp_nonpositive
  Float power[N], tail[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const Float limited = x[i] < -87.0f ? broadcast(-87.0f) : x[i];
    const Float shifted = fma(limited, broadcast(1.44269504f), magic), whole = shifted - magic;
    x[i] = fma(whole, broadcast(-1.42860677e-6f), fma(whole, broadcast(-0.693145752f), limited));
    power[i] = from_bits((bits(shifted) << 23) + 0x3f800000);
  }
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) tail[i] = expm1_tail(x[i]);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    missed[i] = fma(-power[i], tail[i], fma(-power[i], x[i], 1.0f - power[i]));
    x[i] = ((tail[i] + x[i]) + 1.0f) * power[i];
  }
}
template <int N>
inline void exp_and_missed(Double (&x)[N], Double (&missed)[N]) {
  for (int i = 0; i < N; ++i) missed[i] = -expm1(x[i]), x[i] = exp(x[i]);
}

// The tanh of three numbers, with one division.
template <typename V, typename T>
inline void tanh_of_three(const V (&x)[3], V* tanh) {
  V rest[3], missed[3];
#pragma GCC unroll 4
  for (int i = 0; i < 3; ++i) rest[i] = T(-2) * abs(x[i]);
  exp_and_missed(rest, missed);
  const V p = T(1) + rest[0], q = T(1) + rest[1], r = T(1) + rest[2], pq = p * q, reciprocal = T(1) / (pq * r);
  const V inverse[3] = {(q * r) * reciprocal, (p * r) * reciprocal, pq * reciprocal};
#pragma GCC unroll 4
  for (int i = 0; i < 3; ++i) {
    const V size = missed[i] * inverse[i];
    tanh[i] = x[i] < T(0) ? -size : size;
  }
}

// An edge that a bin does not have is put where the cdf is 0 or 1, and then no width counts. Widths below kLeastWidth make no
// difference to what is left of the probability once the width is divided out.
template <int N, typename V, typename T>
inline void bins_of(const Channel<V>* channels, const V (&mean)[N], const V (&log_scale)[N], const V* inverse_scale, T half,
                    T log_width, Bins<V, N>& bins) {
  constexpr T kFar = T(100), kLeastWidth = sizeof(T) == 4 ? T(1e-8) : T(1e-17);
  const V one = V{} + T(1), far = V{} + kFar;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const V centered = channels[i].x - mean[i], d = (2 * half) * inverse_scale[i];
    const V a = (centered + half) * inverse_scale[i], b = (centered - half) * inverse_scale[i];
    bins.a[i] = channels[i].highest != T(0) ? far : a;
    bins.b[i] = channels[i].lowest != T(0) ? -far : b;
    bins.d[i] = channels[i].lowest + channels[i].highest != T(0) ? far : (d < kLeastWidth ? V{} + kLeastWidth : d);
    bins.ea[i] = -abs(bins.a[i]);
    bins.eb[i] = -abs(bins.b[i]);
    bins.rest[i] = -bins.d[i];
  }
  exp_nonpositive(bins.ea);
  exp_nonpositive(bins.eb);
  exp_and_missed(bins.rest, bins.missed);
  bins.exponent = V{};
  bins.numerator = bins.denominator = one;
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const auto narrow = bins.d[i] < T(1);
    const V above = bins.a[i] < T(0) ? bins.a[i] : V{}, below = bins.b[i] > T(0) ? bins.b[i] : V{};
    bins.exponent += (above - below) + (narrow ? log_width - log_scale[i] : V{});
    bins.numerator *= bins.missed[i];
    bins.denominator *= ((one + bins.ea[i]) * (one + bins.eb[i])) * (narrow ? bins.d[i] : one);
  }
}

template <typename V, typename T>
inline void load_channels(const LogisticMixtureShape& shape, const std::int64_t* level, std::int64_t n, Channel<V>* channels) {
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    V value;
    for (std::int64_t i = 0; i < kWidth; ++i) value[i] = T(level[(i < n ? i : n - 1) * shape.channels + c]);
    const V one = V{} + T(1);
    channels[c] = {value * T(2) / T(shape.levels - 1) - T(1), value == T(0) ? one : V{},
                   value == T(shape.levels - 1) ? one : V{}};
  }
}

// Where the parameters of a channel and a component are among the columns.
struct Place {
  std::int64_t mean, log_scale;
};
inline Place place_of(const LogisticMixtureShape& shape, std::int64_t c, std::int64_t m) {
  const std::int64_t mean = shape.mixtures * (1 + c * shape.blocks()) + m;
  return {mean, mean + shape.mixtures};
}
// Coefficient `row` of a component, of three channels.
inline std::int64_t coefficient_of(const LogisticMixtureShape& shape, std::int64_t row, std::int64_t m) {
  return shape.mixtures * (3 + 3 * row) + m;
}

// Asks for the m-th part of the parameters, or of their gradients, of kWidth elements: all of them at once would be waited for.
template <bool kToWrite, typename T>
inline void prefetch_part(const LogisticMixtureShape& shape, const T* memory, std::int64_t m) {
  const std::int64_t part = kWidth * (shape.parameters() / shape.mixtures), line = 64 / sizeof(T);
  for (std::int64_t i = m * part; i < (m + 1) * part; i += line) __builtin_prefetch(memory + i, kToWrite);
}

// exp(top) total is the sum over the components, exp(logits_top) logits_total that of their weights before normalisation;
// top is relative to logits_top.
template <typename V>
struct Sum {
  V top, total, logits_top, logits_total;
};

// What is kept of every component: its weight before normalisation, the tanh of its coefficients, its inverse scales, its term of
// the sum over exp(top), and the exponent of that.
template <typename V>
struct Components {
  V *weights, *shifts, *inverse_scales, *terms, *exponents;

  Components(V* room, std::int64_t mixtures)
      : weights(room), shifts(room + mixtures), inverse_scales(room + 4 * mixtures), terms(room + 7 * mixtures),
        exponents(room + 8 * mixtures) {}
};

// Fills `components`; `each(m, bins)` sees all bins. `following` are the parameters to ask for meanwhile.
template <int kChannels, typename V, typename T, typename Each>
inline Sum<V> mix(const LogisticMixtureShape& shape, const Channel<V>* channels, const T* following, const V* columns,
                  const Components<V>& components, Each each) {
  const T half = T(1) / T(shape.levels - 1), log_width = T(std::log(2.0 / double(shape.levels - 1)));
  const T least = T(shape.min_log_scale);
  Sum<V> sum;
  sum.logits_top = columns[0];
  for (std::int64_t m = 1; m < shape.mixtures; ++m) sum.logits_top = max(sum.logits_top, columns[m]);
  sum.logits_total = V{};
  sum.top = V{} - T(INFINITY);
  const auto log_scale_of = [&](int c, std::int64_t m) {
    const V log_scale = columns[place_of(shape, c, m).log_scale];
    return log_scale < least ? V{} + least : log_scale;
  };
  for (std::int64_t m = 0; m < shape.mixtures; ++m) {
    prefetch_part<false>(shape, following, m);
    sum.logits_total += components.weights[m] = exp_nonpositive(columns[m] - sum.logits_top);
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) components.inverse_scales[3 * m + c] = exp(-log_scale_of(c, m));
    if constexpr (kChannels == 3) {
      const V x[3] = {columns[coefficient_of(shape, 0, m)], columns[coefficient_of(shape, 1, m)],
                      columns[coefficient_of(shape, 2, m)]};
      tanh_of_three<V, T>(x, components.shifts + 3 * m);
    }
  }
  for (std::int64_t m = 0; m < shape.mixtures; ++m) {
    V mean[kChannels], log_scale[kChannels];
    const V* shifts = components.shifts + 3 * m;
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) mean[c] = columns[place_of(shape, c, m).mean], log_scale[c] = log_scale_of(c, m);
    if constexpr (kChannels == 3) {
      mean[1] += shifts[0] * channels[0].x;
      mean[2] = (mean[2] + shifts[1] * channels[0].x) + shifts[2] * channels[1].x;
    }
    Bins<V, kChannels> bins;
    bins_of(channels, mean, log_scale, components.inverse_scales + 3 * m, half, log_width, bins);
    each(m, bins);
    components.exponents[m] = (columns[m] - sum.logits_top) + bins.exponent;
    components.terms[m] = bins.numerator / bins.denominator;
    sum.top = max(sum.top, components.exponents[m]);
  }
  const V base = max(sum.top, V{} - T(3e38));
  sum.total = V{};
  for (std::int64_t m = 0; m < shape.mixtures; ++m) {
    sum.total += components.terms[m] *= exp_nonpositive(components.exponents[m] - base);
  }
  return sum;
}

template <int kChannels, typename T>
void forward_of(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
                T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t count = shape.parameters();
  V* columns = reinterpret_cast<V*>(scratch);
  const Components<V> components(columns + 2 * count, shape.mixtures);
  Channel<V> channels[kChannels];
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    const T* parameters = data.parameters + i * count;
    load_columns(parameters, n, count, count, columns);
    load_channels<V, T>(shape, data.level + i * kChannels, n, channels);
    const auto nothing = [](std::int64_t, const Bins<V, kChannels>&) {};
    const Sum<V> sum = mix<kChannels, V, T>(shape, channels, parameters + n * count, columns, components, nothing);
    store_first(data.log_prob + i, sum.top + (log(sum.total) - log(sum.logits_total)), n);
  }
}

template <int kChannels, typename T>
void backward_of(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
                 T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t count = shape.parameters(), mixtures = shape.mixtures;
  V *columns = reinterpret_cast<V*>(scratch), *grads = columns + count;
  const Components<V> components(grads + count, mixtures);
  const V one = V{} + T(1);
  Channel<V> channels[kChannels];
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    const T* parameters = data.parameters + i * count;
    load_columns(parameters, n, count, count, columns);
    load_channels<V, T>(shape, data.level + i * kChannels, n, channels);
    T* grad_parameters = data.grad_parameters + i * count;
    // of the log-probability of each bin alone; its three quotients are of one division
    const auto derivatives = [&](std::int64_t m, const Bins<V, kChannels>& bins) {
      prefetch_part<true>(shape, static_cast<const T*>(grad_parameters), m);
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; ++c) {
        const V a = bins.a[c], b = bins.b[c], above = one + bins.ea[c], below = one + bins.eb[c], missed = bins.missed[c];
        const V both = above * below, reciprocal = one / (both * missed), unmissed = missed * reciprocal;
        const V of_a = channels[c].highest != T(0) ? V{} : (a < T(0) ? one : bins.ea[c]) * (below * unmissed);
        const V of_b = channels[c].lowest != T(0) ? V{} : (b < T(0) ? bins.eb[c] : one) * (above * unmissed);
        const V of_width = bins.d[c] < T(80) ? (bins.d[c] * bins.rest[c]) * (both * reciprocal) : V{};
        const Place place = place_of(shape, c, m);
        grads[place.mean] = (of_b - of_a) * components.inverse_scales[3 * m + c];
        const V of_log_scale = (b * of_b - a * of_a) - of_width;
        grads[place.log_scale] = columns[place.log_scale] >= T(shape.min_log_scale) ? of_log_scale : V{};
      }
    };
    const Sum<V> sum = mix<kChannels, V, T>(shape, channels, parameters + n * count, columns, components, derivatives);
    const V given = load_first<V>(data.grad + i, n), of_logit = given / sum.logits_total;
    const V of_term = sum.total > T(0) ? given / sum.total : V{};
    for (std::int64_t m = 0; m < mixtures; ++m) {
      const V posterior = of_term * components.terms[m], *shifts = components.shifts + 3 * m;
      grads[m] = posterior - of_logit * components.weights[m];
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; ++c) {
        const Place place = place_of(shape, c, m);
        grads[place.mean] *= posterior;
        grads[place.log_scale] *= posterior;
      }
#pragma GCC unroll 4
      for (int row = 0; row < 3 && kChannels == 3; ++row) {
        const V of_shift = grads[place_of(shape, row == 0 ? 1 : 2, m).mean] * channels[row == 2 ? 1 : 0].x;
        grads[coefficient_of(shape, row, m)] = of_shift * (1 - shifts[row] * shifts[row]);
      }
    }
    store_columns(grad_parameters, n, count, count, grads);
  }
}

template <typename T>
void forward(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
             T* scratch) {
  return (shape.channels == 3 ? forward_of<3, T> : forward_of<1, T>)(shape, data, begin, end, scratch);
}

template <typename T>
void backward(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
              T* scratch) {
  return (shape.channels == 3 ? backward_of<3, T> : backward_of<1, T>)(shape, data, begin, end, scratch);
}

}  // namespace

const LogisticMixtureKernels& FASTGEN_OF_ISA(logistic_mixture_kernels)() {
  static const LogisticMixtureKernels kernels = {kWidth, forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
