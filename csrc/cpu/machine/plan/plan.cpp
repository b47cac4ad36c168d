#include "cpu/machine/plan/plan.h"

#include <algorithm>
#include <map>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr std::int64_t kMostItems = 96;
constexpr std::int64_t kWorkOfOperation = 16;  // of a lane, in multiply-adds, about
constexpr std::int64_t kChunkFloats = 192 * 1024;  // of inputs, and of registers: they should stay in the second-level cache

// The least and greatest value of coefficient * i for begin <= i < end.
Span product_range(std::int64_t coefficient, std::int64_t begin, std::int64_t end) {
  const std::int64_t first = coefficient * begin, last = coefficient * (end - 1);
  return {std::min(first, last), std::max(first, last)};
}

// Floats before a channel, which begins one of them.
std::int64_t words_before(const Buffer& buffer, std::int64_t channel) {
  return buffer.format == Format::float32 ? channel : buffer.format == Format::bfloat16 ? channel / 2 : channel / 4;
}

// Floats from an operand's first channel to the scale of its first group, for int8.
std::int64_t scales_behind(const Program& program, std::int64_t operand) {
  const Buffer& buffer = program.buffers[program.operands[operand].buffer];
  const std::int64_t channel = program.operands[operand].channel;
  return buffer.format == Format::int8 ? buffer.words() + channel / buffer.group - words_before(buffer, channel) : 0;
}

BoundOperand bind(Program& program, const Operand& operand, const IterationDomain& cells, bool written, Plan& plan) {
  const Buffer& buffer = program.buffers[operand.buffer];
  const Box& box = operand.box;
  BoundOperand bound{};
  bound.row_stride = static_cast<std::int32_t>(operand.map.row_stride);
  bound.column_stride = static_cast<std::int32_t>(operand.map.column_stride);
  bound.frame_stride = static_cast<std::int32_t>(operand.map.frame_stride);
  bound.offset = operand.map.offset;
  if (!box.holds(cells)) {
    float* border = operand.border >= 0 ? plan.constants + operand.border : plan.zeros.data();
    plan.boxes.push_back({box, written ? nullptr : border});
    bound.box = &plan.boxes.back();
  }
  const Box inside = Box::of(cells).within(box);
  if (!inside.empty()) {
    const Span frames = product_range(operand.map.frame_stride, inside.frame0, inside.frame1);
    const Span rows = product_range(operand.map.row_stride, inside.row0, inside.row1);
    const Span columns = product_range(operand.map.column_stride, inside.column0, inside.column1);
    bound.wraps = frames.end + rows.end + columns.end + operand.map.offset >= buffer.positions;
  }
  bound.where = static_cast<std::int8_t>(buffer.where);
  bound.positions = static_cast<std::int32_t>(buffer.where == kContext ? buffer.offset : buffer.positions);
  bound.reciprocal = buffer.positions > 0 ? 1.0 / static_cast<double>(buffer.positions) : 0.0;
  bound.stride = static_cast<std::int32_t>(buffer.stride());
  bound.format = static_cast<std::int8_t>(buffer.format);
  bound.first = words_before(buffer, operand.channel) + (buffer.where == kContext ? 0 : buffer.offset);
  bound.channel_stride = static_cast<std::int32_t>(operand.channel_stride);
  bound.length = static_cast<std::int32_t>(operand.length);
  bound.written = written;
  return bound;
}

// The bound operands of one instruction, each operand once.
class Binder {
 public:
  Binder(Program& program, const IterationDomain& cells, Plan& plan, std::vector<BoundOperand>& bound)
      : program_(program), cells_(cells), plan_(plan), bound_(bound) {}

  int read(std::int64_t operand) { return add(operand, false); }
  int write(std::int64_t operand) { return add(operand, true); }

 private:
  int add(std::int64_t operand, bool written) {
    const auto key = std::make_pair(operand, written);
    const auto [place, is_new] = numbers_.emplace(key, static_cast<int>(bound_.size()));
    if (is_new) bound_.push_back(bind(program_, program_.operands[operand], cells_, written, plan_));
    return place->second;
  }

  Program& program_;
  const IterationDomain& cells_;
  Plan& plan_;
  std::vector<BoundOperand>& bound_;
  std::map<std::pair<std::int64_t, bool>, int> numbers_;
};

// As the program has it, its operands by their numbers in the instruction's.
PlannedOperation plan_operation(const Operation& operation) {
  const OpcodeInfo& info = kOpcodeInfo[operation.opcode];
  return {static_cast<std::int16_t>(operation.opcode),
          info.form,
          info.registers,
          static_cast<std::int32_t>(operation.dst),
          static_cast<std::int32_t>(operation.a),
          static_cast<std::int32_t>(operation.b),
          static_cast<std::int32_t>(operation.c),
          operation.x,
          operation.y};
}

