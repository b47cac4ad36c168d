// Kernels written once for vectors of float and of double, with equally many lanes; float is the fast one.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include "common/simd.h"

namespace fastgen {
namespace {

typedef double Double __attribute__((vector_size(kWidth * 8)));

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = Float;
};
template <>
struct VectorOf<double> {
  using type = Double;
};

inline Double fma(Double a, Double b, Double c) { return a * b + c; }
inline Double exp(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}
inline Double exp_nonpositive(Double x) { return exp(x); }
template <int N>
inline void exp_nonpositive(Double (&x)[N]) {
  for (int i = 0; i < N; ++i) x[i] = exp(x[i]);
}
inline Double log(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_log(x[i]);
  return x;
}
inline Double log1p(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_log1p(x[i]);
  return x;
}
inline Double expm1(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_expm1(x[i]);
  return x;
}
inline Double tanh(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_tanh(x[i]);
  return x;
}
inline Double sqrt(Double x) {
  for (int i = 0; i < kWidth; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}
inline Double abs(Double x) { return x < 0.0 ? -x : x; }
inline Double max(Double a, Double b) { return a < b ? b : a; }
inline Double min(Double a, Double b) { return b < a ? b : a; }
inline Double sigmoid(Double x) {
  const Double z = exp(-abs(x));
  return (x < 0.0 ? z : 1.0 + Double{}) / (1.0 + z);
}

// log(1 + x) for x from 0 to 1.
inline Float log1p_of_part(Float x) {
  const Float u = 1.0f + x;
  return log_of(u, x - (u - 1.0f));
}
inline Double log1p_of_part(Double x) { return log1p(x); }

// log(1 + exp(x)).
template <typename V>
inline V softplus(V x) {
  return max(x, V{}) + log1p_of_part(exp_nonpositive(-abs(x)));
}

template <typename V, typename T>
inline V load_vector(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <typename V, typename T>
inline void store_vector(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n of kWidth; the others repeat the last, so that they compute nothing strange.
template <typename V, typename T>
inline V load_first(const T* p, std::ptrdiff_t n) {
  if (n >= kWidth) return load_vector<V>(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (V)_mm512_mask_loadu_ps((__m512)broadcast(p[n - 1]), static_cast<__mmask16>((1u << n) - 1), p);
  }
#endif
  V v;
  for (std::ptrdiff_t i = 0; i < kWidth; ++i) v[i] = p[i < n ? i : n - 1];
  return v;
}
template <typename V, typename T>
inline void store_first(T* p, V v, std::ptrdiff_t n) {
  if (n >= kWidth) return store_vector(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  }
#endif
  for (std::ptrdiff_t i = 0; i < n; ++i) p[i] = v[i];
}

#if defined(__AVX512F__)
constexpr Int kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
constexpr Int kIota = {0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr Int kIota = {0, 1, 2, 3};
#endif

// The first n lanes, zeros behind them.
template <typename V>
inline V first_lanes(V v, std::ptrdiff_t n) {
  using Mask = decltype(V{} < V{});
  return n >= kWidth ? v : __builtin_convertvector(kIota < static_cast<std::int32_t>(n), Mask) ? v : V{};
}

// Lanes i with bit S clear of `v[i]` keep their place, the others change it with `v[i + S]`.
template <int S, int N, typename V>
inline void exchange(V (&v)[N]) {
  using Mask = decltype(V{} < V{});
  constexpr Int low = (kIota & S) != 0 ? kIota - S + kWidth : kIota, high = (kIota & S) != 0 ? kIota + kWidth : kIota + S;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) {
    if (i & S) continue;
    const V a = v[i], b = v[i + S];
    v[i] = __builtin_shuffle(a, b, __builtin_convertvector(low, Mask));
    v[i + S] = __builtin_shuffle(a, b, __builtin_convertvector(high, Mask));
  }
}

// Transposes kWidth vectors in place.
template <typename V>
inline void transpose(V (&v)[kWidth]) {
  exchange<1>(v);
  exchange<2>(v);
  if constexpr (kWidth > 4) exchange<4>(v);
  if constexpr (kWidth > 8) exchange<8>(v);
}

// columns[j][i] = rows[i * stride + j] for kWidth rows and half as many columns, the last of at least kWidth.
template <typename V, typename T>
inline void load_half(const T* rows, std::ptrdiff_t stride, V* columns) {
  using Mask = decltype(V{} < V{});
  constexpr int kHalf = kWidth / 2;
  V block[kHalf];
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) {
    const V low = load_vector<V>(rows + i * stride), high = load_vector<V>(rows + (i + kHalf) * stride - kHalf);
    block[i] = __builtin_convertvector(kIota < kHalf, Mask) ? low : high;
  }
  exchange<1>(block);
  if constexpr (kHalf > 2) exchange<2>(block);
  if constexpr (kHalf > 4) exchange<4>(block);
#pragma GCC unroll 16
  for (int i = 0; i < kHalf; ++i) columns[i] = block[i];
}

// columns[j][i] = rows[i * stride + j] for n <= kWidth rows; rows beyond n repeat the last.
template <typename V, typename T>
inline void load_columns(const T* rows, std::ptrdiff_t n, std::ptrdiff_t stride, std::ptrdiff_t count, V* columns) {
  for (std::ptrdiff_t j = 0; n == kWidth && count >= kWidth && j < count; j += kWidth) {
    const std::ptrdiff_t first = j + kWidth <= count ? j : count - kWidth;  // the last block meets the one before
    if (count - j <= kWidth / 2) {
      load_half(rows + count - kWidth / 2, stride, columns + count - kWidth / 2);
      break;
    }
    V block[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) block[i] = load_vector<V>(rows + i * stride + first);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) columns[first + i] = block[i];
  }
  if (n == kWidth && count >= kWidth) return;
  T* to = reinterpret_cast<T*>(columns);
  for (std::ptrdiff_t i = 0; i < kWidth; ++i) {
    const T* row = rows + (i < n ? i : n - 1) * stride;
    for (std::ptrdiff_t j = 0; j < count; ++j) to[j * kWidth + i] = row[j];
  }
}

// rows[i * stride + j] = columns[j][i] for n <= kWidth rows.
template <typename V, typename T>
inline void store_columns(T* rows, std::ptrdiff_t n, std::ptrdiff_t stride, std::ptrdiff_t count, const V* columns) {
  for (std::ptrdiff_t j = 0; n == kWidth && count >= kWidth && j < count; j += kWidth) {
    const std::ptrdiff_t first = j + kWidth <= count ? j : count - kWidth;
    V block[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) block[i] = columns[first + i];
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) store_vector(rows + i * stride + first, block[i]);
  }
  if (n == kWidth && count >= kWidth) return;
  const T* from = reinterpret_cast<const T*>(columns);
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    for (std::ptrdiff_t j = 0; j < count; ++j) rows[i * stride + j] = from[j * kWidth + i];
  }
}

}  // namespace
}  // namespace fastgen
