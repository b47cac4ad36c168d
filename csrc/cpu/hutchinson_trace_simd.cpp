// The trace of a dense field between pairs of vectors: a tile of samples goes through all layers, its tangents with it.
#include "cpu/hutchinson_trace.h"

#include "common/lanes.h"
#include "cpu/hutchinson_trace_activation.h"
#include "cpu/hutchinson_trace_products.h"

namespace fastgen {
namespace {

// to *= by, element by element.
template <typename V, typename T>
inline void scale(T* to, const T* by, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kWidth) store_vector(to + i, load_vector<V>(to + i) * load_vector<V>(by + i));
}

// out = a W + b of layer k, for the samples from `first` on.
template <typename V, typename T>
inline void affine(const TraceData<T>& data, std::int64_t k, std::int64_t first, std::int64_t rows, Rows<const T> a, T* out) {
  const TraceLayer<T>& layer = data.layers[k];
  multiply<V>(1, rows, a, layer, !layer.own, {out, layer.columns, 0});
  const std::int64_t outputs = data.back[k].inputs;
  for (std::int64_t r = 0; layer.own && r < rows; ++r) {
    const T* bias = layer.own + (first + r) * outputs;
    for (std::int64_t d = 0; d < outputs; ++d) out[r * layer.columns + d] += bias[d];
  }
}

// f of a tile of samples, and the slope of every activation.
template <typename T>
void value_of(const TraceData<T>& data, T* slopes, T* h, T* next, std::int64_t matrix, std::int64_t first, std::int64_t rows) {
  using V = typename VectorOf<T>::type;
  Rows<const T> from = {data.x + first * data.features, data.features, 0};
  for (std::int64_t k = 0; k < data.hidden; ++k) {
    affine<V>(data, k, first, rows, from, h);
    with_activation(data.activation, [&](auto activation) {
      for (std::int64_t i = 0; i < rows * data.layers[k].columns; i += kWidth) {
        V value, slope;
        activate(activation, load_vector<V>(h + i), value, slope);
        store_vector(h + i, value);
        store_vector(slopes + k * matrix + i, slope);
      }
    });
    from = {h, data.layers[k].columns, 0};
    T* last = h;
    h = next;
    next = last;
  }
  affine<V>(data, data.hidden, first, rows, from, h);
  const std::int64_t columns = data.layers[data.hidden].columns;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t d = 0; d < data.features; ++d) data.y[(first + r) * data.features + d] = h[r * columns + d];
  }
}