PlannedCompute plan_compute(Program& program, const PackedWeights& weights, const Instruction& instruction,
                            const Compute& compute, std::size_t number, Plan& plan) {
  PlannedCompute planned{};
  planned.level = instruction.level;
  planned.loop = instruction.loop;
  planned.parts = compute.parts;
  planned.lanes = compute.lanes;
  planned.lane_tiles = (compute.lanes + kTile - 1) / kTile;
  planned.registers = compute.registers;
  planned.unit_tiles = compute.parts % 2 == 1 ? 2 : 1;  // so that a unit begins at a block of two tiles
  planned.units = (planned.lane_tiles + planned.unit_tiles - 1) / planned.unit_tiles;
  planned.bias = compute.bias >= 0 ? program.constants.data() + compute.bias : nullptr;
  planned.multiplies = compute.parts > 0;
  planned.matrix = weights.of_compute(number);
  Binder binder(program, instruction.domain, plan, planned.operands);
  planned.accumulator = compute.accumulator >= 0 ? binder.read(compute.accumulator) : -1;
  planned.hoisted = planned.attend = -1;
  planned.in_blocks = compute.block > 1;
  for (std::int64_t s = compute.segment0; s < compute.segment1; ++s) {
    const Segment& segment = program.segments[s];
    const int operand = binder.read(segment.operand);
    if (segment.kind == kIndex) {
      planned.index.push_back({operand, weights.table_of(compute, segment)});
    } else {
      planned.dense.push_back({operand, segment.length});
      planned.inputs += segment.length;
    }
  }
  planned.padded_inputs = (planned.inputs + 3) / 4 * 4;
  planned.in_place =
      planned.dense.size() == 1 && planned.operands[planned.dense[0].operand].channel_stride == 1 && planned.inputs % 4 == 0;
  for (std::int64_t o = compute.operation0; o < compute.operation1; ++o) {
    Operation operation = program.operations[o];
    if (operation.opcode == kLoad) operation.a = binder.read(operation.a);
    if (operation.opcode == kStore) {
      const Buffer& buffer = program.buffers[program.operands[operation.b].buffer];
      operation.c = buffer.group;
      operation.dst = scales_behind(program, operation.b);
      operation.b = binder.write(operation.b);
      planned.whole |= buffer.format == Format::int8;  // a scale is that of all channels of its group
    }
    planned.operations.push_back(plan_operation(operation));
    planned.whole |= planned.operations.back().form == OpcodeForm::REDUCTION;
  }
  const std::int64_t registers = std::max<std::int64_t>(compute.registers, 1);
  const std::int64_t floats = std::max(planned.padded_inputs, planned.lane_tiles * kTile * registers);
  planned.work = static_cast<std::int64_t>(
      std::min(static_cast<double>(kUnasked),
               (static_cast<double>(planned.inputs) * static_cast<double>(std::max<std::int64_t>(compute.parts, 1)) +
                static_cast<double>(kWorkOfOperation * (compute.operation1 - compute.operation0))) *
                   static_cast<double>(compute.lanes)));
  planned.chunk = std::clamp(kChunkFloats / floats / 6 * 6, std::int64_t{6}, kMostItems);
  return planned;
}

std::vector<PlannedOperation> plan_keywise(const Program& program, std::int64_t begin, std::int64_t end, Binder& binder,
                                           std::vector<ScoreInput>& inputs) {
  std::vector<PlannedOperation> planned;
  for (std::int64_t o = begin; o < end; ++o) {
    Operation operation = program.operations[o];
    if (operation.opcode == kLoad) {
      const ScoreOperand& score = program.score_operands[operation.a];
      operation.a = static_cast<std::int64_t>(inputs.size());
      inputs.push_back(
          {binder.read(score.operand), score.offset, score.row_stride, score.column_stride, score.key_stride, score.head_stride});
    }
    planned.push_back(plan_operation(operation));
  }
  return planned;
}

