// The products and sums of attention, and the rounding of keys and values, of kernels.h, for the instruction set of the including
// file. Rounded keys and values become float32 as they are loaded.
//
// Both read keys and values once, row by row, and ask for rows ahead: the heads of a position lie side by side, so that the rows of
// one head are apart, and what the processor fetches by itself is another head's.
#pragma once

#include "common/simd.h"
#include "cpu/machine/kernels/kernels.h"
#include "cpu/machine/kernels/rounded_loads_impl.h"

namespace fastgen {
namespace {

constexpr std::size_t kRowsAhead = 16;

// The first n < kWidth values, then zeros.
template <typename T>
inline Float load_first(const T* p, std::size_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return (Float)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
#endif
  T values[kWidth] = {};
  std::memcpy(values, p, n * sizeof(T));
  return load(values);
}

template <typename T>
inline Float load_at_most(const T* p, std::size_t n) {
  return n >= kWidth ? load(p) : load_first(p, n);
}

// The row `rows` rows of `stride` bytes behind another.
template <typename T>
inline const T* row_of(const void* first, std::ptrdiff_t stride, std::size_t rows) {
  return reinterpret_cast<const T*>(static_cast<const char*>(first) + static_cast<std::ptrdiff_t>(rows) * stride);
}

template <typename T>
inline void prefetch_row(const T* row, std::size_t values) {
  for (std::size_t i = 0; i < values; i += 64 / sizeof(T)) __builtin_prefetch(row + i, 0, 3);
}

// Adds neighbouring parts of Half lanes of two vectors; those of a come first.
template <int Half>
inline Float fold_pair(Float a, Float b) {
  Int low, high;
  for (int lane = 0; lane < kWidth; ++lane) {
    const int part = lane / Half, within = lane % Half, parts = kWidth / (2 * Half);
    const int from = part < parts ? part * 2 * Half + within : kWidth + (part - parts) * 2 * Half + within;
    low[lane] = from;
    high[lane] = from + Half;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// The sums of kWidth vectors, each folded in halves.
template <int Half = kWidth / 2>
inline Float fold_all(Float* sums, int count = kWidth) {
  if constexpr (Half == 0) {
    return sums[0];
  } else {
    for (int i = 0; i < count / 2; ++i) sums[i] = fold_pair<Half>(sums[2 * i], sums[2 * i + 1]);
    return fold_all<Half / 2>(sums, count / 2);
  }
}

// One key's sums in 16 columns, folded to a vector.
template <typename T>
inline Float columns_of(const float* query, std::size_t depth, const T* key) {
  constexpr int vectors = kTile / kWidth;
  Float columns[vectors] = {};
  std::size_t d = 0;
  for (; d + kTile <= depth; d += kTile)
    for (int v = 0; v < vectors; ++v) columns[v] = fma(load(query + d + v * kWidth), load(key + d + v * kWidth), columns[v]);
  for (int v = 0; v < vectors && d + v * kWidth < depth; ++v) {
    const std::size_t rest = depth - d - v * kWidth;
    columns[v] = fma(load_at_most(query + d + v * kWidth, rest), load_at_most(key + d + v * kWidth, rest), columns[v]);
  }
  for (int half = vectors / 2; half > 0; half /= 2)
    for (int v = 0; v < half; ++v) columns[v] += columns[v + half];
  return columns[0];
}

template <typename T>
void products(float* out, const float* query, std::size_t depth, const void* keys, std::ptrdiff_t stride, std::size_t count) {
  std::size_t i = 0;
  for (; i < count; i += kWidth) {
    const std::size_t here = count - i < kWidth ? count - i : kWidth;
    Float sums[kWidth];
#pragma GCC unroll 16
    for (int k = 0; k < kWidth; ++k) {
      const std::size_t row = i + (static_cast<std::size_t>(k) < here ? k : 0);
      if (row + kRowsAhead < count) prefetch_row(row_of<T>(keys, stride, row + kRowsAhead), depth);
      sums[k] = columns_of(query, depth, row_of<T>(keys, stride, row));
    }
    const Float folded = fold_all(sums);
    if (here == kWidth) {
      store(out + i, folded);
    } else {
      for (std::size_t k = 0; k < here; ++k) out[i + k] = folded[k];
    }
  }
}

// V vectors of the values' channels.
template <int V, typename T>
inline void weigh_vectors(float* out, const float* weights, const T* values, std::ptrdiff_t stride, std::size_t count) {
  Float sums[V];
  for (int v = 0; v < V; ++v) sums[v] = load(out + v * kWidth);
  for (std::size_t i = 0; i < count; ++i) {
    const T* row = row_of<T>(values, stride, i);
    if (i + kRowsAhead < count) prefetch_row(row_of<T>(values, stride, i + kRowsAhead), V * kWidth);
    const Float weight = broadcast(weights[i]);
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] = fma(weight, load(row + v * kWidth), sums[v]);
  }
  for (int v = 0; v < V; ++v) store(out + v * kWidth, sums[v]);
}

template <typename T>
void weigh(float* out, std::size_t width, const float* weights, const void* rows, std::ptrdiff_t stride, std::size_t count) {
  const T* values = static_cast<const T*>(rows);
  std::size_t c = 0;
  for (; c + 8 * kWidth <= width; c += 8 * kWidth) weigh_vectors<8>(out + c, weights, values + c, stride, count);
  for (; c + 4 * kWidth <= width; c += 4 * kWidth) weigh_vectors<4>(out + c, weights, values + c, stride, count);
  for (; c + kWidth <= width; c += kWidth) weigh_vectors<1>(out + c, weights, values + c, stride, count);
  if (c == width) return;
  Float sum = load_first(out + c, width - c);
  for (std::size_t i = 0; i < count; ++i) {
    sum = fma(broadcast(weights[i]), load_first(row_of<T>(values + c, stride, i), width - c), sum);
  }
  for (std::size_t k = 0; c + k < width; ++k) out[c + k] = sum[k];
}

void round_bfloat16(std::uint16_t* out, const float* a, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kWidth) {
    const std::size_t here = n - i < kWidth ? n - i : kWidth;
    const Float values = load_at_most(a + i, n - i);
    const Unsigned words = (Unsigned)bits(values), rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
    const Unsigned kept = (Unsigned)select(is_nan(values), from_bits(broadcast_int(0x7fc0)), from_bits((Int)rounded));
    const Halves halves = __builtin_convertvector(kept, Halves);
    std::memcpy(out + i, &halves, here * sizeof(std::uint16_t));
  }
}

float round_int8(std::int8_t* out, const float* a, std::size_t n) {
  Float largest = {};
  for (std::size_t i = 0; i < n; i += kWidth) largest = max(largest, abs(load_at_most(a + i, n - i)));
  float top = largest[0];
  for (int lane = 1; lane < kWidth; ++lane) top = top != top || largest[lane] <= top ? top : largest[lane];
  const float scale = top / 127.0f;
  const bool regular = scale > 0.0f && scale <= 3.0e38f;  // else it is 0, or infinite or NaN, which makes the values NaN
  for (std::size_t i = 0; i < n; i += kWidth) {
    const std::size_t here = n - i < kWidth ? n - i : kWidth;
    Float values = {};
    if (regular) values = max(min(round(load_at_most(a + i, n - i) / scale), broadcast(127.0f)), broadcast(-127.0f));
    const Bytes bytes = __builtin_convertvector(__builtin_convertvector(values, Int), Bytes);
    std::memcpy(out + i, &bytes, here);
  }
  return scale;
}

}  // namespace
}  // namespace fastgen
