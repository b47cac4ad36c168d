// Affine autoregressive flows, feature by feature; compiled once for each instruction set.
#include "cpu/sequential_affine/sequential_affine.h"

#include "common/register_gemm.h"

namespace fastgen {
namespace {

template <typename T>
constexpr std::ptrdiff_t kLanes = kVectors<T> * kWidth;

// R rows of `to` += sums over k of weights[k][row] source[k].
template <int R, typename T>
inline void multiply(const T* weights, std::ptrdiff_t weight_stride, const T* source, std::ptrdiff_t source_stride,
                     std::ptrdiff_t count, T* to, std::ptrdiff_t to_stride) {
  using V = typename VectorOf<T>::type;
  constexpr int n = kVectors<T>;
  V sum[R][n];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < n; ++j) sum[r][j] = load_vector<V>(to + r * to_stride + j * kWidth);
  }
  add_products(sum, weights, 1, weight_stride, source, source_stride, count);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int j = 0; j < n; ++j) store_vector(to + r * to_stride + j * kWidth, sum[r][j]);
  }
}

template <typename T>
inline void multiply_rows(std::int64_t rows, const T* weights, std::ptrdiff_t weight_stride, const T* source,
                          std::ptrdiff_t source_stride, std::ptrdiff_t count, T* to, std::ptrdiff_t to_stride) {
  switch (rows) {
#define FASTGEN_ROWS(R) \
  case R: return multiply<R>(weights, weight_stride, source, source_stride, count, to, to_stride);
    FASTGEN_ROWS(1)
    FASTGEN_ROWS(2)
    FASTGEN_ROWS(3)
    FASTGEN_ROWS(4)
    FASTGEN_ROWS(5)
    FASTGEN_ROWS(6)
    FASTGEN_ROWS(7)
    FASTGEN_ROWS(8)
#undef FASTGEN_ROWS
  }
}

template <typename V>
inline V activation_of(int activation, V v) {
  switch (activation) {
    case 0: return max(v, V{});
    case 1: return tanh(v);
    case 2: return sigmoid(v);
    default: return v > 0 ? v : expm1(v);
  }
}

// Of the value h = activation(v), with respect to v.
template <typename V>
inline V derivative_of(int activation, V h) {
  switch (activation) {
    case 0: return h > 0 ? V{} + 1 : V{};
    case 1: return 1 - h * h;
    case 2: return h * (1 - h);
    default: return h > 0 ? V{} + 1 : 1 + h;
  }
}

// The scale s of u = s x + t, its logarithm, and the derivative of that with respect to the raw scale.
template <typename V>
struct Scale {
  V s, log_s, slope;
};

template <typename V, typename T>
inline Scale<V> scale_of(const SequentialAffineShape& shape, V raw) {
  const T least = T(shape.min_scale), bound = T(shape.bound);
  if (shape.parameterisation == 1) {
    const V p = sigmoid(raw + 2), s = p + least;
    return {s, log(s), p * sigmoid(-2 - raw) / s};
  }
  if (shape.parameterisation == 2) {
    const V s = softplus(raw) + least;
    return {s, log(s), sigmoid(raw) / s};
  }
  const V denominator = 1 + abs(raw) / bound, log_s = raw / denominator;
  return {exp(log_s), log_s, 1 / (denominator * denominator)};
}

template <typename T>
struct Panel {
  T *values, *gradients, *u, *grad_u, *log_det, *grad_log_det;
};

template <typename T>
inline void draw(const SequentialAffineShape& shape, const Panel<T>& panel, std::int64_t feature) {
  using V = typename VectorOf<T>::type;
  constexpr std::ptrdiff_t lanes = kLanes<T>;
  const T *shifts = panel.values + (shape.outputs + 2 * feature) * lanes, *raws = shifts + lanes;
  for (std::ptrdiff_t j = 0; j < lanes; j += kWidth) {
    const V u = load_vector<V>(panel.u + feature * lanes + j), shift = load_vector<V>(shifts + j), raw = load_vector<V>(raws + j);
    V x, log_det = load_vector<V>(panel.log_det + j);
    if (shape.parameterisation == 0) {
      x = u * exp(raw) + shift;
      log_det += raw;
    } else {
      const Scale<V> scale = scale_of<V, T>(shape, raw);
      x = (u - shift) / scale.s;
      log_det -= scale.log_s;
    }
    store_vector(panel.values + feature * lanes + j, x);
    store_vector(panel.log_det + j, log_det);
  }
}

