// Products of a tile's rows with a layer's weights, for the kernels of hutchinson_trace.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include "common/register_gemm.h"
#include "cpu/hutchinson_trace/hutchinson_trace.h"

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kColumns = 4;  // vectors of a block: with 6 rows as many accumulators as the registers hold
#else
constexpr int kColumns = 2;
#endif
constexpr int kLinesAhead = 5;  // for each probe of a block: all that a layer needs of another, before that layer ends

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
  add_products(sum, a, stride, 1, b, columns, inputs);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_vector(out + r * columns + c * kWidth, sum[r][c]);
  }
}

// Matrices of a tile's rows, one for each probe, `apart` numbers from one another.
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
    std::int64_t r = 0;
    for (; r + kTraceSamples <= rows; r += kTraceSamples) {
      block<kTraceSamples, C, V>(from + r * a.stride, a.stride, b.weight + c, b.columns, b.inputs, bias, to + r * b.columns);
    }
    for (; r < rows; ++r) {
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

// Memory that is asked for some cache lines at a time, while something else is computed.
struct Ahead {
  const char *next, *end;

  void ask(int lines) {
    for (; lines > 0 && next < end; --lines, next += 64) __builtin_prefetch(next);
  }
};

// out[o][:] += sum of a[o] b[:] over all rows of all probes.
template <int R, int C, typename V, typename T>
inline void add_outer_block(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out,
                            std::int64_t columns, Ahead& ahead) {
  V sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = load_vector<V>(out + r * columns + c * kWidth);
  }
  for (std::int64_t p = 0; p < probes; ++p) {
    ahead.ask(kLinesAhead);
    add_products(sum, a.begin + p * a.apart, 1, a.stride, b.begin + p * b.apart, b.stride, rows);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store_vector(out + r * columns + c * kWidth, sum[r][c]);
  }
}

template <int C, typename V, typename T>
inline void add_outer_panel(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out,
                            std::int64_t outputs, std::int64_t columns, Ahead& ahead) {
  std::int64_t o = 0;
  const auto from = [&] { return Rows<const T>{a.begin + o, a.stride, a.apart}; };
  for (; o + 6 <= outputs; o += 6) add_outer_block<6, C, V>(probes, rows, from(), b, out + o * columns, columns, ahead);
  for (; o + 4 <= outputs; o += 4) add_outer_block<4, C, V>(probes, rows, from(), b, out + o * columns, columns, ahead);
  for (; o < outputs; ++o) add_outer_block<1, C, V>(probes, rows, from(), b, out + o * columns, columns, ahead);
}

template <typename V, typename T>
void add_outer(std::int64_t probes, std::int64_t rows, Rows<const T> a, Rows<const T> b, T* out, std::int64_t outputs,
               std::int64_t columns, Ahead ahead = {}) {
  std::int64_t c = 0;
  for (; c + kColumns * kWidth <= columns; c += kColumns * kWidth) {
    add_outer_panel<kColumns, V>(probes, rows, a, {b.begin + c, b.stride, b.apart}, out + c, outputs, columns, ahead);
  }
  for (; c < columns; c += kWidth) {
    add_outer_panel<1, V>(probes, rows, a, {b.begin + c, b.stride, b.apart}, out + c, outputs, columns, ahead);
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

}  // namespace
}  // namespace fastgen
