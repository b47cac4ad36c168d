// Dilated causal convolution with a gate: what its blocks of time read and what is summed over them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

namespace fastgen {

// Rows of numbers at neighbouring times of a sequence that is `state` before `rest`; zeros beyond both.
template <typename T>
struct CausalConv1dSequence {
  const T *state, *rest;
  std::int64_t before, after;  // times of each

  void copy(T* to, std::int64_t row, std::int64_t first, std::int64_t count) const {
    for (std::int64_t done = 0; done < count;) {
      const std::int64_t at = first + done, left = count - done;
      std::int64_t length = left;
      if (at < 0 || at >= before + after) {
        length = at < 0 ? std::min(left, -at) : left;
        std::fill_n(to + done, length, T(0));
      } else {
        const bool early = at < before;
        length = std::min(left, early ? before - at : before + after - at);
        const T* from = early ? state + row * before + at : rest + row * after + at - before;
        std::memcpy(to + done, from, static_cast<std::size_t>(length) * sizeof(T));
      }
      done += length;
    }
  }

  // The rows of one sample's channels for every tap, tap k being `step` times later than the one before: [taps * channels, stride].
  void panel(T* to, std::int64_t stride, std::int64_t sample, std::int64_t channels, std::int64_t taps, std::int64_t first,
             std::int64_t step, std::int64_t count) const {
    for (std::int64_t row = 0; row < taps * channels; ++row) {
      copy(to + row * stride, sample * channels + row % channels, first + row / channels * step, count);
    }
  }
};

// The channels of a residual [samples, residuals, times] and after them those of a skip [samples, skips, times].
template <typename T>
struct CausalConv1dOutputs {
  T *residual, *skip;
  std::int64_t residuals, skips, times;

  T* at(std::int64_t n, std::int64_t output, std::int64_t t) const {
    if (output < residuals) return residual + (n * residuals + output) * times + t;
    return skip + (n * skips + output - residuals) * times + t;
  }
};

template <typename T>
void add_to(T* to, const T* from, std::int64_t count) {
  std::transform(to, to + count, from, to, std::plus<T>());
}

// `size` sums over all blocks. Each run of blocks has its own: the total does not depend on which thread had which run.
class CausalConv1dSums {
 public:
  CausalConv1dSums(std::int64_t runs, std::int64_t size) : size_(size), begun_(runs), sums_(new double[runs * size]) {}

  // Adds the terms of a block.
  template <typename T>
  void add(std::int64_t run, const T* terms) {
    double* sums = sums_.get() + run * size_;
    if (begun_[run]) {
      for (std::int64_t i = 0; i < size_; ++i) sums[i] += terms[i];
    } else {
      std::copy_n(terms, size_, sums);
      begun_[run] = 1;
    }
  }

  // Adds one term; the others are zero where there is none before.
  void add(std::int64_t run, std::int64_t place, double term) {
    double* sums = sums_.get() + run * size_;
    if (!begun_[run]) std::fill_n(sums, size_, 0.0);
    begun_[run] = 1;
    sums[place] += term;
  }

  std::vector<double> total() const {
    std::vector<double> all(size_);
    for (std::size_t run = 0; run < begun_.size(); ++run) {
      const double* sums = sums_.get() + run * size_;
      for (std::int64_t i = 0; i < size_ && begun_[run]; ++i) all[i] += sums[i];
    }
    return all;
  }

  // Of rows of `length` sums: the total over the rows.
  static std::vector<double> over_rows(const std::vector<double>& all, std::int64_t length) {
    std::vector<double> total(length);
    for (std::size_t i = 0; i < all.size(); ++i) total[i % length] += all[i];
    return total;
  }

 private:
  std::int64_t size_;
  std::vector<char> begun_;  // of the runs
  std::unique_ptr<double[]> sums_;
};

}  // namespace fastgen
