// The trace of a dense field between pairs of vectors: a tile of samples goes through all layers, its tangents with it.
#include "cpu/hutchinson_trace/hutchinson_trace.h"

#include "common/lanes.h"
#include "cpu/hutchinson_trace/hutchinson_trace_activation.h"
#include "cpu/hutchinson_trace/hutchinson_trace_products.h"

namespace fastgen {
namespace {

// to = from * by, element by element.
template <typename V, typename T>
inline void scale(const T* from, const T* by, std::int64_t count, T* to) {
  for (std::int64_t i = 0; i < count; i += kWidth) store_vector(to + i, load_vector<V>(from + i) * load_vector<V>(by + i));
}

// A tile's part of what the forward leaves to the backward, for a run of probes.
template <typename T>
struct Kept {
  T* begin;  // or null
  std::int64_t probes, matrix;

  explicit operator bool() const { return begin != nullptr; }
  Rows<T> of(std::int64_t k, const TraceLayer<T>& layer) const { return {begin + k * probes * matrix, layer.columns, matrix}; }
  // `count` layers' matrices, from layer k on; those of the next run of probes, or tile, follow the last layer's.
  Ahead ahead(std::int64_t k, std::int64_t count) const {
    const T* from = begin + k * probes * matrix;
    return begin ? Ahead{reinterpret_cast<const char*>(from), reinterpret_cast<const char*>(from + count * probes * matrix)}
                 : Ahead{};
  }
};

template <typename T>
inline Kept<T> kept_of(const TraceData<T>& data, std::int64_t first, std::int64_t rows, std::int64_t probe, std::int64_t probes) {
  const std::int64_t matrix = rows * data.kept_columns;
  T* begin = data.kept ? data.kept + trace_kept(data, first) + probe * (data.hidden + 1) * matrix : nullptr;
  return {begin, probes, matrix};
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
    const Kept<T> kept = kept_of(data, first, rows, begin, count);
    Rows<const T> from = {right, data.right_sample, data.right_probe};
    for (std::int64_t k = 0; k < hidden; ++k) {
      const TraceLayer<T>& layer = data.layers[k];
      const Rows<T> to = kept ? kept.of(k, layer) : Rows<T>{moved, layer.columns, matrix};
      multiply<V>(count, rows, from, layer, false, to);
      for (std::int64_t p = 0; k + 1 < hidden && p < count; ++p) {
        scale<V>(to.begin + p * to.apart, slopes + k * matrix, rows * layer.columns, moved + p * matrix);
      }
      from = k + 1 < hidden ? Rows<const T>{moved, layer.columns, matrix} : Rows<const T>{to.begin, to.stride, to.apart};
      T* last = moved;
      moved = before;
      before = last;
    }
    const Rows<T> back = kept ? kept.of(hidden, data.back[hidden]) : Rows<T>{moved, columns, matrix};
    multiply<V>(count, rows, {left, data.left_sample, data.left_probe}, data.back[hidden], false, back);
    for (std::int64_t p = 0; p < count; ++p) {
      const T *met = back.begin + p * back.apart, *carried = from.begin + p * from.apart;
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
          scale<V>(carried + p * matrix, slopes + (k - 1) * matrix, rows * columns, carried + p * matrix);
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
    const Rows<const T> left = {data.left + begin * data.left_probe + first * data.left_sample, data.left_sample,
                                data.left_probe};
    pad<T>(right, count, rows, data.features, {padded, inputs, matrix});
    const Kept<T> kept = kept_of(data, first, rows, begin, count);
    const auto tangents = [&](std::int64_t k) {
      return kept ? kept.of(k, data.layers[k]) : Rows<T>{moved + k * all, data.layers[k].columns, matrix};
    };
    Rows<const T> from = {padded, inputs, matrix};
    for (std::int64_t k = 0; !kept && k < hidden; ++k) {
      const std::int64_t columns = data.layers[k].columns;
      multiply<V>(count, rows, from, data.layers[k], false, tangents(k));
      for (std::int64_t p = 0; k + 1 < hidden && p < count; ++p) {
        scale<V>(moved + k * all + p * matrix, slopes + k * matrix, rows * columns, scaled + p * matrix);
      }
      from = {scaled, columns, matrix};
    }
    // the vectors from the left, times the gradient of the trace, meet those from the right at each layer
    T* to = grads + offsets;
    for (std::int64_t k = hidden; k >= 0; --k) {
      const std::int64_t columns = data.back[k].columns, outputs = data.back[k].inputs;
      to -= outputs * columns + data.layers[k].columns;
      const Rows<const T> above = k == hidden ? left : Rows<const T>{carried, data.layers[k].columns, matrix};
      if (k == 0) {
        const Rows<const T> at = {padded, inputs, matrix};
        add_outer<V>(count, rows, above, at, to, outputs, columns, kept.ahead(2 * hidden, 2));
        break;
      }
      const Rows<T> met = k == hidden && kept ? kept.of(hidden, data.back[k]) : Rows<T>{next, columns, matrix};
      if (k < hidden || !kept) multiply<V>(count, rows, above, data.back[k], false, met);
      const Rows<T> tangent = tangents(k - 1);
      for (std::int64_t r = 0; r < rows; ++r) {
        const V each = (k == hidden ? data.grad_trace[first + r] : T(1)) - V{};
        for (std::int64_t i = r * columns; i < (r + 1) * columns; i += kWidth) {
          const V slope = load_vector<V>(slopes + (k - 1) * matrix + i), scale = each * slope;
          V of_slope = load_vector<V>(of_slopes + (k - 1) * matrix + i);
          for (std::int64_t p = 0; p < count; ++p) {
            const V along = load_vector<V>(tangent.begin + p * tangent.apart + i);
            const V vector = load_vector<V>(met.begin + p * met.apart + i) * each;
            store_vector(scaled + p * matrix + i, along * scale);
            store_vector(next + p * matrix + i, vector * slope);
            of_slope = fma(along, vector, of_slope);
          }
          store_vector(of_slopes + (k - 1) * matrix + i, of_slope);
        }
      }
      const Rows<const T> at = {scaled, columns, matrix};
      add_outer<V>(count, rows, above, at, to, outputs, columns, k > 1 ? kept.ahead(k - 2, 1) : Ahead{});
      T* last = carried;
      carried = next;
      next = last;
    }
  }
  pad<T>({data.grad_y + first * data.features, data.features, 0}, 1, rows, data.features,
         {gradient, data.layers[hidden].columns, 0});
  T* to = grads + offsets;
  for (std::int64_t k = hidden; k >= 0; --k) {
    const std::int64_t columns = data.back[k].columns, outputs = data.back[k].inputs, width = data.layers[k].columns;
    to -= outputs * columns + width;
    add_outer<V>(1, rows, Rows<const T>{gradient, width, 0}, Rows<const T>{values + k * matrix, columns, 0}, to, outputs,
                 columns);
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
                                       each_piece<activate_piece<float>, float>,
                                       each_piece<activate_piece<double>, double>,
                                       each_piece<activate_piece_backward<float>, float>,
                                       each_piece<activate_piece_backward<double>, double>,
                                       each_piece<contract_piece<float>, float>,
                                       each_piece<contract_piece<double>, double>};
  return kernels;
}

}  // namespace fastgen
