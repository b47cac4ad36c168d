// A convolution by some taps of its kernel: products with a padded copy of a band of rows, which lies in the cache.
#include "common/lanes.h"
#include "common/register_gemm.h"
#include "cpu/masked_conv2d/masked_conv2d_taps.h"

namespace fastgen {
namespace {

constexpr std::int64_t kChannels = 64;  // of a run
constexpr std::int64_t kSummed = 128;  // products summed one after the other, before they go to those summed before

// The band's rows and those that its taps reach, [row][channel][stride], to memory that has zeros at both ends of each.
template <typename T>
void pad(const MaskedConv2dTaps<T>& d, const MaskedConv2dBand& band, T* to) {
  using V = typename VectorOf<T>::type;
  const std::int64_t rows = band.count + d.above + d.below, stride = d.stride();
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t row = band.first - d.above + r;
    for (std::int64_t c = 0; c < d.channels; ++c, to += stride) {
      const T* from = row < 0 || row >= d.height ? nullptr : d.x + ((band.n * d.channels + c) * d.height + row) * d.width;
      for (std::int64_t i = 0; i < d.width; i += kWidth) {
        store_first(to + d.before + i, from ? load_first<V>(from + i, d.width - i) : V{}, d.width - i);
      }
    }
  }
}

// y of C vectors, whose places in the padded rows are `image` and `apart` behind it. Channels go in runs whose rows stay in the
// first-level cache; `sums` [O][C] carries from one to the next.
template <int C, typename V, typename T>
inline void convolve_units(const MaskedConv2dTaps<T>& d, const T* image, std::int64_t apart, V* sums, T* (&to)[C],
                           const std::int64_t (&count)[C]) {
  const std::int64_t stride = d.stride(), inputs = d.taps * d.channels, plane = d.height * d.width;
  for (std::int64_t begin = 0; begin == 0 || begin < d.channels; begin += kChannels) {
    const std::int64_t channels = d.channels - begin < kChannels ? d.channels - begin : kChannels;
    const std::int64_t together = kSummed / (channels > 0 ? channels : 1);
    each_block_of_rows(d.outputs, [&](auto height, std::int64_t o) {
      constexpr int kHeight = decltype(height)::value;
      V total[kHeight][C];
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) total[r][c] = begin > 0 ? sums[(o + r) * C + c] : d.bias ? d.bias[o + r] - V{} : V{};
      }
      for (std::int64_t first = 0; first < d.taps; first += together) {
        V sum[kHeight][C] = {};
        for (std::int64_t tap = first; tap < d.taps && tap < first + together; ++tap) {
          const T* read = image + (d.down[tap] * d.channels + begin) * stride + d.right[tap];
          add_products(sum, d.matrix + o * inputs + tap * d.channels + begin, inputs, 1, read, stride, channels, apart);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
          for (int c = 0; c < C; ++c) total[r][c] += sum[r][c];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          if (begin + channels < d.channels) {
            sums[(o + r) * C + c] = total[r][c];
          } else {
            store_first(to[c] + (o + r) * plane, total[r][c], count[c]);
          }
        }
      }
    });
  }
}

template <typename T>
void forward(const MaskedConv2dTaps<T>& d, T* scratch, const MaskedConv2dBand& band) {
  using V = typename VectorOf<T>::type;
  pad(d, band, scratch);
  V* sums = reinterpret_cast<V*>(scratch + d.image());
  const std::int64_t stride = d.stride(), in_row = (d.width + kWidth - 1) / kWidth, units = band.count * in_row;
  const auto image_of = [&](std::int64_t unit) {
    return (d.above + unit / in_row) * d.channels * stride + d.before + unit % in_row * kWidth;
  };
  const auto place_of = [&](std::int64_t unit) {
    return d.y + (band.n * d.outputs * d.height + band.first + unit / in_row) * d.width + unit % in_row * kWidth;
  };
  const auto count_of = [&](std::int64_t unit) { return d.width - unit % in_row * kWidth; };
  std::int64_t unit = 0;
  if constexpr (kVectors<T> == 2) {
    for (; unit + 2 <= units; unit += 2) {
      T* to[2] = {place_of(unit), place_of(unit + 1)};
      const std::int64_t at = image_of(unit), apart = image_of(unit + 1) - at;
      convolve_units<2>(d, scratch + at, apart, sums, to, {count_of(unit), count_of(unit + 1)});
    }
  }
  for (; unit < units; ++unit) {
    T* to[1] = {place_of(unit)};
    convolve_units<1>(d, scratch + image_of(unit), 0, sums, to, {count_of(unit)});
  }
}

