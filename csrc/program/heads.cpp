#include "program/heads.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "program/draw_context.h"
#include "program/exp_weights.h"

namespace fastgen {
namespace {

constexpr double kMargin = 1e-5;

// By their bits, which compilers vectorise.
bool any_nan(const float* x, int count) {
  std::uint32_t found = 0;
  for (int i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    found |= 0x7F800000u - (bits & 0x7FFFFFFFu);  // negative for NaN alone
  }
  return found >> 31 != 0;
}

double to_symmetric(double level, int levels) { return level * 2 / (levels - 1) - 1; }

double to_level(double x, int levels) { return std::nearbyint((x + 1) / 2 * (levels - 1)); }

// log(1 - exp(-d)) of log d; the series is right to 1e-15 below 1e-3.
double log1mexp(double log_d) {
  const double d = std::exp(log_d);
  if (d < 1e-3) return log_d + (d / 24 - 0.5) * d;
  return std::log(-std::expm1(-d));
}

double discretized_logistic_log_prob(double level, double mean, double log_scale, int levels) {
  const double inverse_scale = std::exp(-log_scale), half_width = 1.0 / (levels - 1);
  const double centered = to_symmetric(level, levels) - mean;
  if (level == 0) return log_sigmoid((centered + half_width) * inverse_scale);
  if (level == levels - 1) return log_sigmoid((half_width - centered) * inverse_scale);
  return log_sigmoid((centered + half_width) * inverse_scale) + log_sigmoid((half_width - centered) * inverse_scale) +
         log1mexp(std::log(2 * half_width) - log_scale);
}

DrawStatus draw_bernoulli(const DrawContext& context) {
  for (int channel = 0; channel < context.arguments.channels; ++channel) {
    const double logit = context.arguments.parameters[channel], altered = logit / context.arguments.temperature;
    const bool known = context.known(channel);
    if (!known) context.level(channel) = context.uniform(channel, 0) < 1 / (1 + std::exp(-altered)) ? 1.0f : 0.0f;
    const double sign = context.level(channel) == 1.0f ? 1.0 : -1.0;
    context.set_input(channel, 0);
    if (context.arguments.log_prob != nullptr) context.score(log_sigmoid(sign * logit));
    if (context.arguments.proposal_log_prob != nullptr && !known) context.score_proposal(log_sigmoid(sign * altered));
  }
  return DrawStatus::ok;
}

// Zeroes the weights that top-k and top-p leave out; of equal levels the lower ones stay. `order` has `count` entries.
void truncate(double* weights, const double* logits, int count, int top_k, double top_p, std::uint32_t* order) {
  for (int i = 0; i < count; ++i) order[i] = static_cast<std::uint32_t>(i);
  const auto before = [logits](std::uint32_t a, std::uint32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  int kept = count;
  if (top_k > 0 && top_k < count) {
    std::nth_element(order, order + top_k - 1, order + count, before);
    kept = top_k;
    for (int i = kept; i < count; ++i) weights[order[i]] = 0;
  }
  if (top_p < 1) {
    std::sort(order, order + kept, before);
    double total = 0, mass = 0;
    for (int i = 0; i < kept; ++i) total += weights[order[i]];
    int nucleus = 0;
    while (nucleus < kept && mass < top_p * total) mass += weights[order[nucleus++]];
    for (int i = nucleus; i < kept; ++i) weights[order[i]] = 0;
  }
}

DrawStatus draw_categorical(const DrawContext& context, double* scratch) {
  const DrawArguments& arguments = context.arguments;
  const int levels = context.spec.levels;
  const double temperature = arguments.temperature;
  double *logits = scratch, *weights = scratch + levels;
  auto* order = reinterpret_cast<std::uint32_t*>(scratch + 2 * levels);
  for (int channel = 0; channel < arguments.channels; ++channel) {
    const float* parameters = arguments.parameters + static_cast<std::ptrdiff_t>(channel) * levels;
    const bool known = context.known(channel), score = arguments.log_prob != nullptr;
    const bool score_proposal = arguments.proposal_log_prob != nullptr && !known;
    const double top = maximum(parameters, levels);
    if (!std::isfinite(top)) return DrawStatus::not_a_number;
    double log_total = 0;  // of the model, at temperature 1
    if (score) {
      for (int i = 0; i < levels; ++i) logits[i] = parameters[i];
      log_total = std::log(exp_weights(logits, levels, top, weights));
    }
    if (!known) {
      for (int i = 0; i < levels; ++i) logits[i] = parameters[i] / temperature;
      double total = exp_weights(logits, levels, top / temperature, weights);
      if (arguments.top_k > 0 || arguments.top_p < 1) {
        truncate(weights, logits, levels, arguments.top_k, arguments.top_p, order);
        total = sum_weights(weights, levels);
      }
      const int level = inverse_cdf(weights, levels, total, context.uniform(channel, 0));
      context.level(channel) = static_cast<float>(level);
      if (score_proposal) context.score_proposal(std::log(weights[level] / total));
    }
    context.set_input(channel, 0);
    if (score) context.score(parameters[static_cast<int>(context.level(channel))] - top - log_total);
  }
  return DrawStatus::ok;
}

// One group of a discretized logistic mixture: `channels` coupled channels from `first` on.
DrawStatus draw_mixture(const DrawContext& context, const float* parameters, int first, int channels, double* scratch) {
  const DrawArguments& arguments = context.arguments;
  const int mixtures = context.spec.mixtures, levels = context.spec.levels;
  double *proposal = scratch, *model = proposal + mixtures, *weights = model + mixtures;
  const double log_temperature = std::log(arguments.temperature);
  const bool scorable = !context.spec.feed_raw;
  const bool score = scorable && arguments.log_prob != nullptr;
  const bool score_proposal = scorable && arguments.proposal_log_prob != nullptr;
  if (!scorable) {
    context.score(std::numeric_limits<double>::quiet_NaN());
    context.score_proposal(std::numeric_limits<double>::quiet_NaN());
  }
  for (int m = 0; m < mixtures; ++m) {
    model[m] = parameters[m];
    proposal[m] = parameters[m] / arguments.temperature;
  }
  if (!std::isfinite(maximum(model, mixtures))) return DrawStatus::not_a_number;
  const double log_total = score ? log_sum_exp(model, mixtures) : 0;

  const int blocks = channels > 1 ? 3 : 2;
  const auto block = [&](int channel, int index) { return parameters + mixtures * (1 + blocks * channel + index); };
  double seen[3] = {0, 0, 0};
  const auto mean = [&](int channel, int m) {
    double shifted = block(channel, 0)[m];
    for (int earlier = 0; earlier < channel; ++earlier) {
      const int row = channel * (channel - 1) / 2 + earlier;
      shifted += std::tanh(static_cast<double>(block(row, 2)[m])) * seen[earlier];
    }
    return shifted;
  };
  const auto log_scale = [&](int channel, int m) {
    return std::max(static_cast<double>(block(channel, 1)[m]), context.spec.min_log_scale);
  };

  int component = 0;
  for (int channel = 0; channel < channels; ++channel) {
    const int at = first + channel;
    const bool known = context.known(at);
    float raw = 0;
    if (!known) {
      if (channel == 0 || context.known(at - 1)) {
        component = draw_from_logits(proposal, mixtures, context.uniform(at, 0), weights);
      }
      const double place = kMargin + context.uniform(at, 1) * (1 - 2 * kMargin);
      const double logistic = std::log(place) - std::log1p(-place);
      const double x = mean(channel, component) + std::exp(log_scale(channel, component) + log_temperature) * logistic;
      if (std::isnan(x)) return DrawStatus::not_a_number;
      raw = static_cast<float>(std::min(std::max(x, -1.0), 1.0));
      context.level(at) = static_cast<float>(to_level(raw, levels));
    }
    const double level = context.level(at);
    context.set_input(at, raw);

    // Later components are drawn given this channel where it is known and one that is not known follows.
    bool reweight = score_proposal;
    for (int later = at + 1; later < first + channels; ++later) {
      reweight |= context.known(later - 1) && !context.known(later);
    }
    const double before = score_proposal && !known ? log_sum_exp(proposal, mixtures) : 0;
    if (reweight || score) {
      for (int m = 0; m < mixtures; ++m) {
        const double shifted = mean(channel, m), scale = log_scale(channel, m);
        if (reweight) proposal[m] += discretized_logistic_log_prob(level, shifted, scale + log_temperature, levels);
        if (score) model[m] += discretized_logistic_log_prob(level, shifted, scale, levels);
      }
    }
    if (score_proposal && !known) context.score_proposal(log_sum_exp(proposal, mixtures) - before);
    seen[channel] = context.spec.feed_raw && !known ? raw : to_symmetric(level, levels);
  }
  if (score) context.score(log_sum_exp(model, mixtures) - log_total);
  return DrawStatus::ok;
}

int coupled_channels(const HeadSpec& spec, int channels) { return spec.coupled_channels > 0 ? spec.coupled_channels : channels; }

std::int64_t parameters_per_group(const HeadSpec& spec, int coupled) {
  const std::int64_t mixtures = spec.mixtures;
  switch (spec.kind) {
    case HeadKind::bernoulli: return 1;
    case HeadKind::categorical: return spec.levels;
    case HeadKind::gaussian: return mixtures == 1 ? 2 : 3 * mixtures;
    case HeadKind::logistic_mixture: return 3 * mixtures;
    case HeadKind::bivariate_gaussian_mixture: return coupled == 2 ? 6 * mixtures : 0;
    case HeadKind::discretized_logistic_mixture: return coupled == 1 ? 3 * mixtures : coupled == 3 ? 10 * mixtures : 0;
    case HeadKind::custom: return spec.parameters;
    case HeadKind::composite: break;
  }
  std::int64_t total = 0;
  for (const HeadSpec& part : spec.parts) total += parameters_per_group(part, part.coupled_channels);
  return total;
}

DrawStatus draw_composite(const HeadSpec& spec, const DrawArguments& arguments, double* scratch) {
  DrawArguments own = arguments;
  for (const HeadSpec& part : spec.parts) {
    own.channels = part.coupled_channels;
    const DrawStatus status = draw(part, own, scratch);
    if (status != DrawStatus::ok) return status;
    own.parameters += parameters_per_group(part, part.coupled_channels);
    own.channel0 += own.channels;
    own.levels += own.channels * own.level_stride;
    if (own.known != nullptr) own.known += own.channels * own.known_stride;
    own.inputs += own.channels;
  }
  return DrawStatus::ok;
}

// The head that draws a channel of the event.
const HeadSpec& head_of(const HeadSpec& spec, int channel) {
  for (const HeadSpec& part : spec.parts) {
    if (channel < part.coupled_channels) return part;
    channel -= part.coupled_channels;
  }
  return spec;
}

}  // namespace

int parameter_count(const HeadSpec& spec, int channels) {
  const int coupled = coupled_channels(spec, channels);
  if (channels < 1 || channels % coupled != 0) return 0;
  const bool at_once = spec.kind == HeadKind::composite || spec.kind == HeadKind::custom;
  if (at_once && channels != coupled) return 0;
  const std::int64_t count = channels / coupled * parameters_per_group(spec, coupled);
  return count <= std::numeric_limits<int>::max() ? static_cast<int>(count) : 0;
}

bool is_level(const HeadSpec& spec, int channel, float level) {
  const int levels = head_of(spec, channel).levels;
  if (levels == 0) return std::isfinite(level);
  return level >= 0 && level < static_cast<float>(levels) && level == std::floor(level);
}

float input_of(const HeadSpec& spec, int channel, float level) {
  const std::vector<float>& inputs = head_of(spec, channel).inputs;
  return inputs.empty() ? level : inputs[static_cast<std::size_t>(level)];
}

std::size_t draw_scratch_size(const HeadSpec& spec, int channels) {
  std::size_t size = 3 * static_cast<std::size_t>(spec.kind == HeadKind::categorical ? spec.levels : spec.mixtures);
  for (const HeadSpec& part : spec.parts) size = std::max(size, draw_scratch_size(part, channels));
  return size;
}

const char* draw_status_text(DrawStatus status) {
  switch (status) {
    case DrawStatus::ok: return "ok";
    case DrawStatus::not_a_number: return "the network's output is NaN, or makes no distribution";
    case DrawStatus::bad_level: return "a known level is not one of the head's";
    case DrawStatus::in_python: return "a custom head draws in Python";
  }
  return "unknown";
}

DrawStatus draw(const HeadSpec& spec, const DrawArguments& arguments, double* scratch) {
  if (spec.kind == HeadKind::composite) return draw_composite(spec, arguments, scratch);
  const DrawContext context{spec, arguments};
  const int channels = arguments.channels;
  if (any_nan(arguments.parameters, parameter_count(spec, channels))) return DrawStatus::not_a_number;
  for (int channel = 0; channel < channels; ++channel) {
    if (context.known(channel) && !is_level(spec, channel, context.level(channel))) return DrawStatus::bad_level;
  }
  switch (spec.kind) {
    case HeadKind::bernoulli: return draw_bernoulli(context);
    case HeadKind::categorical: return draw_categorical(context, scratch);
    case HeadKind::gaussian:
    case HeadKind::logistic_mixture: return draw_continuous_mixture(context, scratch);
    case HeadKind::bivariate_gaussian_mixture: return draw_bivariate_gaussian_mixture(context, scratch);
    case HeadKind::custom: return DrawStatus::in_python;
    case HeadKind::composite:
    case HeadKind::discretized_logistic_mixture: break;
  }
  const int coupled = coupled_channels(spec, channels);
  const std::int64_t count = parameters_per_group(spec, coupled);
  for (int first = 0; first < channels; first += coupled) {
    const float* parameters = arguments.parameters + static_cast<std::ptrdiff_t>(first / coupled) * count;
    const DrawStatus status = draw_mixture(context, parameters, first, coupled, scratch);
    if (status != DrawStatus::ok) return status;
  }
  return DrawStatus::ok;
}

}  // namespace fastgen
