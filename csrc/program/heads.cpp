#include "program/heads.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/philox.h"
#include "program/exp_weights.h"

namespace fastgen {
namespace {

constexpr double kMargin = 1e-5;
constexpr double kPi = 3.14159265358979323846;

double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

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

double log_sum_exp(const double* x, int count) {
  const double top = maximum(x, count);
  if (!std::isfinite(top)) return top;
  double total = 0;
  for (int i = 0; i < count; ++i) total += std::exp(x[i] - top);
  return top + std::log(total);
}

int draw_from_logits(const double* logits, int count, double uniform, double* weights) {
  const double total = exp_weights(logits, count, maximum(logits, count), weights);
  return inverse_cdf(weights, count, total, uniform);
}

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

// One draw in progress: the channel is counted from the draw's first.
struct Context {
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

DrawStatus draw_bernoulli(const Context& context) {
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

DrawStatus draw_categorical(const Context& context, double* scratch) {
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
DrawStatus draw_mixture(const Context& context, const float* parameters, int first, int channels, double* scratch) {
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

DrawStatus draw_gaussian(const Context& context, double* scratch) {
  const DrawArguments& arguments = context.arguments;
  const int mixtures = context.spec.mixtures;
  const double log_temperature = std::log(arguments.temperature);
  for (int channel = 0; channel < arguments.channels; ++channel) {
    const int count = mixtures == 1 ? 2 : 3 * mixtures;
    const float* means = arguments.parameters + channel * count + (mixtures == 1 ? 0 : mixtures);
    const float* log_scales = means + mixtures;
    double *logits = scratch, *altered = logits + mixtures, *joint = altered + mixtures;
    for (int m = 0; m < mixtures; ++m) {
      logits[m] = mixtures == 1 ? 0.0 : arguments.parameters[channel * count + m];
      altered[m] = logits[m] / arguments.temperature;
    }
    if (!std::isfinite(maximum(logits, mixtures))) return DrawStatus::not_a_number;
    const auto log_scale = [&](int m) { return std::max(static_cast<double>(log_scales[m]), context.spec.min_log_scale); };
    const bool known = context.known(channel);
    if (!known) {
      const int m = draw_from_logits(altered, mixtures, context.uniform(channel, 0), joint);
      const double normal =
          std::sqrt(-2 * std::log(context.uniform(channel, 1))) * std::cos(2 * kPi * context.uniform(channel, 2));
      context.level(channel) = static_cast<float>(means[m] + std::exp(log_scale(m) + log_temperature) * normal);
    }
    if (!std::isfinite(context.level(channel))) return DrawStatus::not_a_number;
    context.set_input(channel, 0);
    const double value = context.level(channel);
    const auto log_density = [&](const double* mixture, double log_factor) {
      for (int m = 0; m < mixtures; ++m) {
        const double scale = log_scale(m) + log_factor, standard = (value - means[m]) * std::exp(-scale);
        joint[m] = mixture[m] - 0.5 * standard * standard - scale - 0.5 * std::log(2 * kPi);
      }
      return log_sum_exp(joint, mixtures) - log_sum_exp(mixture, mixtures);
    };
    if (arguments.log_prob != nullptr) context.score(log_density(logits, 0));
    if (arguments.proposal_log_prob != nullptr && !known) context.score_proposal(log_density(altered, log_temperature));
  }
  return DrawStatus::ok;
}

int coupled_channels(const HeadSpec& spec, int channels) { return spec.coupled_channels > 0 ? spec.coupled_channels : channels; }

std::int64_t parameters_per_group(const HeadSpec& spec, int coupled) {
  switch (spec.kind) {
    case HeadKind::bernoulli: return 1;
    case HeadKind::categorical: return spec.levels;
    case HeadKind::gaussian: return spec.mixtures == 1 ? 2 : std::int64_t{3} * spec.mixtures;
    case HeadKind::discretized_logistic_mixture:
      return coupled == 1 ? std::int64_t{3} * spec.mixtures : coupled == 3 ? std::int64_t{10} * spec.mixtures : 0;
  }
  return 0;
}

}  // namespace

int parameter_count(const HeadSpec& spec, int channels) {
  const int coupled = coupled_channels(spec, channels);
  if (channels < 1 || channels % coupled != 0) return 0;
  const std::int64_t count = channels / coupled * parameters_per_group(spec, coupled);
  return count <= std::numeric_limits<int>::max() ? static_cast<int>(count) : 0;
}

std::size_t draw_scratch_size(const HeadSpec& spec, int) {
  const std::size_t size = spec.kind == HeadKind::categorical ? spec.levels : spec.mixtures;
  return 3 * size;
}

const char* draw_status_text(DrawStatus status) {
  switch (status) {
    case DrawStatus::ok: return "ok";
    case DrawStatus::not_a_number: return "the network's output is NaN, or makes no distribution";
    case DrawStatus::bad_level: return "a known level is not one of the head's";
  }
  return "unknown";
}

DrawStatus draw(const HeadSpec& spec, const DrawArguments& arguments, double* scratch) {
  const Context context{spec, arguments};
  const int channels = arguments.channels;
  if (any_nan(arguments.parameters, parameter_count(spec, channels))) return DrawStatus::not_a_number;
  for (int channel = 0; channel < channels; ++channel) {
    if (!context.known(channel)) continue;
    const float level = context.level(channel);
    const bool whole = level >= 0 && level < static_cast<float>(spec.levels) && level == std::floor(level);
    if (spec.levels > 0 ? !whole : !std::isfinite(level)) return DrawStatus::bad_level;
  }
  switch (spec.kind) {
    case HeadKind::bernoulli: return draw_bernoulli(context);
    case HeadKind::categorical: return draw_categorical(context, scratch);
    case HeadKind::gaussian: return draw_gaussian(context, scratch);
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
