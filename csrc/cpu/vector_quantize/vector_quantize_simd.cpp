// Nearest code: products of a few rows with two vectors of codes, whose maxima stay in registers.
#include "common/lanes.h"
#include "cpu/vector_quantize/vector_quantize.h"

namespace fastgen {
namespace {

constexpr int kVectors = 2, kLanes = kVectors * kWidth;
#if defined(__AVX512F__)
constexpr int kRows = 6;
#else
constexpr int kRows = 3;
#endif
static_assert(kRows <= kMostRows);

// The best code of each of R rows, which go less the centre to `x`. `value` and `block` are the greatest nearness of a lane, and the first block that has it.
template <int R, typename T>
inline void nearest_rows(const NearestCode<T>& task, std::int64_t row, T* x) {
  using V = typename VectorOf<T>::type;
  for (int r = 0; r < R; ++r) {
    const T* from = task.x + (row + r) * task.width;
    for (std::int64_t d = 0; d < task.width; ++d) x[r * task.width + d] = from[d] - task.centre[d];
  }
  V value[R][kVectors], block[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      value[r][v] = V{} - T(__builtin_inf());
      block[r][v] = V{};
    }
  }
  const T* codes = task.packed;
  for (std::int64_t b = 0; b < task.blocks; ++b) {
    V sum[R][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[r][v] = load_vector<V>(task.offsets + b * kLanes + v * kWidth);
    }
    for (std::int64_t d = 0; d < task.width; ++d, codes += kLanes) {
      const V first = load_vector<V>(codes), second = load_vector<V>(codes + kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V at = V{} + x[r * task.width + d];
        sum[r][0] = fma(at, first, sum[r][0]);
        sum[r][1] = fma(at, second, sum[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const auto better = sum[r][v] > value[r][v];
        value[r][v] = better ? sum[r][v] : value[r][v];
        block[r][v] = better ? V{} + T(b) : block[r][v];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    std::int64_t best = 0;
    T most = -T(__builtin_inf());
    for (int v = 0; v < kVectors; ++v) {
      for (int i = 0; i < kWidth; ++i) {
        const std::int64_t code = static_cast<std::int64_t>(block[r][v][i]) * kLanes + v * kWidth + i;
        if (value[r][v][i] > most || (value[r][v][i] == most && code < best)) {
          most = value[r][v][i];
          best = code;
        }
      }
    }
    task.codes[row + r] = best;
  }
}

template <typename T>
void nearest(const NearestCode<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  std::int64_t row = begin;
  for (; row + kRows <= end; row += kRows) nearest_rows<kRows>(task, row, scratch);
  for (; row < end; ++row) nearest_rows<1>(task, row, scratch);
}

}  // namespace

const VectorQuantizeKernels& FASTGEN_OF_ISA(vector_quantize_kernels)() {
  static const VectorQuantizeKernels kernels = {kLanes, nearest<float>, nearest<double>};
  return kernels;
}

}  // namespace fastgen
