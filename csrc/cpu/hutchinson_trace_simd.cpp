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

// The derivative of the slope.
template <typename V>
inline V bend_of(int activation, V a, V value, V slope) {
  if (activation == 0) return -2 * value * slope;
  const V one = V{} + 1, gate = sigmoid(a), rest = gate * (one - gate);
  return activation == 1 ? rest : rest * (2 + a * (one - 2 * gate));
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
    multiply<V>(count, rows, {left, data.left_sample, data.left_probe}, data.back[hidden], false, {moved, columns, matrix});
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

// out[o][:] += sum of a[o] b[:] over all rows of all probes.
template <int R, int C, typename V, typename T>
inline void add_outer_block(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out, std::int64_t columns) {
  V sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = load_vector<V>(out + r * columns + c * kWidth);
  }
  for (std::int64_t p = 0; p < probes; ++p) {
    for (std::int64_t n = 0; n < rows; ++n) {
      const T *left = a.begin + p * a.apart + n * a.stride, *right = b.begin + p * b.apart + n * b.stride;
      V row[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) row[c] = load_vector<V>(right + c * kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V each = left[r] - V{};
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sum[r][c] = fma(each, row[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_vector(out + r * columns + c * kWidth, sum[r][c]);
  }
}

template <int C, typename V, typename T>
inline void add_outer_panel(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out, std::int64_t outputs,
                            std::int64_t columns) {
  std::int64_t o = 0;
  const auto from = [&] { return Rows<const T>{a.begin + o, a.stride, a.apart}; };
  for (; o + 6 <= outputs; o += 6) add_outer_block<6, C, V>(probes, rows, from(), b, out + o * columns, columns);
  for (; o + 4 <= outputs; o += 4) add_outer_block<4, C, V>(probes, rows, from(), b, out + o * columns, columns);
  for (; o < outputs; ++o) add_outer_block<1, C, V>(probes, rows, from(), b, out + o * columns, columns);
}

template <typename V, typename T>
void add_outer(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out, std::int64_t outputs,
               std::int64_t columns) {
  std::int64_t c = 0;
  for (; c + kColumns * kWidth <= columns; c += kColumns * kWidth) {
    add_outer_panel<kColumns, V>(probes, rows, a, {b.begin + c, b.stride, b.apart}, out + c, outputs, columns);
  }
  for (; c < columns; c += kWidth) {
    add_outer_panel<1, V>(probes, rows, a, {b.begin + c, b.stride, b.apart}, out + c, outputs, columns);
  }
}

// Rows of `features` numbers to rows of `columns`, zeros behind them.
template <typename T>
inline void pad(Rows<const T> from, std::int64_t probes, std::int64_t rows, std::int64_t features, Rows<T> to) {
  for (std::int64_t p = 0; p < probes; ++p) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* row = from.begin + p * from.apart + r * from.stride;
      T* out = to.begin + p * to.apart + r * to.stride;
      for (std::int64_t d = 0; d < to.stride; ++d) out[d] = d < features ? row[d] : T(0);
    }
  }
}

template <typename T>
void tile_backward(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows, T* grads) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = kTraceSamples * widest, hidden = data.hidden, all = kTraceProbes * matrix;
  T *values = scratch, *slopes = values + (hidden + 1) * matrix, *bends = slopes + hidden * matrix;
  T *of_slopes = bends + hidden * matrix, *gradient = of_slopes + hidden * matrix, *spare = gradient + matrix;
  T *moved = spare + matrix, *scaled = moved + hidden * all, *carried = scaled + all, *next = carried + all, *padded = next + all;
  const std::int64_t inputs = data.back[0].columns;
  pad<T>({data.x + first * data.features, data.features, 0}, 1, rows, data.features, {values, inputs, 0});
  for (std::int64_t k = 0; k < hidden; ++k) {
    const TraceLayer<T>& layer = data.layers[k];
    T *to = values + (k + 1) * matrix, *of_slope = of_slopes + k * matrix;
    multiply<V>(1, rows, Rows<const T>{values + k * matrix, data.back[k].columns, 0}, layer, true, {to, layer.columns, 0});
    for (std::int64_t i = 0; i < rows * layer.columns; i += kWidth) {
      const V a = load_vector<V>(to + i);
      V value, slope;
      activate(data.activation, a, value, slope);
      store_vector(to + i, value);
      store_vector(slopes + k * matrix + i, slope);
      store_vector(bends + k * matrix + i, bend_of(data.activation, a, value, slope));
      store_vector(of_slope + i, V{});
    }
  }
  std::int64_t offsets = 0;  // where the gradients of the layer behind the last one would begin
  for (std::int64_t k = 0; k <= hidden; ++k) offsets += data.back[k].inputs * data.back[k].columns + data.layers[k].columns;
  for (std::int64_t begin = 0; begin < data.probes; begin += kTraceProbes) {
    const std::int64_t count = data.probes - begin < kTraceProbes ? data.probes - begin : kTraceProbes;
    const Rows<const T> right = {data.right + begin * data.right_probe + first * data.right_sample, data.right_sample,
                                 data.right_probe};
    const Rows<const T> left = {data.left + begin * data.left_probe + first * data.left_sample, data.left_sample, data.left_probe};
    pad<T>(right, count, rows, data.features, {padded, inputs, matrix});
    Rows<const T> from = {padded, inputs, matrix};
    for (std::int64_t k = 0; k < hidden; ++k) {
      const std::int64_t columns = data.layers[k].columns;
      multiply<V>(count, rows, from, data.layers[k], false, {moved + k * all, columns, matrix});
      for (std::int64_t p = 0; k + 1 < hidden && p < count; ++p) {
        for (std::int64_t i = 0; i < rows * columns; i += kWidth) {
          const V tangent = load_vector<V>(moved + k * all + p * matrix + i);
          store_vector(scaled + p * matrix + i, tangent * load_vector<V>(slopes + k * matrix + i));
        }
      }
      from = {scaled, columns, matrix};
    }
    // the vectors from the left, times the gradient of the trace, meet those from the right at each layer
    const TraceLayer<T>& last = data.back[hidden];
    multiply<V>(count, rows, left, last, false, {carried, last.columns, matrix});
    T* to = grads + offsets;
    for (std::int64_t k = hidden; k >= 0; --k) {
      const std::int64_t columns = data.back[k].columns, outputs = data.back[k].inputs;
      to -= outputs * columns + data.layers[k].columns;
      for (std::int64_t p = 0; p < count; ++p) {  // what the layer's weight multiplied
        T *out = scaled + p * matrix, *vector = carried + p * matrix;
        const T* tangent = moved + (k - 1) * all + p * matrix;
        for (std::int64_t r = 0; k == hidden && r < rows; ++r) {
          const V each = data.grad_trace[first + r] - V{};
          for (std::int64_t i = r * columns; i < (r + 1) * columns; i += kWidth) {
            const V scale = each * load_vector<V>(slopes + (k - 1) * matrix + i);
            store_vector(out + i, load_vector<V>(tangent + i) * scale);
            store_vector(vector + i, load_vector<V>(vector + i) * each);
          }
        }
        for (std::int64_t i = 0; k > 0 && k < hidden && i < rows * columns; i += kWidth) {
          store_vector(out + i, load_vector<V>(tangent + i) * load_vector<V>(slopes + (k - 1) * matrix + i));
        }
      }
      const Rows<const T> with = k > 0 ? Rows<const T>{scaled, columns, matrix} : Rows<const T>{padded, columns, matrix};
      if (k == hidden) {
        add_outer<V>(count, rows, left, with, to, outputs, columns);
      } else {
        const std::int64_t width = data.layers[k].columns;
        add_outer<V>(count, rows, Rows<const T>{carried, width, matrix}, with, to, outputs, columns);
        if (k > 0) {
          multiply<V>(count, rows, Rows<const T>{carried, width, matrix}, data.back[k], false, {next, columns, matrix});
          T* last_carried = carried;
          carried = next;
          next = last_carried;
        }
      }
      for (std::int64_t p = 0; k > 0 && p < count; ++p) {
        T *of_slope = of_slopes + (k - 1) * matrix, *vector = carried + p * matrix;
        const T *tangent = moved + (k - 1) * all + p * matrix, *slope = slopes + (k - 1) * matrix;
        for (std::int64_t i = 0; i < rows * columns; i += kWidth) {
          const V now = load_vector<V>(vector + i);
          store_vector(of_slope + i, fma(load_vector<V>(tangent + i), now, load_vector<V>(of_slope + i)));
          store_vector(vector + i, now * load_vector<V>(slope + i));
        }
      }
    }
  }
  pad<T>({data.grad_y + first * data.features, data.features, 0}, 1, rows, data.features, {gradient, data.layers[hidden].columns, 0});
  T* to = grads + offsets;
  for (std::int64_t k = hidden; k >= 0; --k) {
    const std::int64_t columns = data.back[k].columns, outputs = data.back[k].inputs, width = data.layers[k].columns;
    to -= outputs * columns + width;
    add_outer<V>(1, rows, Rows<const T>{gradient, width, 0}, Rows<const T>{values + k * matrix, columns, 0}, to, outputs, columns);
    for (std::int64_t i = 0; i < rows * width; i += kWidth) {
      T* bias = to + outputs * columns + i % width;
      store_vector(bias, load_vector<V>(bias) + load_vector<V>(gradient + i));
    }
    multiply<V>(1, rows, Rows<const T>{gradient, width, 0}, data.back[k], false, {spare, columns, 0});
    for (std::int64_t i = 0; k > 0 && i < rows * columns; i += kWidth) {
      const V through = load_vector<V>(spare + i) * load_vector<V>(slopes + (k - 1) * matrix + i);
      const V bend = load_vector<V>(bends + (k - 1) * matrix + i);
      store_vector(spare + i, fma(load_vector<V>(of_slopes + (k - 1) * matrix + i), bend, through));
    }
    T* before = gradient;
    gradient = spare;
    spare = before;
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < data.features; ++d) data.grad_x[(first + r) * data.features + d] = gradient[r * inputs + d];
  }
}

template <typename T>
void run(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; n += kTraceSamples) {
    tile(data, scratch, widest, n, end - n < kTraceSamples ? end - n : kTraceSamples);
  }
}

template <typename T>
void backward(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end, T* grads) {
  for (std::int64_t n = begin; n < end; n += kTraceSamples) {
    tile_backward(data, scratch, widest, n, end - n < kTraceSamples ? end - n : kTraceSamples, grads);
  }
}

}  // namespace

const TraceKernels& FASTGEN_OF_ISA(trace_kernels)() {
  static const TraceKernels kernels = {kWidth, run<float>, run<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