PlannedCompute plan_attend(Program& program, const Instruction& instruction, const Attend& attend, Plan& plan) {
  PlannedCompute planned{};
  PlannedAttend own{};
  planned.level = instruction.level;
  planned.loop = instruction.loop;
  planned.attend = static_cast<int>(plan.attends.size());
  planned.accumulator = planned.hoisted = planned.matrix = -1;
  planned.units = attend.groups;
  planned.unit_tiles = 1;
  own.heads = attend.heads;
  own.groups = attend.groups;
  own.depth = program.operands[attend.key].length / attend.groups;
  own.width = program.operands[attend.value].length / attend.groups;
  own.keys = attend.keys;
  own.softmax = attend.softmax != 0;
  own.least = attend.least >= 0 ? program.constants.data() + attend.least : nullptr;
  own.registers = attend.registers;
  Binder binder(program, instruction.domain, plan, planned.operands);
  own.query = binder.read(attend.query);
  own.out = binder.write(attend.out);
  const KeyBounds keys = key_bounds(program, attend, instruction.domain);
  const IterationDomain along = {1, 1, 0, 0, 1, keys.least, keys.end};
  own.key = bind(program, program.operands[attend.key], along, false, plan);
  own.value = bind(program, program.operands[attend.value], along, false, plan);
  own.key_format = program.buffers[program.operands[attend.key].buffer].format;
  own.value_format = program.buffers[program.operands[attend.value].buffer].format;
  own.key_scales = scales_behind(program, attend.key);
  own.value_scales = scales_behind(program, attend.value);
  if (own.key_format == Format::int8 || own.value_format == Format::int8) own.scale_register = own.registers++;
  own.scores = plan_keywise(program, attend.operation0, attend.operation1, binder, own.inputs);
  own.weighting = plan_keywise(program, attend.weighting0, attend.weighting1, binder, own.inputs);
  planned.parts = 1;
  planned.lanes = own.heads * own.width;
  planned.inputs = std::min<std::int64_t>(keys.count, 1 << 20);
  plan.score_floats = std::max(plan.score_floats, (planned.inputs + kTile - 1) / kTile * kTile * own.registers);
  planned.work = static_cast<std::int64_t>(
      std::min(static_cast<double>(kUnasked),
               static_cast<double>(keys.count) * static_cast<double>(own.heads) * static_cast<double>(own.depth + own.width)));
  planned.chunk = kMostItems;
  plan.attends.push_back(std::move(own));
  return planned;
}

PlannedDraw plan_draw(Program& program, const Instruction& instruction, const Draw& draw, const HeadSpec& head, Plan& plan) {
  PlannedDraw planned{};
  const IterationDomain& cells = instruction.domain;
  planned.domain = TimedDomain::of(cells, program.row_length);
  std::int64_t count = 0;
  for (std::int64_t i = draw.parameter0; i < draw.parameter1; ++i) {
    planned.operands.push_back(bind(program, program.operands[i], cells, false, plan));
    count += program.operands[i].length;
  }
  planned.parameters = static_cast<int>(planned.operands.size());
  for (std::int64_t i = draw.input0; i < draw.input1; ++i) {
    planned.operands.push_back(bind(program, program.operands[i], cells, true, plan));
  }
  planned.in_place = planned.parameters == 1 && planned.operands[0].channel_stride == 1;
  planned.map = draw.map;
  planned.channel0 = draw.channel0;
  planned.channels = draw.channels;
  const int needed = parameter_count(head, static_cast<int>(draw.channels));
  const std::ptrdiff_t number = &instruction - program.instructions.data();
  FASTGEN_CHECK(needed > 0 && count == needed, "instructions[", number, "]: the head needs ", needed, " parameters for ",
                draw.channels, " channels; the operands have ", count);
  planned.count = needed;
  return planned;
}

// For each Compute the one that runs blocks of cells and writes its accumulator. Instead of reading that, a machine may sum it anew
// at the reader's cells: they must be alike. `places` are those of the Computes in `planned`.
void link_hoisted(const Program& program, const std::vector<int>& places, std::vector<PlannedCompute>& planned) {
  std::map<std::int64_t, int> writers;  // by buffer
  std::vector<const Instruction*> instructions;
  const auto name = [&](const Instruction& instruction) {
    return text("instructions[", &instruction - program.instructions.data(), "]");
  };
  each_of_kind<Compute>(program, [&](const Instruction& instruction, const Compute& compute, std::size_t number) {
    instructions.push_back(&instruction);
    if (compute.block == 1) return;
    for (std::int64_t o = compute.operation0; o < compute.operation1; ++o) {
      FASTGEN_CHECK(program.operations[o].opcode == kStore, name(instruction),
                    " runs blocks of cells; it may only store its sums");
      writers[program.operands[program.operations[o].b].buffer] = static_cast<int>(number);
    }
  });
  each_of_kind<Compute>(program, [&](const Instruction& instruction, const Compute& compute, std::size_t number) {
    const auto found = compute.accumulator < 0 ? writers.end() : writers.find(program.operands[compute.accumulator].buffer);
    if (found == writers.end()) return;
    const Instruction& source = *instructions[found->second];
    const Compute& hoisted = std::get<Compute>(source.body);
    FASTGEN_CHECK(
        hoisted.parts == compute.parts && hoisted.lanes == compute.lanes && planned[places[found->second]].matrix >= 0 &&
            TimedDomain::of(source.domain, program.row_length) == TimedDomain::of(instruction.domain, program.row_length),
        name(instruction), " has other cells or lanes than ", name(source), ", which sums its accumulator");
    PlannedCompute& reader = planned[places[number]];
    reader.hoisted = places[found->second];
    reader.chunk = std::min(reader.chunk, planned[reader.hoisted].chunk);
  });
}

