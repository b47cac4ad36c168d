// The affine map of a coupling layer, kWidth elements at once.
#include "common/lanes.h"
#include "cpu/affine_coupling/affine_coupling.h"

namespace fastgen {
namespace {

// A sum in the lanes, with what rounding lost.
template <typename V>
struct Sum {
  V sum{}, lost{};

  void add(V x) {
    const V before = sum;
    sum = before + x;
    const V part = sum - before;
    lost += (before - (sum - part)) + (x - part);
  }
  double total() const {
    double all = 0;
    for (int i = 0; i < kWidth; ++i) all += double(sum[i]) + (lost[i] == lost[i] ? double(lost[i]) : 0.0);  // NaN beside infinity
    return all;
  }
};

constexpr std::ptrdiff_t kAhead = 1024;  // bytes: several streams at once are more than the processor follows early enough

template <typename T>
inline void prefetch(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead);
}
template <typename T>
inline void prefetch_to_write(T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 1);
}

template <typename V, typename T>
inline V load_every(const T* p, std::int64_t stride, std::int64_t n) {
  if (stride == 1) return load_first<V>(p, n);
  V v;
  for (std::int64_t i = 0; i < kWidth; ++i) v[i] = p[(i < n ? i : n - 1) * stride];
  return v;
}
template <typename V, typename T>
inline void store_every(T* p, V v, std::int64_t stride, std::int64_t n) {
  if (stride == 1) return store_first(p, v, n);
  for (std::int64_t i = 0; i < (n < kWidth ? n : kWidth); ++i) p[i * stride] = v[i];
}

// 1 where the mask keeps an element.
template <typename V>
inline V load_mask(const std::uint8_t* mask, std::int64_t n) {
  V v;
  for (std::int64_t i = 0; i < kWidth; ++i) v[i] = mask[i < n ? i : n - 1] != 0;
  return v;
}

// Where a piece lies.
struct Piece {
  std::int64_t sample, channel, x, element, count, shift, raw, stride;
};

inline Piece piece_of(const AffineCouplingShape& shape, std::int64_t i) {
  const std::int64_t pieces = shape.pieces, size = shape.elements, n = i / pieces, j = i % pieces;
  const std::int64_t most = shape.by_channel ? shape.positions : kAffineCouplingPiece;
  const std::int64_t first = j * most, left = size - first;
  const std::int64_t start = 2 * n * size, count = left < most ? left : most;
  const std::int64_t channel = shape.by_channel ? j : first;
  if (!shape.interleaved) return {n, channel, n * size + first, first, count, start + first, start + size + first, 1};
  return {n,
          channel,
          n * size + first,
          first,
          count,
          start + 2 * first,
          start + 2 * first + shape.positions,
          shape.positions == 1 ? 2 : 1};
}

// What the element is multiplied by, its logarithm, and the derivatives of that.
template <typename V>
struct Factor {
  V value, log, of_raw, of_scale;
};

// `raw` as load_raw has it.
template <int kKind, bool kInverse, typename V>
inline Factor<V> factor_of(V raw, V scale) {
  Factor<V> f{};
  const V one = V{} + 1;
  if constexpr (kKind == 2) {
    const V h = raw + 2, z = exp(-abs(h)), whole = one + z;
    const auto below = h < V{};
    const V top = below ? z : one;
    f.value = kInverse ? one + exp(-h) : top / whole;
    f.log = min(h, V{}) - log1p(z);
    f.of_raw = (below ? one : z) / whole;
  } else if constexpr (kKind == 1) {
    f.of_scale = raw;
    f.log = scale * f.of_scale;
    f.of_raw = scale * (one - f.of_scale) * (one + f.of_scale);
    f.value = exp(kInverse ? -f.log : f.log);
  } else {
    f.log = raw;
    f.of_raw = one;
    f.value = exp(kInverse ? -raw : raw);
  }
  if constexpr (kInverse) {
    f.log = -f.log;
    f.of_raw = -f.of_raw;
    f.of_scale = -f.of_scale;
  }
  return f;
}

template <typename V, typename T>
inline V load_scale(const AffineCouplingShape& shape, const T* scale, const Piece& p, std::int64_t i, std::int64_t n) {
  return shape.by_channel ? V{} + scale[p.channel] : load_first<V>(scale + p.channel + i, n);
}

// function(first, how many) of the vectors of `count` elements; all but the last are full, which the compiler then knows.
template <typename Function>
inline void each_vector(std::int64_t count, Function function) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) function(i, std::int64_t{kWidth});
  if (i < count) function(i, count - i);
}

constexpr std::int64_t kRun = 32 * kWidth;  // elements whose tanh are found together: their chains of operations overlap

// What the network gave for element i, or its tanh: those of a run are found at its first element.
template <int kKind, typename V, typename T>
inline V load_raw(const T* parameters, const Piece& p, std::int64_t i, std::int64_t n, T* tanhs) {
  const T* raw = parameters + p.raw + i * p.stride;
  if constexpr (kKind != 1) return load_every<V>(raw, p.stride, n);
  if (i % kRun == 0) {
    const std::int64_t left = p.count - i;
    each_vector(left < kRun ? left : kRun, [&](std::int64_t j, std::int64_t m) __attribute__((always_inline)) {
      prefetch(raw + j * p.stride);
      store_vector(tanhs + j, tanh(load_every<V>(raw + j * p.stride, p.stride, m)));
    });
  }
  return load_vector<V>(tanhs + i % kRun);
}

