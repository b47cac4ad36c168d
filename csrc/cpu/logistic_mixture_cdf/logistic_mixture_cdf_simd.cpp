// The transform of Flow++ by a mixture of logistics, kWidth elements at once: their parameters are transposed into columns first.
#include <algorithm>

#include "common/lanes.h"
#include "cpu/logistic_mixture_cdf/logistic_mixture_cdf.h"

namespace fastgen {
namespace {

constexpr int kSteps = 100;  // of the inverse, at most

// The columns of kWidth elements, a vector for each component.
template <typename V>
struct Columns {
  std::int64_t count;
  V *logits, *means, *log_scales, *inverse_scales;  // the logits less the largest
  V *up, *down, *above;  // log sigmoid(z), log sigmoid(-z), sigmoid(z)
  V *cdf, *survival, *density;  // the components' parts, over the largest
  V whole, sum;  // of exp(logits): its logarithm, and itself
};

template <typename V>
struct Point {
  V y, log_det, cdf, survival, density;  // the last three: sums of the columns
};

template <typename V, typename T>
inline Columns<V> columns_of(const T* parameters, std::int64_t n, std::int64_t count, T* scratch) {
  V* at = reinterpret_cast<V*>(scratch);
  load_columns(parameters, n, 3 * count, 3 * count, at);
  const auto part = [&](int i) { return at + i * count; };
  Columns<V> c{count, part(0), part(1), part(2), part(3), part(4), part(5), part(6), part(7), part(8), part(9), V{}, V{}};
  V top = c.logits[0];
  for (std::int64_t m = 1; m < count; ++m) top = top < c.logits[m] ? c.logits[m] : top;
  for (std::int64_t m = 0; m < count; ++m) {
    c.logits[m] -= top;
    c.sum += exp_nonpositive(c.logits[m]);
    c.inverse_scales[m] = exp(-c.log_scales[m]);
  }
  c.whole = log(c.sum);
  return c;
}

// Turns logarithms into exp(logarithm - top) and returns their sum.
template <typename V>
inline V raise(V* column, std::int64_t count, V top) {
  V sum{};
  for (std::int64_t m = 0; m < count; ++m) sum += column[m] = exp_nonpositive(column[m] - top);
  return sum;
}

template <typename V>
inline Point<V> evaluate(const Columns<V>& c, V x) {
  V top_cdf = V{} - INFINITY, top_survival = top_cdf, top_density = top_cdf;
  for (std::int64_t m = 0; m < c.count; ++m) {
    const V z = (x - c.means[m]) * c.inverse_scales[m], near = exp_nonpositive(-abs(z)), rest = log1p(near);
    const auto below = z < V{};
    c.above[m] = (below ? near : V{} + 1) / (1 + near);
    c.up[m] = (below ? z : V{}) - rest;
    c.down[m] = (below ? V{} : -z) - rest;
    c.cdf[m] = c.logits[m] + c.up[m];
    c.survival[m] = c.logits[m] + c.down[m];
    top_cdf = top_cdf < c.cdf[m] ? c.cdf[m] : top_cdf;
    top_survival = top_survival < c.survival[m] ? c.survival[m] : top_survival;
  }
  Point<V> p;
  p.cdf = raise(c.cdf, c.count, top_cdf);
  p.survival = raise(c.survival, c.count, top_survival);
  const V rest_cdf = log(p.cdf), rest_survival = log(p.survival);
  const V log_cdf = top_cdf + rest_cdf, log_survival = top_survival + rest_survival;
  p.y = log_cdf - log_survival;
  const auto high = p.y > V{};
  const V top = high ? top_survival : top_cdf, rest = high ? rest_survival : rest_cdf;
  for (std::int64_t m = 0; m < c.count; ++m) {  // of the quotient that is large, by component: see the reference
    const V first = high ? c.down[m] : c.up[m], second = high ? c.up[m] : c.down[m];
    c.density[m] = ((c.logits[m] + first) - top - rest) + second - c.log_scales[m];
    top_density = top_density < c.density[m] ? c.density[m] : top_density;
  }
  p.density = raise(c.density, c.count, top_density);
  p.log_det = top_density + log(p.density) - ((high ? log_cdf : log_survival) - c.whole);
  return p;
}

template <typename V>
inline bool any(V mask) {
  bool found = false;
  for (int i = 0; i < kWidth; ++i) found |= mask[i] != 0;
  return found;
}

// x of y: Newton steps that stay in a bracket and shorten, halvings of the bracket otherwise.
template <typename V, typename T>
inline V solve(const Columns<V>& c, V y) {
  constexpr T least = sizeof(T) == 4 ? T(3e-8) : T(5e-17);  // half a unit in the last place: x stays
  V low = V{} + INFINITY, high = -low, x{};
  for (std::int64_t m = 0; m < c.count; ++m) {
    const V end = c.means[m] + exp(c.log_scales[m]) * y;
    low = end < low ? end : low;
    high = high < end ? end : high;
    x += exp_nonpositive(c.logits[m]) / c.sum * end;
  }
  x = x < low ? low : (x > high ? high : x);
  V last = high - low;
  for (int i = 0; i < kSteps; ++i) {
    const Point<V> p = evaluate(c, x);
    const V over = p.y - y, move = over * exp(-p.log_det), near = x - move;
    low = over < V{} ? x : low;
    high = over < V{} ? high : x;
    const auto newton = (abs(move) <= last / 2) & (near >= low) & (near <= high);
    V next = newton ? near : low + (high - low) / 2;
    next = over == V{} ? x : next;
    last = abs(next - x);
    x = next;
    if (!any(last > least * abs(x))) break;
  }
  return x;
}

template <typename T>
void forward(const LogisticMixtureCdfData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t size = 3 * data.components;
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    const Columns<V> c = columns_of<V>(data.parameters + i * size, n, data.components, scratch);
    const V given = load_first<V>(data.x + i, n), x = data.inverse ? solve<V, T>(c, given) : given;
    const Point<V> p = evaluate(c, x);
    store_first(data.y + i, data.inverse ? x : p.y, n);
    store_first(data.log_det + i, data.inverse ? -p.log_det : p.log_det, n);
  }
}

template <typename T>
void backward(const LogisticMixtureCdfData<T>& data, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  const std::int64_t count = data.components, size = 3 * count;
  for (std::int64_t i = begin; i < end; i += kWidth) {
    const std::int64_t n = std::min<std::int64_t>(kWidth, end - i);
    const Columns<V> c = columns_of<V>(data.parameters + i * size, n, count, scratch);
    const V given = load_first<V>(data.x + i, n), x = data.inverse ? solve<V, T>(c, given) : given;
    const Point<V> p = evaluate(c, x);
    V of_y = load_first<V>(data.grad_y + i, n), of_l = load_first<V>(data.grad_log_det + i, n), of_x{};
    V rise{}, slope{};  // dy/dx, and the derivative of its logarithm
    for (std::int64_t m = 0; m < count; ++m) {
      c.cdf[m] /= p.cdf;
      c.survival[m] /= p.survival;
      c.density[m] /= p.density;
      const V above = c.above[m], below = 1 - above;
      c.down[m] = c.cdf[m] * below + c.survival[m] * above;  // dy/dz
      c.up[m] = c.density[m] * (below - above) - c.cdf[m] * below + c.survival[m] * above;  // dL/dz
      rise += c.down[m] * c.inverse_scales[m];
      slope += c.up[m] * c.inverse_scales[m];
    }
    if (data.inverse) {  // x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
      const V along = (of_y - of_l * slope) / rise;
      of_x = along;
      of_y = -along;
      of_l = -of_l;
    }
    for (std::int64_t m = 0; m < count; ++m) {
      const V z = (x - c.means[m]) * c.inverse_scales[m], part = exp_nonpositive(c.logits[m]) / c.sum;
      const V of_z = of_y * c.down[m] + of_l * c.up[m], of_shift = of_z * c.inverse_scales[m];
      if (!data.inverse) of_x += of_shift;
      c.logits[m] = of_y * (c.cdf[m] - c.survival[m]) + of_l * (c.density[m] - c.cdf[m] - c.survival[m] + part);
      c.means[m] = -of_shift;
      c.log_scales[m] = -of_z * z - of_l * c.density[m];
    }
    store_first(data.grad_x + i, of_x, n);
    store_columns(data.grad_parameters + i * size, n, size, size, c.logits);
  }
}

}  // namespace

const LogisticMixtureCdfKernels& FASTGEN_OF_ISA(logistic_mixture_cdf_kernels)() {
  static const LogisticMixtureCdfKernels kernels = {kWidth, forward<float>, backward<float>, forward<double>, backward<double>};
  return kernels;
}

}  // namespace fastgen
