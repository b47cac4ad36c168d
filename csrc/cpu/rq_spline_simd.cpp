// Rational-quadratic splines, kWidth elements at once: their parameters are transposed into columns first.
#include <algorithm>

#include "common/lanes.h"
#include "cpu/rq_spline.h"

namespace fastgen {
namespace {

// The bin of every lane, and where in it the lane is.
template <typename V>
struct Bin {
  V number, x0, y0, w, h, d0, d1, raw0, raw1;  // raw0, raw1: derivatives before their softplus
  V inside, t;                                 // inside: 1 or 0
  V s, bend, denominator, numerator, slope;    // slope is (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2)
};

// Adds, and returns what rounding lost.
template <typename V>
inline V add_to(V& sum, V x) {
  const V before = sum;
  sum = before + x;
  const V part = sum - before;
  return (before - (sum - part)) + (x - part);
}

// Turns `count` raw columns into softmax in place. A quotient is a product with the reciprocal and one correction.
template <typename V>
inline void softmax(V* columns, std::int64_t count) {
  V top = columns[0], sum = V{}, lost = V{};
  for (std::int64_t j = 1; j < count; ++j) top = top < columns[j] ? columns[j] : top;
  for (std::int64_t j = 0; j < count; ++j) lost += add_to(sum, columns[j] = exp_nonpositive(columns[j] - top));
  sum += lost;
  const V reciprocal = 1 / sum;
  for (std::int64_t j = 0; j < count; ++j) {
    const V near = columns[j] * reciprocal;
    columns[j] = fma(fma(-near, sum, columns[j]), reciprocal, near);
  }
}

template <typename V, typename T>
inline void evaluate(const RqSplineShape& shape, Bin<V>& bin) {
  const V t = bin.t, u = t * (1 - t);
  bin.denominator = bin.s + bin.bend * u;
  bin.numerator = bin.s * t * t + bin.d0 * u;
  bin.slope = bin.d1 * t * t + 2 * bin.s * u + bin.d0 * (1 - t) * (1 - t);
}

template <typename V, typename T>
inline Bin<V> find(const RqSplineShape& shape, V x, V* columns) {
  const std::int64_t bins = shape.bins;
  const V one = V{} + T(1);
  V *widths = columns, *heights = columns + bins, *raw = columns + 2 * bins;
  softmax(widths, bins);
  softmax(heights, bins);
  const T width = T(shape.right - shape.left), height = T(shape.top - shape.bottom);
  const T rest_w = T(1 - shape.min_width * bins), rest_h = T(1 - shape.min_height * bins);
  const T least_w = T(shape.min_width), least_h = T(shape.min_height);
  const T low = T(shape.inverse ? shape.bottom : shape.left), high = T(shape.inverse ? shape.top : shape.right);
  Bin<V> bin;
  bin.number = V{};
  const auto inside = (x >= low) & (x <= high);
  bin.inside = inside ? one : V{};
  const V safe = inside ? x : V{} + low;
  const T left = T(shape.left), bottom = T(shape.bottom);
  bin.x0 = V{} + left;
  bin.y0 = V{} + bottom;
  bin.w = width * (least_w + rest_w * widths[0]);
  bin.h = height * (least_h + rest_h * heights[0]);
  const bool linear = shape.tails == 1, circular = shape.tails == 2;
  bin.raw0 = linear ? V{} : raw[0];
  bin.raw1 = bins == 1 ? (linear ? V{} : raw[circular ? 0 : 1]) : raw[linear ? 0 : 1];
  V w = bin.w, h = bin.h, sum_w = V{}, sum_h = V{}, lost_w = V{}, lost_h = V{};
  for (std::int64_t j = 1; j < bins; ++j) {
    lost_w += add_to(sum_w, w);
    lost_h += add_to(sum_h, h);
    const V edge_x = left + (sum_w + lost_w), edge_y = bottom + (sum_h + lost_h);
    w = width * (least_w + rest_w * widths[j]);
    h = height * (least_h + rest_h * heights[j]);
    const auto beyond = safe >= (shape.inverse ? edge_y : edge_x);
    bin.number = beyond ? V{} + T(j) : bin.number;
    bin.x0 = beyond ? edge_x : bin.x0;
    bin.y0 = beyond ? edge_y : bin.y0;
    bin.w = beyond ? w : bin.w;
    bin.h = beyond ? h : bin.h;
    const std::int64_t first = linear ? j - 1 : j, second = circular && j + 1 == bins ? 0 : first + 1;
    bin.raw0 = beyond ? raw[first] : bin.raw0;
    bin.raw1 = beyond ? (linear && j + 1 == bins ? V{} : raw[second]) : bin.raw1;
  }
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
  const V correction = (bin.numerator / bin.denominator - v / bin.h) * bin.denominator * bin.denominator / (bin.s * bin.slope);
  bin.t = min(max(bin.t - correction, V{}), one);
  evaluate<V, T>(shape, bin);
  return bin;
}

// The parameters of elements i .. i + n as columns; those of the next ones are asked for.
template <typename V, typename T>
inline void load_parameters(const RqSplineShape& shape, const T* parameters, std::int64_t i, std::int64_t n, V* columns) {
  const T* from = parameters + i * shape.parameters;
  const char* next = reinterpret_cast<const char*>(from + kWidth * shape.parameters);
  for (std::int64_t line = 0; line < kWidth * shape.parameters * std::int64_t(sizeof(T)); line += 64) __builtin_prefetch(next + line);
  load_columns(from, n, shape.parameters, shape.parameters, columns);
}

template <typename T>
void forward(const RqSplineShape& shape, const RqSplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  V* columns = reinterpret_cast<V*>(scratch);
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    const V x = load_first<V>(data.x + i, n);
    const Bin<V> bin = find<V, T>(shape, x, columns);
    const V log_slope = log(bin.s * bin.s * bin.slope / (bin.denominator * bin.denominator));
    const V y = shape.inverse ? bin.x0 + bin.t * bin.w : bin.y0 + bin.h * (bin.numerator / bin.denominator);
    store_first(data.y + i, bin.inside != T(0) ? y : x, n);
    store_first(data.log_det + i, bin.inside != T(0) ? (shape.inverse ? -log_slope : log_slope) : V{}, n);
  }
}

template <typename T>
void backward(const RqSplineShape& shape, const RqSplineData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t bins = shape.bins;
  V *columns = reinterpret_cast<V*>(scratch), *grads = columns + shape.parameters;
  const T scale_w = T((shape.right - shape.left) * (1 - shape.min_width * bins));
  const T scale_h = T((shape.top - shape.bottom) * (1 - shape.min_height * bins));
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    load_parameters(shape, data.parameters, i, n, columns);
    const Bin<V> bin = find<V, T>(shape, load_first<V>(data.x + i, n), columns);
    const auto inside = bin.inside != T(0);
    const V given_y = load_first<V>(data.grad_y + i, n), given_l = load_first<V>(data.grad_log_det + i, n);
    const V t = bin.t, u = t * (1 - t), den = bin.denominator, num = bin.numerator, square = den * den;
    // derivatives of y and of L = log dy/dx with respect to t, s, d0, d1
    const V y_t = bin.h * bin.s * bin.slope / square;
    const V y_s = bin.h * (t * t * den - num * (1 - 2 * u)) / square;
    const V y_d0 = bin.h * u * (den - num) / square, y_d1 = -bin.h * u * num / square;
    const V l_t = 2 * (bin.d1 * t + bin.s * (1 - 2 * t) - bin.d0 * (1 - t)) / bin.slope - 2 * bin.bend * (1 - 2 * t) / den;
    const V l_s = 2 / bin.s + 2 * u / bin.slope - 2 * (1 - 2 * u) / den;
    const V l_d0 = (1 - t) * (1 - t) / bin.slope - 2 * u / den, l_d1 = t * t / bin.slope - 2 * u / den;
    V of_y = inside ? given_y : V{}, of_l = inside ? given_l : V{}, of_x;
    if (shape.inverse) {  // x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
      const V along = (of_y - of_l * l_t / bin.w) * bin.w / y_t;
      of_x = along;
      of_y = -along;
      of_l = -of_l;
    }
    const V of_t = of_y * y_t + of_l * l_t, of_s = of_y * y_s + of_l * l_s;
    if (!shape.inverse) of_x = of_t / bin.w;
    store_first(data.grad_x + i, inside ? of_x : given_y, n);
    const V of_x0 = -of_t / bin.w, of_w = -of_t * t / bin.w - of_s * bin.s / bin.w;
    const V of_h = of_y * num / den + of_s / bin.w, of_y0 = of_y;
    // softmax: G_j is of_x0 before the bin, of_w in it
    V mean_w = V{}, mean_h = V{};
    for (std::int64_t j = 0; j < bins; ++j) {
      const auto before = T(j) < bin.number, here = bin.number == T(j);
      grads[j] = before ? of_x0 : (here ? of_w : V{});
      grads[bins + j] = before ? of_y0 : (here ? of_h : V{});
      mean_w += columns[j] * grads[j];
      mean_h += columns[bins + j] * grads[bins + j];
    }
    for (std::int64_t j = 0; j < bins; ++j) {
      grads[j] = scale_w * columns[j] * (grads[j] - mean_w);
      grads[bins + j] = scale_h * columns[bins + j] * (grads[bins + j] - mean_h);
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

}  // namespace fastgen
