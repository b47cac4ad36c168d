// The inner loop of small products of matrices: a block of the result stays in registers.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include <type_traits>

#include "common/lanes.h"

namespace fastgen {
namespace {

// Vectors of a row of a block. A vector of double is two registers.
template <typename T>
constexpr int kVectors = sizeof(T) == 4 ? 2 : 1;

// Rows of a block whose sums fill the registers.
#if defined(__AVX512F__)
constexpr int kProductRows = 8;
#else
constexpr int kProductRows = 6;
#endif

// sum[r][c] += sum over k < count of a[r * row + k * next] b[k * stride + c]; the vectors c are `apart` numbers from one another.
template <int R, int C, typename V, typename T>
inline void add_products(V (&sum)[R][C], const T* a, std::int64_t row, std::int64_t next, const T* b, std::int64_t stride,
                         std::int64_t count, std::int64_t apart = kWidth) {
  for (std::int64_t k = 0; k < count; ++k, a += next, b += stride) {
    V columns[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) columns[c] = load_vector<V>(b + c * apart);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V each = a[r * row] - V{};
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = fma(each, columns[c], sum[r][c]);
    }
  }
}

// function(rows of a block, its first row): blocks of all rows, as high as the registers hold.
template <typename Function>
inline void each_block_of_rows(std::int64_t rows, Function function) {
  std::int64_t r = 0;
  for (; r + kProductRows <= rows; r += kProductRows) function(std::integral_constant<int, kProductRows>(), r);
  for (; r + 4 <= rows; r += 4) function(std::integral_constant<int, 4>(), r);
  for (; r < rows; ++r) function(std::integral_constant<int, 1>(), r);
}

}  // namespace
}  // namespace fastgen
