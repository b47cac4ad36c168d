#include "cpu/machine/plan/plan.h"

#include <algorithm>
#include <map>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr std::int64_t kMostItems = 48;
constexpr std::int64_t kWorkOfOperation = 16;  // of a lane, in multiply-adds, about
constexpr std::int64_t kChunkFloats = 48 * 1024;  // of inputs, and of registers: they should stay in the second-level cache

// The least and greatest value of coefficient * i for begin <= i < end.
Span product_range(std::int64_t coefficient, std::int64_t begin, std::int64_t end) {
  const std::int64_t first = coefficient * begin, last = coefficient * (end - 1);
  return {std::min(first, last), std::max(first, last)};
}

struct Bounds {
  std::int64_t q0, q1, w0, w1;
};

BoundOperand bind(Program& program, const Operand& operand, const Bounds& cells, bool written, Plan& plan) {
  const Buffer& buffer = program.buffers[operand.buffer];
  BoundOperand bound{};
  bound.a = static_cast<std::int32_t>(operand.a);
  bound.b = static_cast<std::int32_t>(operand.b);
  bound.c = operand.c;
  if (cells.q0 < operand.box_q0 || cells.q1 > operand.box_q1 || cells.w0 < operand.box_w0 || cells.w1 > operand.box_w1) {
    float* border = operand.border >= 0 ? plan.constants + operand.border : plan.zeros.data();
    plan.boxes.push_back({operand.box_q0, operand.box_q1, operand.box_w0, operand.box_w1, written ? nullptr : border});
    bound.box = &plan.boxes.back();
  }
  const Bounds inside = {std::max(cells.q0, operand.box_q0), std::min(cells.q1, operand.box_q1), std::max(cells.w0, operand.box_w0),
                         std::min(cells.w1, operand.box_w1)};
  if (inside.q0 < inside.q1 && inside.w0 < inside.w1) {
    const Span along_q = product_range(operand.a, inside.q0, inside.q1), along_w = product_range(operand.b, inside.w0, inside.w1);
    bound.wraps = along_q.end + along_w.end + operand.c >= buffer.positions;
  }
  bound.where = static_cast<std::int8_t>(buffer.where);
  bound.positions = static_cast<std::int32_t>(buffer.positions);
  bound.reciprocal = buffer.positions > 0 ? 1.0 / static_cast<double>(buffer.positions) : 0.0;
  bound.channels = static_cast<std::int32_t>(buffer.channels);
  bound.offset = operand.channel + (buffer.where == kContext ? 0 : buffer.offset);
  bound.context = buffer.where == kContext ? static_cast<std::int32_t>(buffer.offset) : -1;
  bound.channel_stride = static_cast<std::int32_t>(operand.channel_stride);
  bound.length = static_cast<std::int32_t>(operand.length);
  bound.written = written;
  return bound;
}

// The bound operands of one code, each operand once.
class Binder {
 public:
  Binder(Program& program, const Bounds& cells, Plan& plan, std::vector<BoundOperand>& bound)
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
  Bounds cells_;
  Plan& plan_;
  std::vector<BoundOperand>& bound_;
  std::map<std::pair<std::int64_t, bool>, int> numbers_;
};