template <typename T>
void tile(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = data.rows * widest, hidden = data.hidden, all = trace_probes_held(data.probes) * matrix;
  T *slopes = scratch, *h = slopes + hidden * matrix, *next = h + matrix, *total = next + matrix;
  T *moved = total + matrix, *before = moved + all;
  value_of(data, slopes, h, next, matrix, first, rows);
  const std::int64_t columns = data.layers[hidden - 1].columns;
  for (std::int64_t i = 0; i < rows * columns; i += kWidth) store_vector(total + i, V{});
  for (std::int64_t begin = 0; begin < data.probes; begin += kTraceProbes) {
    const std::int64_t count = data.probes - begin < kTraceProbes ? data.probes - begin : kTraceProbes;
    const T* right = data.right + begin * data.right_probe + first * data.right_sample;
    const T* left = data.left + begin * data.left_probe + first * data.left_sample;
    Rows<const T> from = {right, data.right_sample, data.right_probe};
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

// J^T applied `powers` times to each vector in `left`, whatever comes between kept in the cache.
template <typename T>
void tile_powers(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = data.rows * widest, hidden = data.hidden, all = trace_probes_held(data.probes) * matrix;
  T *slopes = scratch, *h = slopes + hidden * matrix, *next = h + matrix;
  T *carried = next + 2 * matrix, *spare = carried + all;
  value_of(data, slopes, h, next, matrix, first, rows);
  for (std::int64_t begin = 0; begin < data.probes; begin += kTraceProbes) {
    const std::int64_t count = data.probes - begin < kTraceProbes ? data.probes - begin : kTraceProbes;
    const T* left = data.left + begin * data.left_probe + first * data.left_sample;
    Rows<const T> from = {left, data.left_sample, data.left_probe};
    for (std::int64_t power = 0; power < data.powers; ++power) {
      for (std::int64_t k = hidden; k >= 0; --k) {
        const std::int64_t columns = data.back[k].columns;
        multiply<V>(count, rows, from, data.back[k], false, {carried, columns, matrix});
        for (std::int64_t p = 0; k > 0 && p < count; ++p) {
          scale<V>(carried + p * matrix, slopes + (k - 1) * matrix, rows * columns);
        }
        from = {carried, columns, matrix};
        T* last = carried;
        carried = spare;
        spare = last;
      }
      T* out = data.products + ((power * data.probes + begin) * data.samples + first) * data.features;
      for (std::int64_t p = 0; p < count; ++p) {
        for (std::int64_t r = 0; r < rows; ++r) {
          const T* row = from.begin + p * from.apart + r * from.stride;
          for (std::int64_t d = 0; d < data.features; ++d) out[(p * data.samples + r) * data.features + d] = row[d];
        }
      }
    }
  }
}

template <typename T>
void tile_backward(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t first, std::int64_t rows, T* grads) {
  using V = typename VectorOf<T>::type;
  const std::int64_t matrix = data.rows * widest, hidden = data.hidden, all = trace_probes_held(data.probes) * matrix;
  T *values = scratch, *slopes = values + (hidden + 1) * matrix, *bends = slopes + hidden * matrix;
  T *of_slopes = bends + hidden * matrix, *gradient = of_slopes + hidden * matrix, *spare = gradient + matrix;
  T *moved = spare + matrix, *scaled = moved + hidden * all, *carried = scaled + all, *next = carried + all, *padded = next + all;
  const std::int64_t inputs = data.back[0].columns;
  pad<T>({data.x + first * data.features, data.features, 0}, 1, rows, data.features, {values, inputs, 0});
  for (std::int64_t k = 0; k < hidden; ++k) {
    T *to = values + (k + 1) * matrix, *of_slope = of_slopes + k * matrix;
    affine<V>(data, k, first, rows, Rows<const T>{values + k * matrix, data.back[k].columns, 0}, to);
    with_activation(data.activation, [&](auto activation) {
      for (std::int64_t i = 0; i < rows * data.layers[k].columns; i += kWidth) {
        const V a = load_vector<V>(to + i);
        V value, slope;
        activate(activation, a, value, slope);
        store_vector(to + i, value);
        store_vector(slopes + k * matrix + i, slope);
        store_vector(bends + k * matrix + i, bend_of(activation, a, value, slope));
        store_vector(of_slope + i, V{});
      }
    });
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
    for (std::int64_t r = 0; data.layers[k].own && r < rows; ++r) {
      for (std::int64_t o = 0; o < outputs; ++o) data.layers[k].grad_own[(first + r) * outputs + o] = gradient[r * width + o];
    }
    for (std::int64_t c = 0; !data.layers[k].own && c < width; c += kWidth) {
      T* bias = to + outputs * columns + c;
      V sum = load_vector<V>(bias);
      for (std::int64_t r = 0; r < rows; ++r) sum = sum + load_vector<V>(gradient + r * width + c);
      store_vector(bias, sum);
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

template <auto Tile, typename T>
void run(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end) {
  for (std::int64_t n = begin; n < end; n += data.rows) {
    Tile(data, scratch, widest, n, end - n < data.rows ? end - n : data.rows);
  }
}

template <typename T>
void backward(const TraceData<T>& data, T* scratch, std::int64_t widest, std::int64_t begin, std::int64_t end, T* grads) {
  for (std::int64_t n = begin; n < end; n += data.rows) {
    tile_backward(data, scratch, widest, n, end - n < data.rows ? end - n : data.rows, grads);
  }
}

}  // namespace

const TraceKernels& FASTGEN_OF_ISA(trace_kernels)() {
  static const TraceKernels kernels = {kWidth,
                                       run<tile<float>, float>,
                                       run<tile<double>, double>,
                                       run<tile_powers<float>, float>,
                                       run<tile_powers<double>, double>,
                                       backward<float>,
                                       backward<double>,
                                       activate_pieces<false, float>,
                                       activate_pieces<false, double>,
                                       activate_pieces<true, float>,
                                       activate_pieces<true, double>};
  return kernels;
}

}  // namespace fastgen
