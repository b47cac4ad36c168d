// Matrices over the times of a block, in strips of a few vectors: [strips][rows][kStrip]. What a product reads of a strip stays in
// the first-level cache.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include "common/register_gemm.h"
#include "cpu/causal_conv1d/causal_conv1d.h"

namespace fastgen {
namespace {

template <typename T>
constexpr std::int64_t kStrip = kVectors<T> * kWidth;
constexpr std::int64_t kSummed = 32;  // products summed one after the other, before they go to those summed before: less rounding

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Asks for what the next strip has at this place of a row of times: a strip takes a little of many rows, too far apart for the
// processor to foresee.
template <typename T>
inline void ask_for_next(const T* p) {
  __builtin_prefetch(p + kStrip<T>);
}

// function(strip, its first time, its times) for all strips of a block.
template <typename T, typename Function>
inline void each_strip(std::int64_t count, Function function) {
  for (std::int64_t t = 0; t < count; t += kStrip<T>) function(t / kStrip<T>, t, least(kStrip<T>, count - t));
}

// A row of neighbouring times that is `state` before `rest`; zeros beyond both.
template <typename T>
struct Sequence {
  const T *state, *rest;
  std::int64_t before, after;

  T at(std::int64_t t) const {
    if (t < 0 || t >= before + after) return T(0);
    return t < before ? state[t] : rest[t - before];
  }

  // Its times from `first` on as a row of strips `apart` numbers from one another, zeros behind the last.
  void copy(std::int64_t first, std::int64_t count, T* to, std::int64_t apart) const {
    using V = typename VectorOf<T>::type;
    each_strip<T>(count, [&](std::int64_t strip, std::int64_t t, std::int64_t n) {
      T* row = to + strip * apart;
      const std::int64_t from = first + t - before;
      if (n == kStrip<T> && from >= 0 && from + n <= after) {
        for (std::int64_t i = 0; i < kStrip<T>; i += kWidth) {
          __builtin_prefetch(rest + from + i + 2 * after);  // of the row after the next
          store_vector(row + i, load_vector<V>(rest + from + i));
        }
        return;
      }
      for (std::int64_t i = 0; i < kStrip<T>; ++i) row[i] = i < n ? at(first + t + i) : T(0);
    });
  }
};

// out = matrix panel of one strip: matrix [rows][inputs], panel [inputs][kStrip], out [rows][kStrip]. A function by itself: the
// compiler finds no registers for its sums among what else a caller holds.
template <typename T>
__attribute__((noinline)) void multiply(const T* matrix, std::int64_t rows, std::int64_t inputs, const T* panel, T* out) {
  using V = typename VectorOf<T>::type;
  each_block_of_rows(rows, [&](auto height, std::int64_t r) {
    constexpr int kHeight = decltype(height)::value;
    V sum[kHeight][kVectors<T>] = {};
    for (std::int64_t k = 0; k < inputs; k += kSummed) {
      V part[kHeight][kVectors<T>] = {};
      add_products(part, matrix + r * inputs + k, inputs, 1, panel + k * kStrip<T>, kStrip<T>, least(kSummed, inputs - k));
#pragma GCC unroll 8
      for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 2
        for (int c = 0; c < kVectors<T>; ++c) sum[i][c] += part[i][c];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 2
      for (int c = 0; c < kVectors<T>; ++c) store_vector(out + (r + i) * kStrip<T> + c * kWidth, sum[i][c]);
    }
  });
}

// A strip's rows as columns: [rows / kStrip][kStrip times][kStrip rows]; rows is a multiple of kStrip.
template <typename T>
void turn(const T* strip, std::int64_t rows, T* to) {
  using V = typename VectorOf<T>::type;
  for (std::int64_t r = 0; r < rows; r += kWidth) {
    for (std::int64_t t = 0; t < kStrip<T>; t += kWidth) {
      V tile[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) tile[i] = load_vector<V>(strip + (r + i) * kStrip<T> + t);
      transpose(tile);
      T* from = to + (r / kStrip<T> * kStrip<T> + t) * kStrip<T> + r % kStrip<T>;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store_vector(from + i * kStrip<T>, tile[i]);
    }
  }
}

// to[r][c] = sum over a block's times of a[r] b[c], or added to it, for a of `rows` and b turned, of which it takes `columns`.
template <typename T>
void outer(std::int64_t strips, const T* a, std::int64_t rows, const T* b, std::int64_t columns, double* to, bool add) {
  using V = typename VectorOf<T>::type;
  const std::int64_t tiles = (columns + kStrip<T> - 1) / kStrip<T>, padded = CausalConv1dSizes::padded(columns);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    each_block_of_rows(rows, [&](auto height, std::int64_t r) {
      constexpr int kHeight = decltype(height)::value;
      V sum[kHeight][kVectors<T>] = {};
      for (std::int64_t strip = 0; strip < strips; ++strip) {
        const T* of_a = a + (strip * rows + r) * kStrip<T>;
        const T* of_b = b + kStrip<T> * (strip * padded + tile * kStrip<T>);
        add_products(sum, of_a, kStrip<T>, 1, of_b, kStrip<T>, kStrip<T>);
      }
      const std::int64_t first = tile * kStrip<T>, count = least(kStrip<T>, columns - first);
      for (int i = 0; i < kHeight; ++i) {
        double* place = to + (r + i) * columns + first;
        T terms[kStrip<T>];
        for (int c = 0; c < kVectors<T>; ++c) store_vector(terms + c * kWidth, sum[i][c]);
        for (std::int64_t c = 0; c < count; ++c) place[c] = add ? place[c] + terms[c] : terms[c];
      }
    });
  }
}

}  // namespace
}  // namespace fastgen