PlannedCode plan_code(Program& program, const PackedWeights& weights, std::size_t number, Plan& plan) {
  const Code& code = program.codes[number];
  PlannedCode planned{};
  planned.kind = code.kind;
  planned.level = code.level;
  planned.parts = code.parts;
  planned.lanes = code.lanes;
  planned.lane_tiles = (code.lanes + kTile - 1) / kTile;
  planned.registers = code.registers;
  planned.unit_tiles = code.parts % 2 == 1 ? 2 : 1;  // so that a unit begins at a block of two tiles
  planned.units = (planned.lane_tiles + planned.unit_tiles - 1) / planned.unit_tiles;
  planned.bias = code.bias >= 0 ? program.constants.data() + code.bias : nullptr;
  planned.multiplies = code.parts > 0;
  planned.matrix = weights.of_code(number);
  Binder binder(program, {code.q0, code.q1, code.w0, code.w1}, plan, planned.operands);
  planned.accumulator = code.accumulator >= 0 ? binder.read(code.accumulator) : -1;
  planned.early = -1;
  planned.together = code.together > 1;
  for (std::int64_t s = code.segment0; s < code.segment1; ++s) {
    const Segment& segment = program.segments[s];
    const int operand = binder.read(segment.operand);
    if (segment.kind == kIndex) {
      planned.index.push_back({operand, weights.table_of(code, segment)});
    } else {
      planned.dense.push_back({operand, segment.length});
      planned.inputs += segment.length;
    }
  }
  planned.padded_inputs = (planned.inputs + 3) / 4 * 4;
  planned.in_place = planned.dense.size() == 1 && planned.operands[planned.dense[0].operand].channel_stride == 1 &&
                     planned.inputs % 4 == 0;
  for (std::int64_t o = code.operation0; o < code.operation1; ++o) {
    Operation operation = program.operations[o];
    if (operation.opcode == kLoad) operation.a = binder.read(operation.a);
    if (operation.opcode == kStore) operation.b = binder.write(operation.b);
    planned.whole |= operation.opcode >= kSum && operation.opcode <= kAmin;
    planned.operations.push_back({static_cast<std::int32_t>(operation.opcode), static_cast<std::int32_t>(operation.dst),
                                  static_cast<std::int32_t>(operation.a), static_cast<std::int32_t>(operation.b),
                                  static_cast<std::int32_t>(operation.c), operation.x, operation.y});
  }
  const std::int64_t floats = std::max(planned.padded_inputs, planned.lane_tiles * kTile * std::max<std::int64_t>(code.registers, 1));
  planned.work = static_cast<std::int64_t>(
      std::min(static_cast<double>(kUnasked),
               (static_cast<double>(planned.inputs) * static_cast<double>(std::max<std::int64_t>(code.parts, 1)) +
                static_cast<double>(kWorkOfOperation * (code.operation1 - code.operation0))) * static_cast<double>(code.lanes)));
  planned.chunk = std::clamp(kChunkFloats / floats / 6 * 6, std::int64_t{6}, kMostItems);
  return planned;
}

PlannedDraw plan_draw(Program& program, const Draw& draw, const HeadSpec& head, std::size_t number, Plan& plan) {
  PlannedDraw planned{};
  planned.lattice = Lattice::of(draw, program.row_length);
  const Bounds cells = {draw.q0, draw.q1, draw.w0, draw.w1};
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
  planned.a = draw.a;
  planned.b = draw.b;
  planned.c = draw.c;
  planned.channel0 = draw.channel0;
  planned.channels = draw.channels;
  const int needed = parameter_count(head, static_cast<int>(draw.channels));
  FASTGEN_CHECK(needed > 0 && count == needed, "draws[", number, "]: the head needs ", needed, " parameters for ", draw.channels,
                " channels; the operands have ", count);
  planned.count = needed;
  return planned;
}

// For each code the one that runs cells together and writes its accumulator. Instead of reading that, a machine may sum it anew
// at the reader's cells: they must be alike.
void link_early(const Program& program, std::vector<PlannedCode>& planned) {
  std::map<std::int64_t, int> writers;  // by buffer
  for (std::size_t i = 0; i < program.codes.size(); ++i) {
    const Code& code = program.codes[i];
    if (code.together == 1) continue;
    for (std::int64_t o = code.operation0; o < code.operation1; ++o) {
      FASTGEN_CHECK(program.operations[o].opcode == kStore, "codes[", i, "] runs cells together; it may only store its sums");
      writers[program.operands[program.operations[o].b].buffer] = static_cast<int>(i);
    }
  }
  for (std::size_t i = 0; i < program.codes.size(); ++i) {
    const Code& code = program.codes[i];
    const auto found = code.accumulator < 0 ? writers.end() : writers.find(program.operands[code.accumulator].buffer);
    if (found == writers.end()) continue;
    const Code& early = program.codes[found->second];
    FASTGEN_CHECK(early.parts == code.parts && early.lanes == code.lanes && planned[found->second].matrix >= 0 &&
                      Lattice::of(early, program.row_length) == Lattice::of(code, program.row_length),
                  "codes[", i, "] has other cells or lanes than codes[", found->second, "], which sums its accumulator");
    planned[i].early = found->second;
    planned[i].chunk = std::min(planned[i].chunk, planned[found->second].chunk);
  }
}