template <typename T>
inline void undraw(const SequentialAffineShape& shape, const Panel<T>& panel, std::int64_t feature) {
  using V = typename VectorOf<T>::type;
  constexpr std::ptrdiff_t lanes = kLanes<T>;
  const std::ptrdiff_t at = (shape.outputs + 2 * feature) * lanes;
  for (std::ptrdiff_t j = 0; j < lanes; j += kWidth) {
    const V raw = load_vector<V>(panel.values + at + lanes + j), given = load_vector<V>(panel.gradients + feature * lanes + j);
    const V of_log_det = load_vector<V>(panel.grad_log_det + j);
    V of_u, of_shift, of_raw;
    if (shape.parameterisation == 0) {
      of_u = given * exp(raw);
      of_shift = given;
      of_raw = of_u * load_vector<V>(panel.u + feature * lanes + j) + of_log_det;
    } else {
      const Scale<V> scale = scale_of<V, T>(shape, raw);
      of_u = given / scale.s;
      of_shift = -of_u;
      of_raw = -(given * load_vector<V>(panel.values + feature * lanes + j) + of_log_det) * scale.slope;
    }
    store_vector(panel.grad_u + feature * lanes + j, of_u);
    store_vector(panel.gradients + at + j, of_shift);
    store_vector(panel.gradients + at + lanes + j, of_raw);
  }
}

template <typename T>
void run(const SequentialAffineShape& shape, const SequentialAffineSweep& sweep, const T* packed, const Panel<T>& panel,
         T* rows) {
  using V = typename VectorOf<T>::type;
  constexpr std::ptrdiff_t lanes = kLanes<T>;
  for (std::int64_t i = 0; i < sweep.count; ++i) {
    const SequentialAffineStep& step = sweep.steps[i];
    T* to = rows + step.to * lanes;
    switch (step.kind) {
      case SequentialAffineStep::product:
        multiply_rows(step.rows, packed + step.weights, step.rows, rows + step.from * lanes, lanes, step.count, to, lanes);
        break;
      case SequentialAffineStep::activate:
        for (std::ptrdiff_t j = 0; j < step.rows * lanes; j += kWidth) {
          store_vector(to + j, activation_of(shape.activation, load_vector<V>(to + j)));
        }
        break;
      case SequentialAffineStep::draw: draw(shape, panel, step.to); break;
      case SequentialAffineStep::derive:
        for (std::ptrdiff_t j = 0; j < step.rows * lanes; j += kWidth) {
          const V value = load_vector<V>(panel.values + step.to * lanes + j);
          store_vector(to + j, load_vector<V>(to + j) * derivative_of(shape.activation, value));
        }
        break;
      case SequentialAffineStep::undraw: undraw(shape, panel, step.to); break;
    }
  }
}

// rows[row][lane] = samples[lane][unit[row]]; lanes beyond n repeat the last.
template <typename T>
void load_panel(const T* samples, std::int64_t stride, std::int64_t n, const std::int64_t* unit, std::int64_t count, T* rows) {
  constexpr std::int64_t lanes = kLanes<T>;
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      rows[row * lanes + lane] = samples[(lane < n ? lane : n - 1) * stride + unit[row]];
    }
  }
}

template <typename T>
void store_panel(const T* rows, std::int64_t n, const std::int64_t* unit, std::int64_t count, T* samples) {
  for (std::int64_t lane = 0; lane < n; ++lane) {
    for (std::int64_t row = 0; row < count; ++row) samples[lane * count + unit[row]] = rows[row * kLanes<T> + lane];
  }
}

// samples[lane][row] = rows[row][lane], whole vectors of rows.
template <typename T>
void transpose_panel(const T* rows, std::int64_t n, std::int64_t count, std::int64_t stride, T* samples) {
  using V = typename VectorOf<T>::type;
  for (std::int64_t first = 0; first < count; first += kWidth) {
    for (std::int64_t j = 0; j * kWidth < n; ++j) {
      V block[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) block[i] = load_vector<V>(rows + (first + i) * kLanes<T> + j * kWidth);
      transpose(block);
      for (int i = 0; i < kWidth && j * kWidth + i < n; ++i) store_vector(samples + (j * kWidth + i) * stride + first, block[i]);
    }
  }
}