template <typename T>
constexpr std::int64_t kStrip = kVectors<T> * kWidth;

// As pad(), but with channels side by side: [strips of channels][row][column][kStrip].
template <typename T>
void pad_turned(const MaskedConv2dTaps<T>& d, const MaskedConv2dBand& band, T* to) {
  using V = typename VectorOf<T>::type;
  const std::int64_t rows = band.count + d.above + d.below, stride = d.stride(), strip = d.rows() * stride * kStrip<T>;
  for (std::int64_t c = 0; c < d.channels; c += kWidth) {
    T* strips = to + c / kStrip<T> * strip + c % kStrip<T>;
    const std::int64_t channels = d.channels - c < kWidth ? d.channels - c : kWidth;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t row = band.first - d.above + r;
      const bool inside = row >= 0 && row < d.height;
      const T* from = d.x + ((band.n * d.channels + c) * d.height + row) * d.width;
      T* place = strips + (r * stride + d.before) * kStrip<T>;
      for (std::int64_t x = 0; x < d.width; x += kWidth) {
        const std::int64_t count = d.width - x < kWidth ? d.width - x : kWidth;
        V tile[kWidth];
        for (std::int64_t i = 0; i < kWidth; ++i) {
          tile[i] = inside && i < channels ? load_first<V>(from + i * d.height * d.width + x, count) : V{};
        }
        transpose(tile);
        for (std::int64_t i = 0; i < count; ++i) store_vector(place + (x + i) * kStrip<T>, tile[i]);
      }
    }
  }
}

template <typename T>
void backward(const MaskedConv2dTaps<T>& d, T* scratch, const MaskedConv2dBand& band, T* of_matrix) {
  using V = typename VectorOf<T>::type;
  pad_turned(d, band, scratch);
  const std::int64_t rows = d.rows(), stride = d.stride(), plane = d.height * d.width;
  const std::int64_t columns = d.padded_channels();
  const T* grad = d.grad + band.n * d.outputs * plane + band.first * d.width;
  for (std::int64_t tap = 0; tap < d.taps; ++tap) {
    for (std::int64_t c = 0; c < d.channels; c += kStrip<T>) {
      const T* seen = scratch + ((c / kStrip<T> * rows + d.above + d.down[tap]) * stride + d.before + d.right[tap]) * kStrip<T>;
      each_block_of_rows(d.outputs, [&](auto height, std::int64_t o) {
        constexpr int kHeight = decltype(height)::value;
        V sum[kHeight][kVectors<T>];
        T* to = of_matrix + (o * d.taps + tap) * columns + c;
        const auto place = [&](int r, int v) { return to + r * d.taps * columns + v * kWidth; };
#pragma GCC unroll 8
        for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors<T>; ++v) sum[r][v] = load_vector<V>(place(r, v));
        }
        for (std::int64_t row = 0; row < band.count; ++row) {
          add_products(sum, grad + o * plane + row * d.width, plane, 1, seen + row * stride * kStrip<T>, kStrip<T>, d.width);
        }
#pragma GCC unroll 8
        for (int r = 0; r < kHeight; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors<T>; ++v) store_vector(place(r, v), sum[r][v]);
        }
      });
    }
  }
}

}  // namespace

const MaskedConv2dKernels& FASTGEN_OF_ISA(masked_conv2d_kernels)() {
  static const MaskedConv2dKernels kernels = {forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
