// Dilated causal convolution with a gate: its sizes, and the blocks of time that its work goes in.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/causal_conv1d.h"

namespace fastgen {

struct CausalConv1dSizes {
  static constexpr std::int64_t kBlockBytes = 768 << 10;  // of a panel and its sums: most of a second-level cache
  static constexpr std::int64_t kMostTimes = 2048;        // of a block
  static constexpr std::int64_t kRunsBytes = 16 << 20;    // of the gradients of the weights that are summed apart

  std::int64_t samples, channels, outputs, taps, times, dilation, gate;
  std::int64_t residuals = 0, skips = 0;

  std::int64_t history() const { return (taps - 1) * dilation; }
  std::int64_t inputs() const { return taps * channels; }
  int halves() const { return gate == kNoGate ? 1 : 2; }
  std::int64_t rows() const { return outputs / halves(); }  // of y
  std::int64_t out() const { return residuals + skips; }

  // Times of a block of numbers of so many bytes.
  std::int64_t block(std::int64_t bytes) const {
    const std::int64_t scratch = std::max<std::int64_t>(1, inputs() + outputs);
    const std::int64_t fitting = std::max<std::int64_t>(256, kBlockBytes / bytes / scratch / 64 * 64);
    // two blocks at least, for two threads
    return std::min({fitting, kMostTimes, std::max<std::int64_t>(256, (times / 2 + 63) / 64 * 64)});
  }

  // Each run of blocks has sums of its own for the gradients of the weights.
  std::int64_t most_runs() const {
    const std::int64_t weights = std::max<std::int64_t>(1, outputs * inputs() + out() * rows());
    return std::clamp<std::int64_t>(kRunsBytes / 8 / weights, 2, 16);
  }

  // function(its place in the weight, output, tap, channel)
  template <typename Function>
  void each_weight(Function function) const {
    for (std::int64_t o = 0; o < outputs; ++o)
      for (std::int64_t c = 0; c < channels; ++c)
        for (std::int64_t k = 0; k < taps; ++k) function((o * channels + c) * taps + k, o, k, c);
  }
};

// A block of one sample's times, and the run of blocks that it is in.
struct CausalConv1dBlock {
  std::int64_t run, n, t, count;  // of the sample n, `count` times from t on
};

// The blocks of all samples, in runs that do not depend on the number of threads: function(scratch, block).
struct CausalConv1dBlocks {
  std::int64_t samples, times, size, most_runs;

  std::int64_t of_sample() const { return (times + size - 1) / size; }
  std::int64_t runs() const { return std::min(most_runs, samples * of_sample()); }

  template <typename Parallel, typename Scratch, typename Function>
  void each(Parallel parallel_for, Scratch scratch, Function function) const {
    const std::int64_t all = samples * of_sample(), count = runs();
    parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
      auto own = scratch();
      for (std::int64_t run = begin; run < end; ++run) {
        for (std::int64_t i = run * all / count; i < (run + 1) * all / count; ++i) {
          const std::int64_t t = i % of_sample() * size;
          function(own, CausalConv1dBlock{run, i / of_sample(), t, std::min(size, times - t)});
        }
      }
    });
  }
};

}  // namespace fastgen
