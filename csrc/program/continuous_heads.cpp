// The draws of heads whose values are continuous.
#include <algorithm>
#include <cmath>

#include "program/draw_context.h"

namespace fastgen {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kMostArctanh = 7.0;  // of correlations

double draw_normal(const DrawContext& context, int channel) {
  return std::sqrt(-2 * std::log(context.uniform(channel, 1))) * std::cos(2 * kPi * context.uniform(channel, 2));
}

double draw_logistic(const DrawContext& context, int channel) {
  const double uniform = context.uniform(channel, 1);
  return std::log(uniform) - std::log1p(-uniform);
}

double normal_log_density(double z) { return -0.5 * z * z - 0.5 * std::log(2 * kPi); }

double logistic_log_density(double z) { return log_sigmoid(z) + log_sigmoid(-z); }

// One pair of channels, from `first` on.
DrawStatus draw_pair(const DrawContext& context, const float* parameters, int first, double* scratch) {
  const DrawArguments& arguments = context.arguments;
  const int mixtures = context.spec.mixtures;
  const double log_temperature = std::log(arguments.temperature);
  double *model = scratch, *altered = model + mixtures, *weights = altered + mixtures;
  for (int m = 0; m < mixtures; ++m) {
    model[m] = parameters[m];
    altered[m] = model[m] / arguments.temperature;
  }
  if (!std::isfinite(maximum(model, mixtures))) return DrawStatus::not_a_number;
  const bool score = arguments.log_prob != nullptr, score_proposal = arguments.proposal_log_prob != nullptr;
  const double log_total = score ? log_sum_exp(model, mixtures) : 0;
  // In component m: the standardised level of a channel, and mean and log-scale of the standardised x, or of y given x.
  const auto parameter = [&](int block, int m) { return static_cast<double>(parameters[block * mixtures + m]); };
  const auto log_scale = [&](int channel, int m) { return std::max(parameter(3 + channel, m), context.spec.min_log_scale); };
  const auto standard = [&](int channel, int m, double log_factor) {
    return (context.level(first + channel) - parameter(1 + channel, m)) * std::exp(-(log_scale(channel, m) + log_factor));
  };
  const auto correlated = [&](int m) { return std::clamp(parameter(5, m), -kMostArctanh, kMostArctanh); };
  const auto shift = [&](int channel, int m, double log_factor) {
    return channel == 0 ? 0.0 : std::tanh(correlated(m)) * standard(0, m, log_factor);
  };
  const auto log_spread = [&](int channel, int m) { return channel == 0 ? 0.0 : -std::log(std::cosh(correlated(m))); };
  const auto log_density = [&](int channel, int m, double log_factor) {
    const double spread = log_spread(channel, m);
    const double z = (standard(channel, m, log_factor) - shift(channel, m, log_factor)) * std::exp(-spread);
    return normal_log_density(z) - spread - (log_scale(channel, m) + log_factor);
  };
  int drawn = 0;
  for (int channel = 0; channel < 2; ++channel) {
    const int at = first + channel;
    const bool known = context.known(at);
    if (!known) {
      if (channel == 0 || context.known(first)) {
        drawn = draw_from_logits(altered, mixtures, context.uniform(at, 0), weights);
      }
      const double unit = std::exp(log_scale(channel, drawn) + log_temperature);
      const double z = shift(channel, drawn, log_temperature) + std::exp(log_spread(channel, drawn)) * draw_normal(context, at);
      context.level(at) = static_cast<float>(parameter(1 + channel, drawn) + unit * z);
    }
    if (!std::isfinite(context.level(at))) return DrawStatus::not_a_number;
    context.set_input(at, 0);
    const double before = score_proposal && !known ? log_sum_exp(altered, mixtures) : 0;
    const bool reweight = score_proposal || (channel == 0 && known);
    for (int m = 0; m < mixtures && (reweight || score); ++m) {
      if (reweight) altered[m] += log_density(channel, m, log_temperature);
      if (score) model[m] += log_density(channel, m, 0);
    }
    if (score_proposal && !known) context.score_proposal(log_sum_exp(altered, mixtures) - before);
  }
  if (score) context.score(log_sum_exp(model, mixtures) - log_total);
  return DrawStatus::ok;
}

}  // namespace

DrawStatus draw_continuous_mixture(const DrawContext& context, double* scratch) {
  const DrawArguments& arguments = context.arguments;
  const bool gaussian = context.spec.kind == HeadKind::gaussian;
  const int mixtures = context.spec.mixtures;
  const bool alone = gaussian && mixtures == 1;  // one component needs no logit
  const int count = alone ? 2 : 3 * mixtures;
  const double log_temperature = std::log(arguments.temperature);
  double *logits = scratch, *altered = logits + mixtures, *joint = altered + mixtures;
  for (int channel = 0; channel < arguments.channels; ++channel) {
    const float* parameters = arguments.parameters + channel * count;
    const float *means = parameters + (alone ? 0 : mixtures), *log_scales = means + mixtures;
    for (int m = 0; m < mixtures; ++m) {
      logits[m] = alone ? 0.0 : parameters[m];
      altered[m] = logits[m] / arguments.temperature;
    }
    if (!std::isfinite(maximum(logits, mixtures))) return DrawStatus::not_a_number;
    const auto log_scale = [&](int m) { return std::max(static_cast<double>(log_scales[m]), context.spec.min_log_scale); };
    const bool known = context.known(channel);
    if (!known) {
      const int m = draw_from_logits(altered, mixtures, context.uniform(channel, 0), joint);
      const double standard = gaussian ? draw_normal(context, channel) : draw_logistic(context, channel);
      context.level(channel) = static_cast<float>(means[m] + std::exp(log_scale(m) + log_temperature) * standard);
    }
    if (!std::isfinite(context.level(channel))) return DrawStatus::not_a_number;
    context.set_input(channel, 0);
    const double value = context.level(channel);
    const auto log_density = [&](const double* mixture, double log_factor) {
      for (int m = 0; m < mixtures; ++m) {
        const double scale = log_scale(m) + log_factor, standard = (value - means[m]) * std::exp(-scale);
        joint[m] = mixture[m] + (gaussian ? normal_log_density(standard) : logistic_log_density(standard)) - scale;
      }
      return log_sum_exp(joint, mixtures) - log_sum_exp(mixture, mixtures);
    };
    if (arguments.log_prob != nullptr) context.score(log_density(logits, 0));
    if (arguments.proposal_log_prob != nullptr && !known) context.score_proposal(log_density(altered, log_temperature));
  }
  return DrawStatus::ok;
}

DrawStatus draw_bivariate_gaussian_mixture(const DrawContext& context, double* scratch) {
  const int count = 6 * context.spec.mixtures;
  for (int first = 0; first < context.arguments.channels; first += 2) {
    const float* parameters = context.arguments.parameters + first / 2 * static_cast<std::ptrdiff_t>(count);
    const DrawStatus status = draw_pair(context, parameters, first, scratch);
    if (status != DrawStatus::ok) return status;
  }
  return DrawStatus::ok;
}

}  // namespace fastgen