bool earlier(const Once& x, const Once& y) { return x.step != y.step ? x.step < y.step : x.number < y.number; }

}  // namespace

Plan::Plan(Program& program, const PackedWeights& weights, const HeadSpec& head)
    : key_sets(program.key_sets), key_runs(program.key_runs), constants(program.constants.data()) {
  std::int64_t longest = 1;
  for (const Operand& operand : program.operands) longest = std::max(longest, operand.length);
  zeros.assign(longest, 0.0f);
  for (const KeySet& set : key_sets) key_spans = std::max(key_spans, set.run1 - set.run0);
  std::map<TimedDomain::Key, int> domain_numbers;
  std::vector<int> places;
  for (const Instruction& instruction : program.instructions) {
    const int number = static_cast<int>(computes.size());
    const Compute* compute = std::get_if<Compute>(&instruction.body);
    const Attend* attend = std::get_if<Attend>(&instruction.body);
    if (compute) {
      computes.push_back(plan_compute(program, weights, instruction, *compute, places.size(), *this));
      places.push_back(number);
    } else if (attend) {
      computes.push_back(plan_attend(program, instruction, *attend, *this));
    } else {
      continue;
    }
    const IterationDomain& cells = instruction.domain;
    iterations.push_back(cells);
    PlannedCompute& planned = computes.back();
    planned.domain = -1;
    const std::int64_t width = planned.lane_tiles * kTile;
    inputs_floats = std::max(inputs_floats, planned.chunk * planned.padded_inputs);
    registers_floats = std::max(registers_floats, planned.chunk * planned.registers * width);
    addresses = std::max(addresses, planned.chunk * static_cast<std::int64_t>(planned.operands.size()));
    items = std::max(items, planned.chunk);
    if (instruction.when == kPrologue) {
      prologue.push_back(number);
    } else if (instruction.when == kRow) {
      row.push_back(number);
    } else {
      const TimedDomain timed = TimedDomain::of(cells, program.row_length, compute ? compute->block : 1);
      if (timed.single()) {
        planned.only = {cells.row0, cells.column0, cells.frame0};
        planned.step = timed.first_step();
        computes_once.push_back({planned.step, number});
      } else if (!timed.empty()) {
        const auto [found, is_new] = domain_numbers.emplace(timed.key(), static_cast<int>(domains.size()));
        planned.domain = found->second;
        if (is_new) domains.push_back(timed);
        pixel.push_back(number);
      }
    }
  }
  each_of_kind<Draw>(program, [&](const Instruction& instruction, const Draw& draw, std::size_t number) {
    draws.push_back(plan_draw(program, instruction, draw, head, *this));
    const PlannedDraw& planned = draws.back();
    parameters = std::max(parameters, static_cast<std::int64_t>(planned.count));
    channels = std::max(channels, planned.channels);
    addresses = std::max(addresses, static_cast<std::int64_t>(planned.operands.size()));
    draw_doubles = std::max(draw_doubles, draw_scratch_size(head, static_cast<int>(planned.channels)));
    if (planned.domain.single()) {
      draws_once.push_back({planned.domain.first_step(), static_cast<int>(number)});
    } else {
      draws_often.push_back(static_cast<int>(number));
    }
  });
  link_hoisted(program, places, computes);
  std::sort(computes_once.begin(), computes_once.end(), earlier);
  std::sort(draws_once.begin(), draws_once.end(), earlier);
}

std::vector<std::vector<Span>> Plan::shares(int threads) const {
  std::vector<std::vector<Span>> result;
  std::vector<std::int64_t> load(threads, 0);
  std::int64_t level = -1;
  for (const PlannedCompute& compute : computes) {
    if (compute.level != level) std::fill(load.begin(), load.end(), 0);
    level = compute.level;
    const std::int64_t units = compute.whole ? 1 : compute.units;
    const std::int64_t cost = (compute.inputs + 16) * compute.parts * compute.lanes / units + 1;
    std::vector<std::int64_t> counts(threads, units / threads);
    for (std::int64_t rest = units % threads; rest > 0; --rest) {
      std::int64_t least = 0;
      for (int i = 1; i < threads; ++i) {
        if (load[i] + counts[i] * cost < load[least] + counts[least] * cost) least = i;
      }
      ++counts[least];
    }
    std::vector<Span> spans;
    std::int64_t begin = 0;
    for (int i = 0; i < threads; ++i) {
      const std::int64_t end = begin + counts[i];
      spans.push_back(compute.whole ? (counts[i] ? Span{0, compute.units} : Span{0, 0}) : Span{begin, end});
      load[i] += counts[i] * cost;
      begin = end;
    }
    result.push_back(std::move(spans));
  }
  return result;
}

}  // namespace fastgen
