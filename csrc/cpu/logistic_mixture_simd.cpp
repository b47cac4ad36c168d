// Mixtures of discretized logistics, kWidth elements at once: their parameters are transposed into columns first.
//
// With a, b = (x +- h - mean) / scale and d = a - b, the probability of a bin is
//   exp(min(a, 0) + min(-b, 0)) (1 - exp(-d)) / ((1 + exp(-|a|)) (1 + exp(-|b|))).
// Its exponents are summed over the channels; what remains, with min(d, 1) divided out, is within [1/8, 1] a channel, so that it
// is multiplied, and one logarithm is taken of the sum over the components.
#include <algorithm>
#include <cmath>

#include "common/lanes.h"
#include "cpu/logistic_mixture.h"

namespace fastgen {
namespace {

constexpr std::int64_t kMostChannels = 3;

// A channel of the elements, the same for every component.
template <typename V>
struct Channel {
  V x, lowest, highest;  // lowest, highest: 1 at level 0, at level L-1; else 0
};

// A discretized logistic: its probability is exp(exponent) numerator / denominator.
template <typename V>
struct Bin {
  V exponent, numerator, denominator;
  V inverse_scale, a, b, ea, eb, d, missed;  // missed: 1 - exp(-d)
};

template <typename V, typename T>
inline Bin<V> bin_of(const Channel<V>& channel, V mean, V log_scale, T half, T log_width) {
  const V one = V{} + T(1);
  Bin<V> bin;
  bin.inverse_scale = exp(-log_scale);
  const V centered = channel.x - mean;
  bin.a = (centered + half) * bin.inverse_scale;
  bin.b = (centered - half) * bin.inverse_scale;
  bin.ea = exp_nonpositive(-abs(bin.a));
  bin.eb = exp_nonpositive(-abs(bin.b));
  bin.d = (2 * half) * bin.inverse_scale;
  bin.missed = -expm1(-bin.d);
  const auto lowest = channel.lowest != T(0), highest = channel.highest != T(0), edge = (channel.lowest + channel.highest) != T(0);
  const auto tiny = bin.d < T(1e-3), narrow = bin.d < T(1);
  V exponent = highest ? V{} : min(bin.a, V{});
  exponent += lowest ? V{} : min(-bin.b, V{});
  bin.exponent = exponent + (edge ? V{} : (narrow ? log_width - log_scale : V{}));
  const V part = tiny ? one - bin.d * (T(0.5) - bin.d * (T(1.0 / 6) - bin.d * T(1.0 / 24))) : bin.missed;
  bin.numerator = edge ? one : part;
  const V factor = (highest ? one : one + bin.ea) * (lowest ? one : one + bin.eb);
  bin.denominator = edge ? factor : factor * (narrow & ~tiny ? bin.d : one);
  return bin;
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

// exp(top) total is the sum over the components, exp(logits_top) logits_total that of their weights before normalisation;
// top is relative to logits_top.
template <typename V>
struct Sum {
  V top, total, logits_top, logits_total;
};

// Fills the tanh of coefficients, the terms of the sum over exp(top), and their exponents; `each(c, m, bin)` sees every bin.
template <typename V, typename T, typename Each>
inline Sum<V> mix(const LogisticMixtureShape& shape, const Channel<V>* channels, const V* columns, V* shifts, V* terms,
                  V* exponents, Each each) {
  const T half = T(1) / T(shape.levels - 1), log_width = T(std::log(2.0 / double(shape.levels - 1)));
  const T least = T(shape.min_log_scale);
  Sum<V> sum;
  sum.logits_top = columns[0];
  for (std::int64_t m = 1; m < shape.mixtures; ++m) sum.logits_top = max(sum.logits_top, columns[m]);
  sum.logits_total = V{};
  sum.top = V{} - T(INFINITY);
  for (std::int64_t m = 0; m < shape.mixtures; ++m) {
    V exponent = columns[m] - sum.logits_top, numerator = V{} + T(1), denominator = numerator;
    sum.logits_total += exp_nonpositive(exponent);
    for (std::int64_t row = 0; row < 3 && shape.channels == 3; ++row) {
      shifts[3 * m + row] = tanh(columns[coefficient_of(shape, row, m)]);
    }
    for (std::int64_t c = 0; c < shape.channels; ++c) {
      const Place place = place_of(shape, c, m);
      V mean = columns[place.mean];
      if (c == 1) mean += shifts[3 * m] * channels[0].x;
      if (c == 2) mean = (mean + shifts[3 * m + 1] * channels[0].x) + shifts[3 * m + 2] * channels[1].x;
      const Bin<V> bin = bin_of<V, T>(channels[c], mean, max(columns[place.log_scale], V{} + least), half, log_width);
      exponent += bin.exponent;
      numerator *= bin.numerator;
      denominator *= bin.denominator;
      each(c, m, bin);
    }
    exponents[m] = exponent;
    terms[m] = numerator / denominator;
    sum.top = max(sum.top, exponent);
  }
  const V base = max(sum.top, V{} - T(3e38));
  sum.total = V{};
  for (std::int64_t m = 0; m < shape.mixtures; ++m) {
    terms[m] *= exp_nonpositive(exponents[m] - base);
    sum.total += terms[m];
  }
  return sum;
}

template <typename V, typename T>
inline void load_parameters(const LogisticMixtureShape& shape, const T* from, std::int64_t n, V* columns) {
  const std::int64_t count = shape.parameters();
  const char* next = reinterpret_cast<const char*>(from + kWidth * count);
  for (std::int64_t line = 0; line < kWidth * count * std::int64_t(sizeof(T)); line += 64) __builtin_prefetch(next + line);
  load_columns(from, n, count, count, columns);
}

template <typename T>
void forward(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
             T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t count = shape.parameters(), mixtures = shape.mixtures;
  V *columns = reinterpret_cast<V*>(scratch), *terms = columns + 2 * count, *exponents = terms + mixtures;
  V* shifts = exponents + mixtures;
  Channel<V> channels[kMostChannels];
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters + i * count, n, columns);
    load_channels<V, T>(shape, data.level + i * shape.channels, n, channels);
    const auto nothing = [](std::int64_t, std::int64_t, const Bin<V>&) {};
    const Sum<V> sum = mix<V, T>(shape, channels, columns, shifts, terms, exponents, nothing);
    store_first(data.log_prob + i, sum.top + (log(sum.total) - log(sum.logits_total)), n);
  }
}

// d / (exp(d) - 1).
template <typename V, typename T>
inline V decay(const Bin<V>& bin) {
  const V series = 1 - bin.d * (T(0.5) - bin.d * T(1.0 / 12));
  return bin.d < T(1e-3) ? series : bin.d * exp(-bin.d) / bin.missed;
}

template <typename T>
void backward(const LogisticMixtureShape& shape, const LogisticMixtureData<T>& data, std::int64_t begin, std::int64_t end,
              T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t count = shape.parameters(), mixtures = shape.mixtures;
  V *columns = reinterpret_cast<V*>(scratch), *grads = columns + count, *terms = grads + count, *exponents = terms + mixtures;
  V* shifts = exponents + mixtures;
  const V one = V{} + T(1);
  Channel<V> channels[kMostChannels];
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters + i * count, n, columns);
    load_channels<V, T>(shape, data.level + i * shape.channels, n, channels);
    // of the log-probability of each bin alone
    const auto derivatives = [&](std::int64_t c, std::int64_t m, const Bin<V>& bin) {
      const auto lowest = channels[c].lowest != T(0), highest = channels[c].highest != T(0);
      const V of_a = highest ? V{} : (bin.a < T(0) ? one : bin.ea) / (1 + bin.ea);
      const V of_b = lowest ? V{} : (bin.b < T(0) ? bin.eb : one) / (1 + bin.eb);
      const V width = channels[c].lowest + channels[c].highest != T(0) ? V{} : decay<V, T>(bin);
      const Place place = place_of(shape, c, m);
      grads[place.mean] = (of_b - of_a) * bin.inverse_scale;
      const V of_log_scale = (bin.b * of_b - bin.a * of_a) - width;
      grads[place.log_scale] = columns[place.log_scale] >= T(shape.min_log_scale) ? of_log_scale : V{};
    };
    const Sum<V> sum = mix<V, T>(shape, channels, columns, shifts, terms, exponents, derivatives);
    const V given = load_first<V>(data.grad + i, n);
    for (std::int64_t m = 0; m < mixtures; ++m) {
      const V posterior = sum.total > T(0) ? given * (terms[m] / sum.total) : V{};
      grads[m] = posterior - given * (exp_nonpositive(columns[m] - sum.logits_top) / sum.logits_total);
      for (std::int64_t c = 0; c < shape.channels; ++c) {
        const Place place = place_of(shape, c, m);
        grads[place.mean] *= posterior;
        grads[place.log_scale] *= posterior;
      }
      for (std::int64_t row = 0; row < 3 && shape.channels == 3; ++row) {
        const V of_shift = grads[place_of(shape, row == 0 ? 1 : 2, m).mean] * channels[row == 2 ? 1 : 0].x;
        grads[coefficient_of(shape, row, m)] = of_shift * (1 - shifts[3 * m + row] * shifts[3 * m + row]);
      }
    }
    store_columns(data.grad_parameters + i * count, n, count, count, grads);
  }
}

}  // namespace

const LogisticMixtureKernels& FASTGEN_OF_ISA(logistic_mixture_kernels)() {
  static const LogisticMixtureKernels kernels = {kWidth, forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
