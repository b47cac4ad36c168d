// Monotone cubic splines, kWidth elements at once: their parameters are transposed into columns first.
#include <algorithm>

#include "common/softmax_bins.h"
#include "cpu/cubic_spline/cubic_spline.h"

namespace fastgen {
namespace {

constexpr double kLeast = 1e-6;  // as in fastgen/reference/cubic_spline.py

// A softmax turned into the sizes of bins: column j is its numerator, and sums[j] what comes before it, as a part of 1.
template <typename V, typename T>
struct Sizes {
  const V *columns, *sums;
  T start, least, rest;  // least: of every bin; rest: what the softmax divides
  V reciprocal, scale;   // reciprocal: of the sum of all columns

  V size(V column) const { return fma(scale, column, V{} + least); }
  V edge(V sum, V number) const { return fma(V{} + rest, sum, number * least + start); }
  V edge(std::int64_t j) const { return fma(V{} + rest, sums[j], V{} + (start + T(j) * least)); }
};

template <typename V, typename T>
inline Sizes<V, T> sizes_of(V* columns, V* sums, std::int64_t bins, T start, T interval, T least) {
  const V reciprocal = T(1) / exponentials(columns, bins);
  SumOfParts<V> passed;
  for (std::int64_t j = 0; j < bins; ++j) {
    sums[j] = passed.value();
    passed.add(columns[j] * reciprocal);
  }
  const T rest = interval * (T(1) - least * T(bins));
  return {columns, sums, start, interval * least, rest, reciprocal, rest * reciprocal};
}

// What the softmax has at and beside the bin of every lane.
template <typename V>
struct Around {
  V sum, before, here, after;
};

template <typename V, typename T, typename Mask>
inline void take(Around<V>& around, const Sizes<V, T>& sizes, std::int64_t j, std::int64_t before, std::int64_t after,
                 Mask where) {
  around.sum = where ? sizes.sums[j] : around.sum;
  around.before = where ? sizes.columns[before] : around.before;
  around.here = where ? sizes.columns[j] : around.here;
  around.after = where ? sizes.columns[after] : around.after;
}

// The derivative where two bins meet, by Steffen, and its partial derivatives with respect to their widths and slopes.
template <typename V>
struct Joint {
  V value, of_w0, of_s0, of_w1, of_s1;
};

template <typename V, typename T>
inline Joint<V> joint(V w0, V s0, V w1, V s1) {
  const V scale = T(1) / (w0 + w1), part0 = w1 * scale, part1 = w0 * scale;
  const V mean = part0 * s0 + part1 * s1, zero = V{}, two = V{} + T(2);
  const auto limited = min(s0, s1) * T(2) < mean, by_first = s0 < s1;
  return {limited ? (by_first ? s0 : s1) * T(2) : mean, limited ? zero : (s1 - mean) * scale,
          limited ? (by_first ? two : zero) : part0, limited ? zero : (s0 - mean) * scale,
          limited ? (by_first ? zero : two) : part1};
}

template <typename V>
inline V rise(V t, V h, V w, V d0, V d1) {
  const V rest = 1 - t;
  return fma(h * (t * t), 3 - 2 * t, w * (t * rest) * (d0 * rest - d1 * t));
}
template <typename V>
inline V slope_at(V t, V s, V d0, V d1) {
  const V rest = 1 - t;
  return fma(d0 * rest, rest, fma(d1 * t, t, 2 * (t * rest) * (3 * s - d0 - d1)));
}
template <typename V>
inline V half_bend_at(V t, V s, V d0, V d1) {
  return fma(1 - 2 * t, 3 * s - d0 - d1, d1 * t - d0 * (1 - t));
}

// How many Halley steps reach the last bits; a single bin may be flat in the middle, where they converge slowly.
template <typename T>
inline int steps_of(std::int64_t bins) {
  return bins == 1 ? 9 : sizeof(T) == 4 ? 4 : 6;
}

// Where in [0, 1] the cubic from 0 to 1 with derivatives a and b at its ends is q: from the root of the rational quadratic with
// the same ends, by Halley steps kept in a bracket.
template <typename V, typename T>
inline V root_of(V a, V b, V q, int steps) {
  const V one = V{} + T(1);
  V low = V{}, high = one;
  const V bend = q * (a + b - 2), linear = a - bend;
  const V root = sqrt(max(linear * linear + 4 * q * (1 - a + bend), V{}));
  V t = min(max(2 * q / (q > T(0) ? linear + root : one), V{}), one);
  for (int step = 0; step < steps; ++step) {
    const V over = rise(t, one, one, a, b) - q;
    low = over > T(0) ? low : t;
    high = over > T(0) ? t : high;
    const V slope = slope_at(t, one, a, b);
    const V denominator = slope * slope - over * half_bend_at(t, one, a, b);
    const V moved = t - over * slope / denominator;
    t = (denominator > T(0)) & (moved >= low) & (moved <= high) ? moved : (low + high) / 2;
  }
  return t;
}

// On a circle the last bin meets the first, and no end has a derivative of its own.
inline bool is_circular(const SplineShape& shape) { return shape.tails == 2; }

// The bin of every lane, and where in it the lane is.
template <typename V, typename T>
struct Bin {
  Sizes<V, T> widths, heights;
  V number, x0, y0, w, h, w_before, s_before, w_after, s_after;
  V s, d0, d1, end0, end1, inside, t, slope;  // end0, end1: the sigmoids of both ends in the bins there; inside: 1 or 0
};

template <typename V, typename T>
inline V sigmoid_of(V x) {
  const V z = exp_nonpositive(-abs(x));
  return (x < T(0) ? z : V{} + T(1)) / (1 + z);
}

// `columns` are the parameters, `sums` as many more.
template <typename V, typename T>
inline Bin<V, T> find(const SplineShape& shape, V x, V* columns, V* sums) {
  const std::int64_t bins = shape.bins;
  const V one = V{} + T(1);
  Bin<V, T> bin;
  bin.widths = sizes_of(columns, sums, bins, T(shape.left), T(shape.right - shape.left), T(shape.min_width));
  bin.heights = sizes_of(columns + bins, sums + bins, bins, T(shape.bottom), T(shape.top - shape.bottom), T(shape.min_height));
  const T low = T(shape.inverse ? shape.bottom : shape.left), high = T(shape.inverse ? shape.top : shape.right);
  const auto inside = (x >= low) & (x <= high);
  bin.inside = inside ? one : V{};
  const V safe = inside ? x : V{} + low;
  const bool circular = is_circular(shape);
  const std::int64_t last_bin = bins - 1, after_last = circular ? 0 : last_bin;
  const std::int64_t before_first = circular ? last_bin : 0, second = bins == 1 ? after_last : 1;
  Around<V> across = {V{}, columns[before_first], columns[0], columns[second]};
  Around<V> up = {V{}, columns[bins + before_first], columns[bins], columns[bins + second]};
  bin.number = V{};
  for (std::int64_t j = 1; j < bins; ++j) {
    const auto beyond = safe >= (shape.inverse ? bin.heights : bin.widths).edge(j);
    const std::int64_t after = j == last_bin ? after_last : j + 1;
    bin.number = beyond ? V{} + T(j) : bin.number;
    take(across, bin.widths, j, j - 1, after, beyond);
    take(up, bin.heights, j, j - 1, after, beyond);
  }
  bin.x0 = bin.widths.edge(across.sum, bin.number);
  bin.y0 = bin.heights.edge(up.sum, bin.number);
  bin.w = bin.widths.size(across.here);
  bin.h = bin.heights.size(up.here);
  bin.w_before = bin.widths.size(across.before);
  bin.w_after = bin.widths.size(across.after);
  bin.s_before = bin.heights.size(up.before) / bin.w_before;
  bin.s_after = bin.heights.size(up.after) / bin.w_after;
  const V s = bin.s = bin.h / bin.w;
  bin.d0 = joint<V, T>(bin.w_before, bin.s_before, bin.w, s).value;
  bin.d1 = joint<V, T>(bin.w, s, bin.w_after, bin.s_after).value;
  bin.end0 = bin.end1 = V{};
  if (!circular) {
    const auto first = bin.number == T(0), last = bin.number == T(last_bin);
    bin.end0 = sigmoid_of<V, T>(first ? columns[2 * bins] : columns[2 * bins + 1]);
    bin.end1 = bins == 1 ? sigmoid_of<V, T>(columns[3]) : bin.end0;
    const T least = T(kLeast), rest = T(1 - 2 * kLeast);
    bin.d0 = first ? 3 * s * (least + rest * bin.end0) : bin.d0;
    bin.d1 = last ? 3 * s * (least + rest * bin.end1) : bin.d1;
  }
  if (shape.inverse) {
    const V q = min(max((safe - bin.y0) / bin.h, V{}), one);
    bin.t = root_of<V, T>(bin.d0 / s, bin.d1 / s, q, steps_of<T>(bins));
  } else {
    bin.t = min(max((safe - bin.x0) / bin.w, V{}), one);
  }
  bin.slope = slope_at(bin.t, s, bin.d0, bin.d1);
  return bin;
}

// The parameters of elements i .. i + n as columns; those of the next ones are asked for. The two of the ends go one by one: for
// them alone a second block would be transposed where 2 K is a multiple of kWidth.
template <typename V, typename T>
inline void load_parameters(const SplineShape& shape, const T* parameters, std::int64_t i, std::int64_t n, V* columns) {
  const T* from = parameters + i * shape.parameters;
  const char* next = reinterpret_cast<const char*>(from + kWidth * shape.parameters);
  for (std::int64_t line = 0; line < kWidth * shape.parameters * std::int64_t(sizeof(T)); line += 64) {
    __builtin_prefetch(next + line);
  }
  load_columns(from, n, shape.parameters, 2 * shape.bins, columns);
  if (is_circular(shape)) return;
  T* ends = reinterpret_cast<T*>(columns + 2 * shape.bins);
  for (std::int64_t lane = 0; lane < kWidth; ++lane) {
    const T* pair = from + std::min(lane, n - 1) * shape.parameters + 2 * shape.bins;
    ends[lane] = pair[0];
    ends[kWidth + lane] = pair[1];
  }
}

template <typename T>
void forward(const SplineShape& given, const SplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const SplineShape shape = given;  // a copy, which no store can change
  V* columns = reinterpret_cast<V*>(scratch);
  const V least = V{} + T(shape.inverse ? shape.left : shape.bottom), most = V{} + T(shape.inverse ? shape.right : shape.top);
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    const V x = load_first<V>(data.x + i, n);
    const Bin<V, T> bin = find<V, T>(shape, x, columns, columns + shape.parameters);
    const V log_slope = log(bin.slope);
    const V y = shape.inverse ? bin.x0 + bin.t * bin.w : bin.y0 + rise(bin.t, bin.h, bin.w, bin.d0, bin.d1);
    store_first(data.y + i, bin.inside != T(0) ? min(max(y, least), most) : x, n);
    store_first(data.log_det + i, bin.inside != T(0) ? (shape.inverse ? -log_slope : log_slope) : V{}, n);
  }
}

// The gradients with respect to the raw columns of a softmax, of those with respect to the sizes of the bins: `of_start` for all
// before bin `number`, and besides `before`, `here` and `after` for the three around it, on a circle perhaps one and the same.
template <typename V, typename T>
inline void softmax_backward(const Sizes<V, T>& sizes, const SplineShape& shape, V number, V of_start, V before, V here, V after,
                             V* grads) {
  const std::int64_t bins = shape.bins, last_bin = bins - 1;
  V mean = V{};
  for (std::int64_t j = 0; j < bins; ++j) {
    const V side = number == T(j + 1) ? before : after, place = number - T(j);
    V grad = place > T(0) ? of_start : V{};
    grad += place == T(0) ? here : (abs(place) == T(1) ? side : V{});
    mean += sizes.columns[j] * grad;
    grads[j] = grad;
  }
  if (is_circular(shape)) {
    const V to_last = number == T(0) ? before : V{}, to_first = number == T(last_bin) ? after : V{};
    grads[last_bin] += to_last;
    mean += sizes.columns[last_bin] * to_last;
    grads[0] += to_first;
    mean += sizes.columns[0] * to_first;
  }
  mean *= sizes.reciprocal;
  for (std::int64_t j = 0; j < bins; ++j) grads[j] = sizes.scale * sizes.columns[j] * (grads[j] - mean);
}

template <typename T>
void backward(const SplineShape& given, const SplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const SplineShape shape = given;  // a copy, which no store can change
  const std::int64_t bins = shape.bins;
  const bool circular = is_circular(shape);
  V *columns = reinterpret_cast<V*>(scratch), *grads = columns + shape.parameters;
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    const Bin<V, T> bin = find<V, T>(shape, load_first<V>(data.x + i, n), columns, grads);
    const auto inside = bin.inside != T(0);
    // where the bin has an end of the interval; none on a circle
    const auto first = bin.number == T(circular ? -1 : 0), last = bin.number == T(circular ? bins : bins - 1);
    const V given_y = load_first<V>(data.grad_y + i, n), given_l = load_first<V>(data.grad_log_det + i, n);
    const V t = bin.t, rest = 1 - t, u = t * rest, w = bin.w, s = bin.s, zero = V{};
    const V l_t = 2 * half_bend_at(t, s, bin.d0, bin.d1) / bin.slope;
    V of_y = inside ? given_y : zero, of_l = inside ? given_l : zero, of_x = zero;
    if (shape.inverse) {  // x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
      of_x = (of_y - of_l * l_t / w) / bin.slope;
      of_y = -of_x;
      of_l = -of_l;
    }
    const V of_start = -of_y * bin.slope - of_l * l_t / w;  // of x0
    if (!shape.inverse) of_x = -of_start;
    store_first(data.grad_x + i, inside ? of_x : given_y, n);

    const V of_log = of_l / bin.slope;
    const V of_d0 = of_y * w * u * rest + of_log * (rest * rest - 2 * u);
    const V of_d1 = of_log * (t * t - 2 * u) - of_y * w * u * t;
    const V s_before = bin.s_before, s_after = bin.s_after;
    const Joint<V> joint0 = joint<V, T>(bin.w_before, s_before, w, s), joint1 = joint<V, T>(w, s, bin.w_after, s_after);
    const V of_s = 6 * u * of_log + of_d0 * (first ? bin.d0 / s : joint0.of_s1) + of_d1 * (last ? bin.d1 / s : joint1.of_s0);
    const V of_s_before = of_d0 * joint0.of_s0, of_s_after = of_d1 * joint1.of_s1;
    const V of_w = of_y * u * (bin.d0 * rest - bin.d1 * t) + of_start * t - of_s * s / w + (first ? zero : of_d0 * joint0.of_w1) +
                   (last ? zero : of_d1 * joint1.of_w0);
    const V of_w_before = of_d0 * joint0.of_w0 - of_s_before * s_before / bin.w_before;
    const V of_w_after = of_d1 * joint1.of_w1 - of_s_after * s_after / bin.w_after;
    const V of_h = of_y * t * t * (3 - 2 * t) + of_s / w;
    softmax_backward<V, T>(bin.widths, shape, bin.number, of_start, of_w_before, of_w, of_w_after, grads);
    softmax_backward<V, T>(bin.heights, shape, bin.number, of_y, of_s_before / bin.w_before, of_h, of_s_after / bin.w_after,
                           grads + bins);
    T* to = data.grad_parameters + i * shape.parameters;
    store_columns(to, n, shape.parameters, 2 * bins, grads);
    if (circular) continue;
    const V part = 3 * s * T(1 - 2 * kLeast);
    grads[2 * bins] = first ? of_d0 * part * bin.end0 * (1 - bin.end0) : zero;
    grads[2 * bins + 1] = last ? of_d1 * part * bin.end1 * (1 - bin.end1) : zero;
    const T* ends = reinterpret_cast<const T*>(grads + 2 * bins);
    for (std::int64_t lane = 0; lane < n; ++lane) {
      to[lane * shape.parameters + 2 * bins] = ends[lane];
      to[lane * shape.parameters + 2 * bins + 1] = ends[kWidth + lane];
    }
  }
}

}  // namespace

const CubicSplineKernels& FASTGEN_OF_ISA(cubic_spline_kernels)() {
  static const CubicSplineKernels kernels = {kWidth, forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
