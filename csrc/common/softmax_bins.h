// How a softmax over columns cuts an interval into bins.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include "common/lanes.h"

namespace fastgen {
namespace {

// Raw columns to the numerators of their softmax, in place; the denominator.
template <typename V>
inline V exponentials(V* columns, std::int64_t count) {
  constexpr int kTogether = 4;
  V top = columns[0], sums[kTogether] = {};
  for (std::int64_t j = 1; j < count; ++j) top = top < columns[j] ? columns[j] : top;
  std::int64_t j = 0;
  for (; j + kTogether <= count; j += kTogether) {
    V x[kTogether];
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) x[i] = columns[j + i] - top;
    exp_nonpositive(x);
#pragma GCC unroll 8
    for (int i = 0; i < kTogether; ++i) sums[i] += columns[j + i] = x[i];
  }
  for (int i = 0; j < count; ++i, ++j) sums[i] += columns[j] = exp_nonpositive(columns[j] - top);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// A sum of parts of 1, each from 0 to 1. In float32 the parts are counted in units of 2^-30, so that however many there are,
// and in whatever order they come, the sum is out by less than 2^-30 for each.
template <typename V>
struct SumOfParts;

template <>
struct SumOfParts<Float> {
  Int units = {};
  void add(Float part) { units = wrapping_add(units, __builtin_convertvector(part * 1073741824.0f, Int)); }
  void add_where(Int mask, Float part) { units = wrapping_add(units, mask & __builtin_convertvector(part * 1073741824.0f, Int)); }
  Float value() const { return __builtin_convertvector(units, Float) * 9.31322575e-10f; }
};

template <>
struct SumOfParts<Double> {
  Double sum = {};
  void add(Double part) { sum += part; }
  template <typename Mask>
  void add_where(Mask mask, Double part) {
    sum += mask ? part : Double{};
  }
  Double value() const { return sum; }
};

}  // namespace
}  // namespace fastgen
