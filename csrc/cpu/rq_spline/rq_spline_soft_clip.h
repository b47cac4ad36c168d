// Softly clipped parameters of splines, a row of vectors after the other.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include <algorithm>

#include "common/lanes.h"
#include "cpu/rq_spline/rq_spline.h"

namespace fastgen {
namespace {

// Calls function(place, count) for the vectors of begin .. end, the last one shorter.
template <typename Function>
inline void each_vector(std::int64_t begin, std::int64_t end, Function function) {
  for (std::int64_t i = begin; i < end; i += kWidth) function(i, std::min<std::int64_t>(kWidth, end - i));
}

template <bool Backward, typename T>
void soft_clip(const SoftClipData<T>& given, std::int64_t begin, std::int64_t end) {
  using V = typename VectorOf<T>::type;
  const SoftClipData<T> data = given;  // a copy, which no store can change
  const T softness = T(data.softness), least = T(data.least);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t first = row * data.parameters, split = first + data.sizes;
    each_vector(first, split, [&](std::int64_t i, std::int64_t count) {
      const V raw = load_first<V>(data.raw + i, count), stretch = 1 + 2 * softness * abs(raw);
      store_first(data.out + i, Backward ? load_first<V>(data.gradient + i, count) / (stretch * stretch) : raw / stretch, count);
    });
    each_vector(split, first + data.parameters, [&](std::int64_t i, std::int64_t count) {
      const V raw = load_first<V>(data.raw + i, count), stretch = 1 + softness * abs(raw), clipped = exp(raw / stretch);
      const V derivative = clipped - least, missing = -expm1(-derivative);
      if constexpr (Backward) {
        store_first(data.out + i, load_first<V>(data.gradient + i, count) * clipped / (stretch * stretch * missing), count);
      } else {
        store_first(data.out + i, derivative + log(missing), count);
      }
    });
  }
}

}  // namespace
}  // namespace fastgen