template <int kKind, bool kInverse, typename T>
void forward_of(const AffineCouplingShape& shape, const AffineCouplingData<T>& data, std::int64_t begin, std::int64_t end) {
  using V = typename VectorOf<T>::type;
  alignas(64) T tanhs[kRun];
  for (std::int64_t at = begin; at < end; ++at) {
    const Piece p = piece_of(shape, at);
    Sum<V> log_det;
    each_vector(p.count, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
      prefetch(data.x + p.x + i);
      prefetch(data.parameters + p.shift + i);
      prefetch(data.parameters + p.raw + i);
      const V x = load_first<V>(data.x + p.x + i, n);
      const V shift = load_every<V>(data.parameters + p.shift + i * p.stride, p.stride, n);
      const V raw = load_raw<kKind, V>(data.parameters, p, i, n, tanhs);
      const V scale = kKind == 1 ? load_scale<V>(shape, data.scale, p, i, n) : V{};
      const Factor<V> f = factor_of<kKind, kInverse>(raw, scale);
      V y, log = f.log;
      if constexpr (kKind == 2) {
        y = kInverse ? x * f.value - shift : (x + shift) * f.value;
      } else {
        y = kInverse ? (x - shift) * f.value : x * f.value + shift;
      }
      if (data.mask) {
        const auto kept = load_mask<V>(data.mask + p.element + i, n) != V{};
        y = kept ? x : y;
        log = kept ? V{} : log;
      }
      store_first(data.y + p.x + i, y, n);
      log_det.add(n < kWidth ? first_lanes(log, n) : log);
    });
    data.log_det[at] = log_det.total();
  }
}

template <int kKind, bool kInverse, typename T>
void backward_of(const AffineCouplingShape& shape, const AffineCouplingData<T>& data, std::int64_t begin, std::int64_t end) {
  using V = typename VectorOf<T>::type;
  constexpr bool kNeedsShift = kInverse != (kKind == 2);
  alignas(64) T tanhs[kRun];
  for (std::int64_t at = begin; at < end; ++at) {
    const Piece p = piece_of(shape, at);
    Sum<V> of_scale;
    const V of_log = V{} + data.grad_log_det[p.sample];
    each_vector(p.count, [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
      prefetch(data.x + p.x + i);
      prefetch(data.parameters + p.raw + i);
      V given = V{} + data.grad_y[0];
      if (!data.same_grad_y) {
        prefetch(data.grad_y + p.x + i);
        given = load_first<V>(data.grad_y + p.x + i, n);
      }
      V x = load_first<V>(data.x + p.x + i, n);
      const V raw = load_raw<kKind, V>(data.parameters, p, i, n, tanhs);
      const V scale = kKind == 1 ? load_scale<V>(shape, data.scale, p, i, n) : V{};
      if constexpr (kNeedsShift) {
        const V shift = load_every<V>(data.parameters + p.shift + i * p.stride, p.stride, n);
        x = kInverse ? x - shift : x + shift;
      }
      const Factor<V> f = factor_of<kKind, kInverse>(raw, scale);
      V grad_x = given * f.value;
      V grad_shift = kKind == 2 ? (kInverse ? -given : grad_x) : (kInverse ? -grad_x : given);
      // of log |dy/dx|, which the sigmoid's inverse has as 1 + exp(-h): its derivative is -exp(-h) = value of_raw
      const V along = grad_x * x + of_log;
      V grad_raw = along * f.of_raw, here = along * f.of_scale;
      if (data.mask) {
        const auto kept = load_mask<V>(data.mask + p.element + i, n) != V{};
        grad_x = kept ? given : grad_x;
        grad_shift = kept ? V{} : grad_shift;
        grad_raw = kept ? V{} : grad_raw;
        here = kept ? V{} : here;
      }
      prefetch_to_write(data.grad_x + p.x + i);
      prefetch_to_write(data.grad_parameters + p.shift + i * p.stride);
      prefetch_to_write(data.grad_parameters + p.raw + i * p.stride);
      store_first(data.grad_x + p.x + i, grad_x, n);
      store_every(data.grad_parameters + p.shift + i * p.stride, grad_shift, p.stride, n);
      store_every(data.grad_parameters + p.raw + i * p.stride, grad_raw, p.stride, n);
      if constexpr (kKind == 1) {
        if (shape.by_channel) {
          of_scale.add(n < kWidth ? first_lanes(here, n) : here);
        } else {
          double* to = data.grad_scale + p.sample * shape.channels + p.channel + i;
          for (std::int64_t k = 0; k < (n < kWidth ? n : kWidth); ++k) to[k] = here[k];
        }
      }
    });
    if (kKind == 1 && shape.by_channel) data.grad_scale[p.sample * shape.channels + p.channel] = of_scale.total();
  }
}

template <typename T>
void forward(const AffineCouplingShape& shape, const AffineCouplingData<T>& data, std::int64_t begin, std::int64_t end) {
  constexpr AffineCouplingKernel<T> kernels[3][2] = {{forward_of<0, false, T>, forward_of<0, true, T>},
                                                     {forward_of<1, false, T>, forward_of<1, true, T>},
                                                     {forward_of<2, false, T>, forward_of<2, true, T>}};
  kernels[shape.parameterisation][shape.inverse](shape, data, begin, end);
}

template <typename T>
void backward(const AffineCouplingShape& shape, const AffineCouplingData<T>& data, std::int64_t begin, std::int64_t end) {
  constexpr AffineCouplingKernel<T> kernels[3][2] = {{backward_of<0, false, T>, backward_of<0, true, T>},
                                                     {backward_of<1, false, T>, backward_of<1, true, T>},
                                                     {backward_of<2, false, T>, backward_of<2, true, T>}};
  kernels[shape.parameterisation][shape.inverse](shape, data, begin, end);
}

}  // namespace

const AffineCouplingKernels& FASTGEN_OF_ISA(affine_coupling_kernels)() {
  static const AffineCouplingKernels kernels = {forward<float>, backward<float>, forward<double>, backward<double>};
  return kernels;
}

}  // namespace fastgen
