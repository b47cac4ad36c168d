// The trace of a dense field between pairs of vectors: a tile of samples goes through all layers, its tangents with it.
#include "common/lanes.h"
#include "cpu/hutchinson_trace.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kColumns = 4;  // vectors of a block: with 6 rows as many accumulators as the registers hold
#else
constexpr int kColumns = 2;
#endif

// out[r][c] = bias[c] + sum_k a[r][k] b[k][c] of a block of R rows and C vectors.
template <int R, int C, typename V, typename T>
inline void block(const T* a, std::int64_t stride, const T* b, std::int64_t columns, std::int64_t inputs, const T* bias, T* out) {
  V sum[R][C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    const V first = bias ? load_vector<V>(bias + c * kWidth) : V{};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r][c] = first;
  }
  for (std::int64_t k = 0; k < inputs; ++k) {
    V row[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) row[c] = load_vector<V>(b + k * columns + c * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V each = a[r * stride + k] - V{};
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = fma(each, row[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_vector(out + r * columns + c * kWidth, sum[r][c]);
  }
}

// Matrices of at most kTraceSamples rows, one for each probe, `apart` numbers from one another.
template <typename T>
struct Rows {
  T* begin;
  std::int64_t stride, apart;
};

template <int C, typename V, typename T>
inline void panel(std::int64_t probes, std::int64_t rows, Rows<const T> a, const TraceLayer<T>& b, std::int64_t c, const T* bias,
                  Rows<T> out) {
  for (std::int64_t p = 0; p < probes; ++p) {
    const T* from = a.begin + p * a.apart;
    T* to = out.begin + p * out.apart + c;
    if (rows == kTraceSamples) {
      block<kTraceSamples, C, V>(from, a.stride, b.weight + c, b.columns, b.inputs, bias, to);
      continue;
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      block<1, C, V>(from + r * a.stride, a.stride, b.weight + c, b.columns, b.inputs, bias, to + r * b.columns);
    }
  }
}

// out = a b, with the bias if asked for. A run of columns of b serves all probes: it stays in the cache.
template <typename V, typename T>
void multiply(std::int64_t probes, std::int64_t rows, Rows<const T> a, const TraceLayer<T>& b, bool with_bias, Rows<T> out) {
  const T* none = nullptr;
  std::int64_t c = 0;
  for (; c + kColumns * kWidth <= b.columns; c += kColumns * kWidth) {
    panel<kColumns, V>(probes, rows, a, b, c, with_bias ? b.bias + c : none, out);
  }
  for (; c < b.columns; c += kWidth) panel<1, V>(probes, rows, a, b, c, with_bias ? b.bias + c : none, out);
}

template <typename V>
inline void activate(int activation, V a, V& value, V& slope) {
  const V one = V{} + 1;
  if (activation == 0) {
    value = tanh(a);
    slope = one - value * value;
    return;
  }
  const V gate = sigmoid(a);
  value = activation == 1 ? softplus(a) : a * gate;
  slope = activation == 1 ? gate : gate * (one + a * (one - gate));
}

// to *= by, element by element.
template <typename V, typename T>
inline void scale(T* to, const T* by, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kWidth) store_vector(to + i, load_vector<V>(to + i) * load_vector<V>(by + i));
}

template <typename T>
void tile(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = kTraceSamples * widest, hidden = data.hidden;
  T *slopes = scratch, *h = slopes + hidden * matrix, *next = h + matrix, *total = next + matrix;
  T *moved = total + matrix, *before = moved + kTraceProbes * matrix;
  Rows<const T> from = {data.x + first * data.features, data.features, 0};
  for (std::int64_t k = 0; k < hidden; ++k) {
    const TraceLayer<T>& layer = data.layers[k];
    T* to = k % 2 ? next : h;
    multiply<V>(1, rows, from, layer, true, {to, layer.columns, 0});
    for (std::int64_t i = 0; i < rows * layer.columns; i += kWidth) {
      V value, slope;
      activate(data.activation, load_vector<V>(to + i), value, slope);
      store_vector(to + i, value);
      store_vector(slopes + k * matrix + i, slope);
    }
    from = {to, layer.columns, 0};
  }
  const TraceLayer<T>& out = data.layers[hidden];
  T* y = hidden % 2 ? next : h;
  multiply<V>(1, rows, from, out, true, {y, out.columns, 0});
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < data.features; ++d) data.y[(first + r) * data.features + d] = y[r * out.columns + d];
  }
  const std::int64_t columns = data.layers[hidden - 1].columns;
  for (std::int64_t i = 0; i < rows * columns; i += kWidth) store_vector(total + i, V{});
  for (std::int64_t begin = 0; begin < data.probes; begin += kTraceProbes) {
    const std::int64_t count = data.probes - begin < kTraceProbes ? data.probes - begin : kTraceProbes;
    const T* right = data.right + begin * data.right_probe + first * data.right_sample;
    const T* left = data.left + begin * data.left_probe + first * data.left_sample;
    from = {right, data.right_sample, data.right_probe};
    for (std::int64_t k = 0; k < hidden; ++k) {
      const TraceLayer<T>& layer = data.layers[k];
      multiply<V>(count, rows, from, layer, false, {moved, layer.columns, matrix});
      for (std::int64_t p = 0; k + 1 < hidden && p < count; ++p) {
        scale<V>(moved + p * matrix, slopes + k * matrix, rows * layer.columns);
      }
      from = {moved, layer.columns, matrix};
      T* last = moved;
      moved = before;
      before = last;
    }
    multiply<V>(count, rows, {left, data.left_sample, data.left_probe}, data.last, false, {moved, columns, matrix});
    for (std::int64_t p = 0; p < count; ++p) {
      const T *met = moved + p * matrix, *carried = before + p * matrix;
      for (std::int64_t i = 0; i < rows * columns; i += kWidth) {
        store_vector(total + i, fma(load_vector<V>(met + i), load_vector<V>(carried + i), load_vector<V>(total + i)));
      }
    }
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    V sum{};
    for (std::int64_t c = 0; c < columns; c += kWidth) {
      sum = fma(load_vector<V>(total + r * columns + c), load_vector<V>(slopes + (hidden - 1) * matrix + r * columns + c), sum);
    }
    double whole = 0;
    for (int i = 0; i < kWidth; ++i) whole += sum[i];
    data.trace[first + r] = static_cast<T>(whole);
  }
}

template <typename T>
void run(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; n += kTraceSamples) {
    tile(data, scratch, widest, n, end - n < kTraceSamples ? end - n : kTraceSamples);
  }
}

}  // namespace

const TraceKernels& FASTGEN_OF_ISA(trace_kernels)() {
  static const TraceKernels kernels = {kWidth, run<float>, run<double>};
  return kernels;
}

}  // namespace fastgen
