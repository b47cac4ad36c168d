// Rational-quadratic splines, kWidth elements at once: their parameters are transposed into columns first.
#include <algorithm>

#include "common/softmax_bins.h"
#include "cpu/rq_spline/rq_spline.h"
#include "cpu/rq_spline/rq_spline_soft_clip.h"

namespace fastgen {
namespace {

// The bin of every lane, and where in it the lane is.
template <typename V>
struct Bin {
  V number, x0, y0, w, h, d0, d1, raw0, raw1;  // raw0, raw1: derivatives before their softplus
  V inside, t;                                 // inside: 1 or 0
  V s, bend, denominator, numerator, slope;    // slope is (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2)
  V sum_w, sum_h;                              // of the exponentials that the columns now hold
};

template <typename V, typename T>
inline void evaluate(const RqSplineShape& shape, Bin<V>& bin) {
  const V t = bin.t, u = t * (1 - t);
  bin.denominator = bin.s + bin.bend * u;
  bin.numerator = bin.s * t * t + bin.d0 * u;
  bin.slope = bin.d1 * t * t + 2 * bin.s * u + bin.d0 * (1 - t) * (1 - t);
}

// `passed` is called between the bins, with the number of the one that comes.
template <typename V, typename T, typename Passed>
__attribute__((always_inline)) inline Bin<V> find(const RqSplineShape& shape, V x, V* columns, Passed passed) {
  const std::int64_t bins = shape.bins;
  const V one = V{} + T(1);
  V *widths = columns, *heights = columns + bins, *raw = columns + 2 * bins;
  Bin<V> bin;
  bin.sum_w = exponentials(widths, bins);
  bin.sum_h = exponentials(heights, bins);
  const T width = T(shape.right - shape.left), height = T(shape.top - shape.bottom);
  const V least_w = V{} + T(shape.min_width), least_h = V{} + T(shape.min_height);
  const V rest_w = T(1 - shape.min_width * bins) / bin.sum_w, rest_h = T(1 - shape.min_height * bins) / bin.sum_h;
  const T low = T(shape.inverse ? shape.bottom : shape.left), high = T(shape.inverse ? shape.top : shape.right);
  const auto inside = (x >= low) & (x <= high);
  bin.inside = inside ? one : V{};
  const V safe = inside ? x : V{} + low;
  const bool linear = shape.tails == 1, circular = shape.tails == 2;
  const std::int64_t shift = linear ? 1 : 0;  // with linear tails the ends have no raw derivative
  bin.number = V{};
  bin.w = widths[0];
  bin.h = heights[0];
  bin.raw0 = linear ? V{} : raw[0];
  bin.raw1 = bins > 1 ? raw[1 - shift] : linear ? V{} : raw[circular ? 0 : 1];
  // `along` is the axis that x lies on, `across` the other one.
  const V *along = shape.inverse ? heights : widths, *across = shape.inverse ? widths : heights;
  const V least_along = shape.inverse ? least_h : least_w, rest_along = shape.inverse ? rest_h : rest_w;
  const V least_across = shape.inverse ? least_w : least_h, rest_across = shape.inverse ? rest_w : rest_h;
  const V size = V{} + T(high - low);
  SumOfParts<V> passed_along, passed_across;
  V start = V{} + low;
  for (std::int64_t j = 1; j < bins; ++j) {
    passed(j);
    passed_along.add(fma(rest_along, along[j - 1], least_along));
    const V edge = fma(passed_along.value(), size, V{} + low);
    const auto beyond = safe >= edge;
    passed_across.add_where(beyond, fma(rest_across, across[j - 1], least_across));
    bin.number = beyond ? V{} + T(j) : bin.number;
    start = beyond ? edge : start;
    bin.w = beyond ? widths[j] : bin.w;
    bin.h = beyond ? heights[j] : bin.h;
    const V *first = raw + (j - shift), *second = j + 1 < bins ? first + 1 : circular ? raw : first + (1 - shift);
    bin.raw0 = beyond ? *first : bin.raw0;
    bin.raw1 = beyond ? *second : bin.raw1;
  }
  const T first_across = T(shape.inverse ? shape.left : shape.bottom), size_across = shape.inverse ? width : height;
  const V other = fma(passed_across.value(), V{} + size_across, V{} + first_across);
  bin.x0 = shape.inverse ? other : start;
  bin.y0 = shape.inverse ? start : other;
  bin.w = width * fma(rest_w, bin.w, least_w);
  bin.h = height * fma(rest_h, bin.h, least_h);
  const T least = T(shape.min_derivative);
  bin.d0 = softplus(bin.raw0) + least;
  bin.d1 = softplus(bin.raw1) + least;
  if (linear) {
    bin.d0 = bin.number == T(0) ? one : bin.d0;
    bin.d1 = bin.number == T(bins - 1) ? one : bin.d1;
  }
  bin.s = bin.h / bin.w;
  bin.bend = bin.d0 + bin.d1 - 2 * bin.s;
  if (!shape.inverse) {
    bin.t = min(max((safe - bin.x0) / bin.w, V{}), one);
    evaluate<V, T>(shape, bin);
    return bin;
  }
  const V v = safe - bin.y0;
  const V a = v * bin.bend + bin.h * (bin.s - bin.d0), b = bin.h * bin.d0 - v * bin.bend, c = -bin.s * v;
  const V root = sqrt(max(b * b - 4 * a * c, V{}));
  const V q = -(b + (b < T(0) ? -root : root)) / 2;  // the sum of equal signs: nothing cancels
  bin.t = min(max((b < T(0) ? q : c) / (b < T(0) ? a : q), V{}), one);
  evaluate<V, T>(shape, bin);
  const V over = bin.numerator / bin.denominator - v / bin.h;
  const V correction = over * bin.denominator * bin.denominator / (bin.s * bin.slope);
  bin.t = min(max(bin.t - correction, V{}), one);
  evaluate<V, T>(shape, bin);
  return bin;
}

// The parameters of elements i .. i + n as columns; those of the next ones are asked for.
template <typename V, typename T>
inline void load_parameters(const RqSplineShape& shape, const T* parameters, std::int64_t i, std::int64_t n, V* columns) {
  const T *from = parameters + i * shape.parameters, *next = from + kWidth * shape.parameters;
  for (std::int64_t k = 0; k < kWidth * shape.parameters; k += 64 / std::int64_t(sizeof(T))) __builtin_prefetch(next + k);
  load_columns(from, n, shape.parameters, shape.parameters, columns);
}

template <typename T>
void forward(const RqSplineShape& given, const RqSplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const RqSplineShape shape = given;  // a copy, which no store can change
  V* columns = reinterpret_cast<V*>(scratch);
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    const V x = load_first<V>(data.x + i, n);
    const Bin<V> bin = find<V, T>(shape, x, columns, [](std::int64_t) {});
    const V log_slope = log(bin.s * bin.s * bin.slope / (bin.denominator * bin.denominator));
    const V y = shape.inverse ? bin.x0 + bin.t * bin.w : bin.y0 + bin.h * (bin.numerator / bin.denominator);
    store_first(data.y + i, bin.inside != T(0) ? y : x, n);
    store_first(data.log_det + i, bin.inside != T(0) ? (shape.inverse ? -log_slope : log_slope) : V{}, n);
  }
}

template <typename T>
void backward(const RqSplineShape& given, const RqSplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const RqSplineShape shape = given;  // a copy, which no store can change
  const std::int64_t bins = shape.bins;
  V *columns = reinterpret_cast<V*>(scratch), *grads = columns + shape.parameters;
  const T scale_w = T((shape.right - shape.left) * (1 - shape.min_width * bins));
  const T scale_h = T((shape.top - shape.bottom) * (1 - shape.min_height * bins));
  const std::int64_t line = 64 / std::int64_t(sizeof(T)), lines = kWidth * shape.parameters / line + 1;
  const std::int64_t each = (lines / std::max<std::int64_t>(1, bins - 1) + 1) * line;  // of each bin but the first
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    // where the gradients go is asked for a part at a time: all at once would be waited for
    const T* grad_parameters = data.grad_parameters + i * shape.parameters;
    const auto ask = [&](std::int64_t j) {
      for (std::int64_t k = (j - 1) * each; k < j * each; k += line) __builtin_prefetch(grad_parameters + k, 1);
    };
    const Bin<V> bin = find<V, T>(shape, load_first<V>(data.x + i, n), columns, ask);
    const auto inside = bin.inside != T(0);
    const V given_y = load_first<V>(data.grad_y + i, n), given_l = load_first<V>(data.grad_log_det + i, n);
    const V t = bin.t, u = t * (1 - t), num = bin.numerator, den = bin.denominator;
    const V by_den = 1 / den, by_slope = 1 / bin.slope, by_w = 1 / bin.w, h_by_square = bin.h * by_den * by_den;
    // derivatives of y and of L = log dy/dx with respect to t, s, d0, d1
    const V y_t = h_by_square * bin.s * bin.slope;
    const V y_s = h_by_square * (t * t * den - num * (1 - 2 * u));
    const V y_d0 = h_by_square * u * (den - num), y_d1 = -h_by_square * u * num;
    const V l_t = 2 * (bin.d1 * t + bin.s * (1 - 2 * t) - bin.d0 * (1 - t)) * by_slope - 2 * bin.bend * (1 - 2 * t) * by_den;
    const V l_s = 2 / bin.s + 2 * u * by_slope - 2 * (1 - 2 * u) * by_den;
    const V l_d0 = (1 - t) * (1 - t) * by_slope - 2 * u * by_den, l_d1 = t * t * by_slope - 2 * u * by_den;
    V of_y = inside ? given_y : V{}, of_l = inside ? given_l : V{}, of_x;
    if (shape.inverse) {  // x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
      const V along = (of_y - of_l * l_t * by_w) * bin.w / y_t;
      of_x = along;
      of_y = -along;
      of_l = -of_l;
    }
    const V of_t = of_y * y_t + of_l * l_t, of_s = of_y * y_s + of_l * l_s;
    if (!shape.inverse) of_x = of_t * by_w;
    store_first(data.grad_x + i, inside ? of_x : given_y, n);
    const V of_x0 = -of_t * by_w, of_w = -(of_t * t + of_s * bin.s) * by_w;
    const V of_h = of_y * num * by_den + of_s * by_w, of_y0 = of_y;
    // softmax: G_j is of_x0 before the bin, of_w in it
    V mean_w = V{}, mean_h = V{};
    for (std::int64_t j = 0; j < bins; ++j) {
      const auto before = T(j) < bin.number, here = bin.number == T(j);
      grads[j] = before ? of_x0 : (here ? of_w : V{});
      grads[bins + j] = before ? of_y0 : (here ? of_h : V{});
      mean_w += columns[j] * grads[j];
      mean_h += columns[bins + j] * grads[bins + j];
    }
    const V part_w = 1 / bin.sum_w, part_h = 1 / bin.sum_h, slope_w = scale_w * part_w, slope_h = scale_h * part_h;
    mean_w *= part_w;
    mean_h *= part_h;
    for (std::int64_t j = 0; j < bins; ++j) {
      grads[j] = slope_w * columns[j] * (grads[j] - mean_w);
      grads[bins + j] = slope_h * columns[bins + j] * (grads[bins + j] - mean_h);
    }
    const V of_raw0 = (of_y * y_d0 + of_l * l_d0) * sigmoid(bin.raw0), of_raw1 = (of_y * y_d1 + of_l * l_d1) * sigmoid(bin.raw1);
    const std::int64_t derivatives = shape.parameters - 2 * bins;
    for (std::int64_t j = 0; j < derivatives; ++j) {
      const T first = T(shape.tails == 1 ? j + 1 : j);  // the bin that has it as d0; the one before has it as d1
      const T second = shape.tails == 2 && j == 0 ? T(bins - 1) : first - 1;
      grads[2 * bins + j] = (bin.number == first ? of_raw0 : V{}) + (bin.number == second ? of_raw1 : V{});
    }
    store_columns(data.grad_parameters + i * shape.parameters, n, shape.parameters, shape.parameters, grads);
  }
}

}  // namespace

const RqSplineKernels& FASTGEN_OF_ISA(rq_spline_kernels)() {
  static const RqSplineKernels kernels = {kWidth, forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

const SoftClipKernels& FASTGEN_OF_ISA(soft_clip_kernels)() {
  static const SoftClipKernels kernels = {soft_clip<false, float>, soft_clip<false, double>, soft_clip<true, float>,
                                          soft_clip<true, double>};
  return kernels;
}

}  // namespace fastgen
