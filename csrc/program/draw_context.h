// One draw in progress, and the arithmetic that the heads share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/philox.h"
#include "program/exp_weights.h"
#include "program/heads.h"

namespace fastgen {

// Channels are counted from the draw's first.
struct DrawContext {
  const HeadSpec& spec;
  const DrawArguments& arguments;

  double uniform(int channel, std::uint32_t draw) const {
    return philox_uniform(arguments.seed, arguments.sample, arguments.position,
                          static_cast<std::uint32_t>(arguments.channel0 + channel), draw);
  }
  bool known(int channel) const { return arguments.known != nullptr && arguments.known[channel * arguments.known_stride] != 0; }
  float& level(int channel) const { return arguments.levels[channel * arguments.level_stride]; }
  void set_input(int channel, float raw) const {
    const float value = level(channel);
    if (spec.feed_raw && !known(channel)) {
      arguments.inputs[channel] = raw;
    } else {
      arguments.inputs[channel] = spec.inputs.empty() ? value : spec.inputs[static_cast<std::size_t>(value)];
    }
  }
  void score(double log_prob) const {
    if (arguments.log_prob != nullptr) *arguments.log_prob += log_prob;
  }
  void score_proposal(double log_prob) const {
    if (arguments.proposal_log_prob != nullptr) *arguments.proposal_log_prob += log_prob;
  }
};

// The heads of continuous values. `scratch` has three doubles for each component.
DrawStatus draw_continuous_mixture(const DrawContext& context, double* scratch);
DrawStatus draw_bivariate_gaussian_mixture(const DrawContext& context, double* scratch);

inline double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

// Sixteen running maxima, so that the compiler vectorises: taken one after another they would wait for each other.
template <typename T>
double maximum(const T* x, int count) {
  constexpr int kLanes = 16;
  T tops[kLanes];
  std::fill_n(tops, kLanes, -std::numeric_limits<T>::infinity());
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) tops[j] = x[i + j] > tops[j] ? x[i + j] : tops[j];
  }
  for (int j = 0; i + j < count; ++j) tops[j] = x[i + j] > tops[j] ? x[i + j] : tops[j];
  return *std::max_element(tops, tops + kLanes);
}

inline double log_sum_exp(const double* x, int count) {
  const double top = maximum(x, count);
  if (!std::isfinite(top)) return top;
  double total = 0;
  for (int i = 0; i < count; ++i) total += std::exp(x[i] - top);
  return top + std::log(total);
}

inline int draw_from_logits(const double* logits, int count, double uniform, double* weights) {
  const double total = exp_weights(logits, count, maximum(logits, count), weights);
  return inverse_cdf(weights, count, total, uniform);
}

}  // namespace fastgen
