// Dilated causal convolution with a gate: the blocks of time that threads share, and what is summed over them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/causal_conv1d/causal_conv1d.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {

constexpr std::int64_t kCausalConv1dGrain = 4096;

// Blocks of `times` times of every sample, in runs.
class CausalConv1dBlocks {
 public:
  CausalConv1dBlocks(std::int64_t samples, std::int64_t times, std::int64_t bytes, std::int64_t most_runs)
      : samples_(samples), times_(times), size_(size_of(times, bytes)), runs_(std::min(most_runs, count())) {}

  std::int64_t size() const { return size_; }
  std::int64_t of_sample() const { return (times_ + size_ - 1) / size_; }
  std::int64_t count() const { return samples_ * of_sample(); }
  std::int64_t runs() const { return runs_; }
  std::int64_t first(std::int64_t run) const { return run * count() / runs_; }
  // The time at which the run begins with the sample of its block i.
  std::int64_t start(std::int64_t i, std::int64_t run) const {
    return std::max<std::int64_t>(0, (first(run) - i / of_sample() * of_sample()) * size_);
  }

  // function(scratch, block, its number, its run), on all threads.
  template <typename Scratch, typename Function>
  void each(Scratch scratch, Function function) const {
    parallel_for(0, runs_, 1, [&](std::int64_t begin, std::int64_t end) {
      const torch::stable::Tensor own = scratch();
      for (std::int64_t run = begin; run < end; ++run) {
        for (std::int64_t i = first(run); i < first(run + 1); ++i) {
          const std::int64_t t = i % of_sample() * size_;
          function(own, CausalConv1dBlock{i / of_sample(), t, std::min(size_, times_ - t)}, i, run);
        }
      }
    });
  }

 private:
  static constexpr std::int64_t kBlockBytes = 768 << 10;  // of a block's matrices: most of a second-level cache
  static constexpr std::int64_t kLeastTimes = 256, kMostTimes = 512;

  // As many as the cache holds, of so many bytes for each time; all alike.
  static std::int64_t size_of(std::int64_t times, std::int64_t bytes) {
    const std::int64_t most = std::clamp(kBlockBytes / std::max<std::int64_t>(1, bytes), kLeastTimes, kMostTimes);
    const std::int64_t count = std::max<std::int64_t>(1, (times + most - 1) / most);
    return std::max(CausalConv1dSizes::kPadding, CausalConv1dSizes::padded((times + count - 1) / count));
  }

  std::int64_t samples_, times_, size_, runs_;
};

// `rows` rows of sums.
class CausalConv1dRows {
 public:
  CausalConv1dRows(std::int64_t rows, std::int64_t size) : rows_(rows), size_(size), sums_(new double[rows * size]) {}
  double* row(std::int64_t row) const { return sums_.get() + row * size_; }

  double total(std::int64_t i, std::int64_t begin, std::int64_t end) const {
    double sum = 0;
    for (std::int64_t row = begin; row < end; ++row) sum += sums_[row * size_ + i];
    return sum;
  }

  // Over all rows.
  std::vector<double> totals() const {
    std::vector<double> all(size_);
    parallel_for(0, size_, kCausalConv1dGrain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = 0; row < rows_; ++row)
        for (std::int64_t i = begin; i < end; ++i) all[i] += sums_[row * size_ + i];
    });
    return all;
  }

 private:
  std::int64_t rows_, size_;
  std::unique_ptr<double[]> sums_;
};

// Gradients of times before those of a run's first blocks: of the state, or of what another run's blocks have.
template <typename T>
class CausalConv1dBefore {
 public:
  CausalConv1dBefore(const CausalConv1dSizes& sizes, const CausalConv1dBlocks& blocks, T* of_state)
      : s_(sizes), blocks_(blocks), each_(s_.channels * s_.history()), of_state_(of_state),
        of_runs_(new T[blocks.runs() * each_]()) {
    std::fill_n(of_state_, s_.samples * each_, T(0));
  }

  T* of(std::int64_t run, std::int64_t n, std::int64_t start) const {
    return start == 0 ? of_state_ + n * each_ : of_runs_.get() + run * each_;
  }

  // Adds those of runs that begin within a sample.
  void hand_over(T* of_x) const {
    const std::int64_t history = s_.history(), grain = std::max<std::int64_t>(1, kCausalConv1dGrain / (history + 1));
    parallel_for(0, s_.channels, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t run = 1; run < blocks_.runs(); ++run) {
        const std::int64_t block = blocks_.first(run), start = blocks_.start(block, run);
        const std::int64_t early = std::max<std::int64_t>(0, history - start);  // before x
        for (std::int64_t c = begin; c < end && start > 0; ++c) {
          const std::int64_t row = block / blocks_.of_sample() * s_.channels + c;
          const T* from = of_runs_.get() + run * each_ + c * history;
          T *state = of_state_ + row * history + start, *x = of_x + row * s_.times + start - history;
          for (std::int64_t i = 0; i < early; ++i) state[i] += from[i];
          for (std::int64_t i = early; i < history; ++i) x[i] += from[i];
        }
      }
    });
  }

 private:
  const CausalConv1dSizes& s_;
  const CausalConv1dBlocks& blocks_;
  std::int64_t each_;
  T* of_state_;
  std::unique_ptr<T[]> of_runs_;
};

}  // namespace fastgen
