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

template <int R, typename V, typename T>
void rows_of(const T* a, std::int64_t stride, const T* b, std::int64_t columns, std::int64_t inputs, const T* bias, T* out) {
  std::int64_t c = 0;
  for (; c + kColumns * kWidth <= columns; c += kColumns * kWidth) {
    block<R, kColumns, V>(a, stride, b + c, columns, inputs, bias ? bias + c : nullptr, out + c);
  }
  for (; c < columns; c += kWidth) block<R, 1, V>(a, stride, b + c, columns, inputs, bias ? bias + c : nullptr, out + c);
}

// out [rows][columns] = a [rows][inputs] b + bias, at most kTraceSamples rows.
template <typename V, typename T>
void multiply(std::int64_t rows, const T* a, std::int64_t stride, const T* b, std::int64_t columns, std::int64_t inputs,
              const T* bias, T* out) {
  if (rows == kTraceSamples) return rows_of<kTraceSamples, V>(a, stride, b, columns, inputs, bias, out);
  for (std::int64_t r = 0; r < rows; ++r) rows_of<1, V>(a + r * stride, stride, b, columns, inputs, bias, out + r * columns);
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
inline void prefetch(const T* rows, std::int64_t count, std::int64_t stride, std::int64_t numbers) {
  for (std::int64_t r = 0; r < count; ++r) {
    for (std::int64_t i = 0; i < numbers; i += 64 / sizeof(T)) __builtin_prefetch(rows + r * stride + i);
  }
}

template <typename T>
void tile(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = kTraceSamples * widest, hidden = data.hidden;
  const T* none = nullptr;
  T *slopes = scratch, *h = slopes + hidden * matrix, *next = h + matrix, *total = next + matrix;
  T *moved = total + matrix, *before = moved + kTraceProbes * matrix;
  const T* from = data.x + first * data.features;
  std::int64_t stride = data.features;
  for (std::int64_t k = 0; k < hidden; ++k) {
    const TraceLayer<T>& layer = data.layers[k];
    T* to = k % 2 ? next : h;
    multiply<V>(rows, from, stride, layer.weight, layer.columns, layer.inputs, layer.bias, to);
    for (std::int64_t i = 0; i < rows * layer.columns; i += kWidth) {
      V value, slope;
      activate(data.activation, load_vector<V>(to + i), value, slope);
      store_vector(to + i, value);
      store_vector(slopes + k * matrix + i, slope);
    }
    from = to;
    stride = layer.columns;
  }
  const TraceLayer<T>& out = data.layers[hidden];
  T* y = hidden % 2 ? next : h;
  multiply<V>(rows, from, stride, out.weight, out.columns, out.inputs, out.bias, y);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < data.features; ++d) data.y[(first + r) * data.features + d] = y[r * out.columns + d];
  }
  const std::int64_t columns = data.layers[hidden - 1].columns;
  for (std::int64_t i = 0; i < rows * columns; i += kWidth) store_vector(total + i, V{});
  for (std::int64_t begin = 0; begin < data.probes; begin += kTraceProbes) {
    const std::int64_t count = data.probes - begin < kTraceProbes ? data.probes - begin : kTraceProbes;
    for (std::int64_t k = 0; k < hidden; ++k) {  // a layer's weights stay in the cache for all probes
      const TraceLayer<T>& layer = data.layers[k];
      for (std::int64_t p = 0; p < count; ++p) {
        T* to = moved + p * matrix;
        if (k == 0) {
          const T* right = data.right + (begin + p) * data.right_probe + first * data.right_sample;
          if (p + 1 < count) prefetch(right + data.right_probe, rows, data.right_sample, data.features);
          multiply<V>(rows, right, data.right_sample, layer.weight, layer.columns, layer.inputs, none, to);
        } else {
          multiply<V>(rows, before + p * matrix, data.layers[k - 1].columns, layer.weight, layer.columns, layer.inputs, none, to);
        }
        if (k + 1 < hidden) scale<V>(to, slopes + k * matrix, rows * layer.columns);
      }
      T* last = moved;
      moved = before;
      before = last;
    }
    for (std::int64_t p = 0; p < count; ++p) {
      const T* left = data.left + (begin + p) * data.left_probe + first * data.left_sample;
      if (p + 1 < count) prefetch(left + data.left_probe, rows, data.left_sample, data.features);
      multiply<V>(rows, left, data.left_sample, data.last, columns, data.features, none, next);
      for (std::int64_t i = 0; i < rows * columns; i += kWidth) {
        store_vector(total + i, fma(load_vector<V>(next + i), load_vector<V>(before + p * matrix + i), load_vector<V>(total + i)));
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
