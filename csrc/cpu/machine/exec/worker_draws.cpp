// The draws of a worker: elements are drawn, scored or taken as known, and their inputs written.
#include <algorithm>

#include "common/check.h"
#include "cpu/machine/exec/worker.h"

namespace fastgen {
namespace {

constexpr int kLinesAtDraw = 32;  // of the first weights
constexpr std::int64_t kWorkOfParameter = 64;

}  // namespace

template <typename Function>
void Worker::each_draw(std::int64_t t, Function function) {
  const auto earlier = [](const Once& once, std::int64_t step) { return once.step < step; };
  auto once = std::lower_bound(plan_.draws_once.begin(), plan_.draws_once.end(), t, earlier);
  auto often = plan_.draws_often.begin();
  const auto at_step = [&](int number) {
    draw_cells_.clear();
    plan_.draws[number].domain.cells_at(t, draw_cells_);
    for (Cell cell : draw_cells_) function(plan_.draws[number], cell);
  };
  for (;;) {
    const bool has_once = once != plan_.draws_once.end() && once->step == t, has_often = often != plan_.draws_often.end();
    if (has_once && (!has_often || once->number < *often)) {
      at_step(once++->number);
    } else if (has_often) {
      at_step(*often++);
    } else {
      return;
    }
  }
}

void Worker::draw_step(std::int64_t t, Span samples, const GenerationBatch& run, bool inputs_written) {
  each_draw(t, [&](const PlannedDraw& draw, Cell cell) { draw_cell(draw, cell, t, samples, run, inputs_written); });
}

void Worker::draw_cell(const PlannedDraw& planned, Cell cell, std::int64_t t, Span samples, const GenerationBatch& run,
                       bool inputs_written) {
  const std::int64_t position = position_of(planned.map, cell), place = position - run.position0;
  if (place < 0 || place >= run.positions) {
    failure_.report(t, text("levels holds the positions ", run.position0, " .. ", run.position0 + run.positions - 1, "; step ", t,
                            " draws position ", position));
    return;
  }
  resolve(planned.operands.data(), planned.operands.size(), cell, run, t, addresses_.data());
  if (run.draw_position) {
    draw_in_python(planned, position, t, samples, run, inputs_written);
    return;
  }
  float* inputs = reinterpret_cast<float*>(values_.data());
  DrawArguments arguments;
  arguments.seed = run.seed;
  arguments.position = static_cast<std::uint64_t>(position);
  arguments.channel0 = static_cast<int>(planned.channel0);
  arguments.channels = static_cast<int>(planned.channels);
  arguments.level_stride = run.positions;
  arguments.known_stride = run.positions;
  arguments.inputs = inputs;
  arguments.temperature = run.temperature;
  arguments.top_k = run.top_k;
  arguments.top_p = run.top_p;
  for (std::int64_t b = samples.begin; b < samples.end; ++b) {
    if (!goes_on(kWorkOfParameter * planned.count, t)) return;
    arguments.parameters = addresses_[0].base + b * addresses_[0].sample_stride;
    if (!planned.in_place) {
      float* to = reinterpret_cast<float*>(parameters_.data());
      arguments.parameters = to;
      for (int i = 0; i < planned.parameters; ++i) {
        const Address& from = addresses_[i];
        kernels_.gather(to, from.base + b * from.sample_stride, from.channel_stride, planned.operands[i].length);
        to += planned.operands[i].length;
      }
    }
    if (run.parameters) keep_parameters(planned, place, b, run);
    const std::int64_t element = (b * run.channels + planned.channel0) * run.positions + place;
    arguments.sample = static_cast<std::uint64_t>(run.samples[b]);
    arguments.levels = run.levels + element;
    arguments.known = run.known ? run.known + element : nullptr;
    arguments.log_prob = run.log_prob ? run.log_prob + b : nullptr;
    arguments.proposal_log_prob = run.proposal_log_prob ? run.proposal_log_prob + b : nullptr;
    if (samples.end - samples.begin == 1) {  // the next step begins with the first weights
      ahead_ = weights_.begin();
      look_ahead(kLinesAtDraw);
    }
    const DrawStatus status = draw(head_, arguments, reinterpret_cast<double*>(scratch_.data()));
    if (status != DrawStatus::ok) {
      report_status(status, t, position, b);
      return;
    }
    for (std::int64_t channel = 0; channel < planned.channels && !inputs_written; ++channel) {
      const Address& to = addresses_[planned.parameters + channel];
      if (to.base) to.base[b * to.sample_stride] = inputs[channel];
    }
  }
}

// A head in Python draws for the whole batch at once, which is given to one worker.
void Worker::draw_in_python(const PlannedDraw& planned, std::int64_t position, std::int64_t t, Span samples,
                            const GenerationBatch& run, bool inputs_written) {
  if (samples.begin == samples.end || !goes_on(kWorkOfParameter * planned.count * run.batch, t)) return;
  batch_parameters_.resize(static_cast<std::size_t>(run.batch * planned.count));
  batch_inputs_.resize(static_cast<std::size_t>(run.batch * planned.channels));
  float* to = batch_parameters_.data();
  for (std::int64_t b = 0; b < run.batch; ++b) {
    for (int i = 0; i < planned.parameters; ++i) {
      const Address& from = addresses_[i];
      kernels_.gather(to, from.base + b * from.sample_stride, from.channel_stride, planned.operands[i].length);
      to += planned.operands[i].length;
    }
    if (run.parameters) keep_parameters(planned, position - run.position0, b, run);
  }
  run.draw_position(
      {batch_parameters_.data(), planned.count, position, planned.channel0, planned.channels, batch_inputs_.data()});
  for (std::int64_t channel = 0; channel < planned.channels && !inputs_written; ++channel) {
    const Address& input = addresses_[planned.parameters + channel];
    for (std::int64_t b = 0; b < run.batch && input.base; ++b) {
      input.base[b * input.sample_stride] = batch_inputs_[static_cast<std::size_t>(b * planned.channels + channel)];
    }
  }
}

// Each drawn channel has an equal part of the parameters.
void Worker::keep_parameters(const PlannedDraw& planned, std::int64_t place, std::int64_t b, const GenerationBatch& run) {
  std::int64_t read = 0;
  for (int i = 0; i < planned.parameters; ++i) read += planned.operands[i].length;
  float* to =
      run.parameters + (b * run.positions + place) * run.position_parameters + planned.channel0 * (read / planned.channels);
  for (int i = 0; i < planned.parameters; ++i) {
    const Address& from = addresses_[i];
    kernels_.gather(to, from.base + b * from.sample_stride, from.channel_stride, planned.operands[i].length);
    to += planned.operands[i].length;
  }
}

template <typename Function>
void Worker::each_known(std::int64_t t, Span samples, const GenerationBatch& run, Function function) {
  each_draw(t, [&](const PlannedDraw& planned, Cell cell) {
    const std::int64_t position = position_of(planned.map, cell), place = position - run.position0;
    if (place < 0 || place >= run.positions) return;  // draw_step reports it
    resolve(planned.operands.data() + planned.parameters, planned.channels, cell, run, t, addresses_.data());
    for (std::int64_t b = samples.begin; b < samples.end; ++b) {
      for (std::int64_t i = 0; i < planned.channels; ++i) {
        const std::int64_t channel = planned.channel0 + i;
        function(b, channel, position, (b * run.channels + channel) * run.positions + place, addresses_[i]);
      }
    }
  });
}

void Worker::check_known(std::int64_t t, Span samples, const GenerationBatch& run) {
  each_known(t, samples, run,
             [&](std::int64_t b, std::int64_t channel, std::int64_t position, std::int64_t element, const Address&) {
               if (!run.known || !run.known[element]) {
                 failure_.report(t, text("known is False for position ", position, ", channel ", channel, ", of item ", b,
                                         " of the batch; absorb needs all elements of its steps known"));
               }
             });
}

void Worker::write_known(std::int64_t t, Span samples, const GenerationBatch& run) {
  each_known(t, samples, run,
             [&](std::int64_t b, std::int64_t channel, std::int64_t position, std::int64_t element, const Address& to) {
               const int number = static_cast<int>(channel);
               const float level = run.levels[element];
               if (!is_level(head_, number, level)) {
                 report_status(DrawStatus::bad_level, t, position, b);
               } else if (to.base) {
                 to.base[b * to.sample_stride] = input_of(head_, number, level);
               }
             });
}

void Worker::report_status(DrawStatus status, std::int64_t step, std::int64_t position, std::int64_t b) {
  failure_.report(step, text(draw_status_text(status), ", at position ", position, " of item ", b, " of the batch"));
}

}  // namespace fastgen