bool earlier(const Once& x, const Once& y) { return x.step != y.step ? x.step < y.step : x.record < y.record; }

}  // namespace

Plan::Plan(Program& program, const PackedWeights& weights, const HeadSpec& head) : constants(program.constants.data()) {
  std::int64_t longest = 1;
  for (const Operand& operand : program.operands) longest = std::max(longest, operand.length);
  zeros.assign(longest, 0.0f);
  std::map<Lattice::Key, int> lattice_numbers;
  for (std::size_t i = 0; i < program.codes.size(); ++i) {
    const Code& code = program.codes[i];
    const int number = static_cast<int>(i);
    codes.push_back(plan_code(program, weights, i, *this));
    PlannedCode& planned = codes.back();
    planned.lattice = -1;
    const std::int64_t width = planned.lane_tiles * kTile;
    inputs_floats = std::max(inputs_floats, planned.chunk * planned.padded_inputs);
    registers_floats = std::max(registers_floats, planned.chunk * planned.registers * width);
    addresses = std::max(addresses, planned.chunk * static_cast<std::int64_t>(planned.operands.size()));
    items = std::max(items, planned.chunk);
    if (code.kind == kPrologue) {
      prologue.push_back(number);
    } else if (code.kind == kRow) {
      row.push_back(number);
    } else {
      const Lattice lattice = Lattice::of(code, program.row_length, code.together);
      if (lattice.single()) {
        planned.only = {code.q0, code.w0};
        codes_once.push_back({lattice.first_step(), number});
      } else if (!lattice.empty()) {
        const auto [found, is_new] = lattice_numbers.emplace(lattice.key(), static_cast<int>(lattices.size()));
        planned.lattice = found->second;
        if (is_new) lattices.push_back(lattice);
        pixel.push_back(number);
      }
    }
  }
  for (std::size_t i = 0; i < program.draws.size(); ++i) {
    draws.push_back(plan_draw(program, program.draws[i], head, i, *this));
    const PlannedDraw& planned = draws.back();
    parameters = std::max(parameters, static_cast<std::int64_t>(planned.count));
    channels = std::max(channels, planned.channels);
    addresses = std::max(addresses, static_cast<std::int64_t>(planned.operands.size()));
    draw_doubles = std::max(draw_doubles, draw_scratch_size(head, static_cast<int>(planned.channels)));
    if (planned.lattice.single()) {
      draws_once.push_back({planned.lattice.first_step(), static_cast<int>(i)});
    } else {
      draws_often.push_back(static_cast<int>(i));
    }
  }
  link_early(program, codes);
  std::sort(codes_once.begin(), codes_once.end(), earlier);
  std::sort(draws_once.begin(), draws_once.end(), earlier);
}

std::vector<std::vector<Span>> Plan::shares(int threads) const {
  std::vector<std::vector<Span>> result;
  std::vector<std::int64_t> load(threads, 0);
  std::int64_t level = -1;
  for (const PlannedCode& code : codes) {
    if (code.level != level) std::fill(load.begin(), load.end(), 0);
    level = code.level;
    const std::int64_t units = code.whole ? 1 : code.units, cost = (code.inputs + 16) * code.parts * code.lanes / units + 1;
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
      spans.push_back(code.whole ? (counts[i] ? Span{0, code.units} : Span{0, 0}) : Span{begin, end});
      load[i] += counts[i] * cost;
      begin = end;
    }
    result.push_back(std::move(spans));
  }
  return result;
}

}  // namespace fastgen