template <typename T>
std::int64_t samples_of(const SequentialAffineShape& shape, std::int64_t number) {
  const std::int64_t rest = shape.samples - number * kLanes<T>;
  return rest < kLanes<T> ? rest : kLanes<T>;
}

// From u to all values of the panel.
template <typename T>
void go_down(const SequentialAffineShape& shape, const SequentialAffineData<T>& data, std::int64_t first, std::int64_t n,
             const Panel<T>& panel) {
  constexpr std::int64_t lanes = kLanes<T>;
  load_panel(data.u + first * shape.features, shape.features, n, data.unit, shape.features, panel.u);
  T* hidden = panel.values + shape.hidden * lanes;
  load_panel(data.offset + first * data.offset_stride, data.offset_stride, n, data.unit + shape.hidden, shape.first_width,
             hidden);
  for (std::int64_t i = shape.first_width * lanes; i < (shape.rows - shape.hidden) * lanes; ++i) hidden[i] = 0;
  for (std::int64_t row = 0; row < shape.rows - shape.hidden; ++row) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) hidden[row * lanes + lane] += data.bias[row];
  }
  for (std::int64_t i = 0; i < lanes; ++i) panel.log_det[i] = 0;
  run(shape, data.down, data.packed_down, panel, panel.values);
}

template <typename T>
Panel<T> panel_in(const SequentialAffineShape& shape, T* scratch) {
  constexpr std::int64_t lanes = kLanes<T>;
  const std::int64_t size = (shape.rows + lanes) * lanes;
  T* rest = scratch + 2 * size;
  return {scratch,
          scratch + size,
          rest,
          rest + shape.features * lanes,
          rest + 2 * shape.features * lanes,
          rest + (2 * shape.features + 1) * lanes};
}

template <typename T>
void forward(const SequentialAffineShape& shape, const SequentialAffineData<T>& data, std::int64_t number, T* scratch) {
  const Panel<T> panel = panel_in(shape, scratch);
  const std::int64_t first = number * kLanes<T>, n = samples_of<T>(shape, number);
  go_down(shape, data, first, n, panel);
  store_panel(panel.values, n, data.unit, shape.features, data.x + first * shape.features);
  std::memcpy(data.log_det + first, panel.log_det, n * sizeof(T));
}

template <typename T>
void backward(const SequentialAffineShape& shape, const SequentialAffineData<T>& data, std::int64_t number, T* scratch) {
  constexpr std::int64_t lanes = kLanes<T>;
  const Panel<T> panel = panel_in(shape, scratch);
  const std::int64_t first = number * lanes, n = samples_of<T>(shape, number);
  go_down(shape, data, first, n, panel);
  load_panel(data.grad_x + first * shape.features, shape.features, n, data.unit, shape.features, panel.gradients);
  for (std::int64_t lane = 0; lane < lanes; ++lane)
    panel.grad_log_det[lane] = data.grad_log_det[first + (lane < n ? lane : n - 1)];
  for (std::int64_t i = shape.hidden * lanes; i < shape.rows * lanes; ++i) panel.gradients[i] = 0;
  run(shape, data.up, data.packed_up, panel, panel.gradients);
  store_panel(panel.grad_u, n, data.unit, shape.features, data.grad_u + first * shape.features);
  transpose_panel(panel.values, n, shape.rows, shape.stride, data.values + first * shape.stride);
  transpose_panel(panel.gradients, n, shape.rows, shape.stride, data.gradients + first * shape.stride);
}

template <typename T>
void outer(const T* gradients, const T* values, std::int64_t samples, std::int64_t rows, std::int64_t columns, T* sums,
           std::int64_t stride) {
  for (std::int64_t column = 0; column < columns; column += kLanes<T>, values += samples * kLanes<T>) {
    multiply_rows(rows, gradients, rows, values, kLanes<T>, samples, sums + column, stride);
  }
}

template <typename T>
constexpr SequentialAffineKernels<T> kernels_of() {
  return {kLanes<T>, kProductRows, forward<T>, backward<T>, outer<T>};
}

}  // namespace

const SequentialAffineTable& FASTGEN_OF_ISA(sequential_affine_kernels)() {
  static const SequentialAffineTable table = {kernels_of<float>(), kernels_of<double>()};
  return table;
}

}  // namespace fastgen
