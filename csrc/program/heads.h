// Heads: draw the elements of one position from the network's output, and score them. The same arithmetic, in double,
// as fastgen/generate/heads (which documents the distributions and the rules of the draw).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastgen {

enum class HeadKind {
  bernoulli,
  categorical,
  discretized_logistic_mixture,
  gaussian,
  logistic_mixture,
  bivariate_gaussian_mixture,
  composite,  // its parts draw, one after the other
  custom,     // Python draws
};

struct HeadSpec {
  HeadKind kind = HeadKind::categorical;
  int levels = 0;               // 0: a continuous head, whose "levels" are the values themselves
  int mixtures = 1;
  int coupled_channels = 1;     // channels that share one group of parameters; 0: all channels of the draw
  bool feed_raw = false;        // inputs and later channels see the draw before rounding; its scores are NaN
  double min_log_scale = -7.0;
  std::vector<float> inputs;    // [levels] the input value of a level; empty: the value itself
  int parameters = 0;           // of a position, for a custom head
  std::vector<HeadSpec> parts;  // of a composite head; each draws as many channels as it couples
};

// How many parameters a draw of `channels` channels reads, all groups together; 0 where the head cannot draw so many.
int parameter_count(const HeadSpec& spec, int channels);

// Whether a number is a level of the head, or a value that it can draw; `channel` counts from the event's first.
bool is_level(const HeadSpec& spec, int channel, float level);

// What the network reads of a level.
float input_of(const HeadSpec& spec, int channel, float level);

// How many doubles of scratch a draw of `channels` channels needs.
std::size_t draw_scratch_size(const HeadSpec& spec, int channels);

struct DrawArguments {
  const float* parameters = nullptr;    // [groups, parameters of a group]
  std::uint64_t seed = 0;
  std::uint64_t sample = 0;
  std::uint64_t position = 0;           // natural position, from the beginning of the event
  int channel0 = 0;
  int channels = 1;
  float* levels = nullptr;              // in where known, else out: channel channel0 + i at [i * level_stride]
  std::ptrdiff_t level_stride = 1;
  const std::uint8_t* known = nullptr;  // null: nothing is known; strided like levels
  std::ptrdiff_t known_stride = 1;
  float* inputs = nullptr;              // [channels], out: the input values
  double temperature = 1.0;
  int top_k = 0;                        // 0: off
  double top_p = 1.0;
  double* log_prob = nullptr;           // null: not wanted; otherwise added to
  double* proposal_log_prob = nullptr;  // null: not wanted; otherwise added to
};

enum class DrawStatus {
  ok = 0,
  not_a_number = 1,  // a parameter is NaN, or they make no distribution (all logits -inf, or one +inf)
  bad_level = 2,     // a known level is no whole number in 0 .. levels - 1, or a known value is not finite
  in_python = 3,     // a custom head: it is not drawn here
};

// What to tell the user of a status: "the network's output is NaN" and the like, without the position.
const char* draw_status_text(DrawStatus status);

// Draws every element that is not known and scores what is asked for. Reads and writes nothing but what the arguments
// name; allocates nothing. When the status is not ok, the outputs are unspecified.
DrawStatus draw(const HeadSpec& spec, const DrawArguments& arguments, double* scratch);

}  // namespace fastgen
