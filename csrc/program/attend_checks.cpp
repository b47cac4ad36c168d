// The checks of attention.
#include <algorithm>
#include <string>

#include "common/check.h"
#include "program/checks.h"

namespace fastgen {
namespace {

// The cells of the domain that have a key set: one cell where every cell has a set of its own.
IterationDomain cells_of_set(const Attend& attend, const IterationDomain& cells, std::int64_t set) {
  const AccessMap& map = attend.keys;
  const std::int64_t rows = cells.row1 - cells.row0, columns = cells.column1 - cells.column0;
  if (map.column_stride < 1 || (rows > 1 && map.row_stride < map.column_stride * columns)) return cells;
  const std::int64_t row_stride = rows > 1 ? map.row_stride : 1;
  const std::int64_t rest = set - map.offset - map.row_stride * cells.row0 - map.column_stride * cells.column0;
  const std::int64_t row = rows > 1 ? rest / row_stride : 0, along = rows > 1 ? rest % row_stride : rest;
  IterationDomain one = cells;
  one.row0 = cells.row0 + row;
  one.row1 = one.row0 + 1;
  one.column0 = cells.column0 + along / map.column_stride;
  one.column1 = one.column0 + 1;
  const bool inside = rest >= 0 && along % map.column_stride == 0 && one.row1 <= cells.row1 && one.column1 <= cells.column1;
  if (!inside) one.row1 = one.row0;  // no cell has it
  return one;
}

// The values of key_stride key + (a map of the cell) for the keys of the sets at their cells, from the least to the greatest; and
// how many keys a cell sees, at most.
KeyBounds key_bounds(const Program& program, const Attend& attend, const IterationDomain& cells, const AccessMap& own,
                     std::int64_t key_stride) {
  KeyBounds bounds = {0, 0, 0};
  const Rows sets = key_sets_of(attend, cells);
  for (std::int64_t s = sets.begin; s < sets.end; ++s) {
    const IterationDomain here = cells_of_set(attend, cells, s);
    if (here.empty()) continue;
    std::int64_t count = 0;
    for (std::int64_t r = program.key_sets[s].run0; r < program.key_sets[s].run1; ++r) {
      const KeyRun& run = program.key_runs[r];
      const auto along = [&](const AccessMap& end, std::int64_t key, std::int64_t stride) {
        return values_of("key_runs",
                         {own.row_stride + stride * end.row_stride, own.column_stride + stride * end.column_stride,
                          own.offset + stride * (end.offset + key)},
                         here);
      };
      const AccessMap none = {0, 0, 0};
      const AccessMap between = {run.end.row_stride - run.start.row_stride, run.end.column_stride - run.start.column_stride,
                                 run.end.offset - run.start.offset};
      const std::int64_t most = std::min({run.high - run.low, values_of("key_runs", between, here).greatest,
                                          values_of("key_runs", run.end, here).greatest - run.low,
                                          run.high - values_of("key_runs", run.start, here).least});
      if (most <= 0) continue;
      // The first key is max(low, start), the last one min(high, end) - 1: either bounds what is read.
      const Range low = along(none, run.low, key_stride), start = along(run.start, 0, key_stride);
      const Range high = along(none, run.high - 1, key_stride), end = along(run.end, -1, key_stride);
      std::int64_t least = std::max(low.least, start.least), greatest = std::min(high.greatest, end.greatest);
      if (key_stride < 0) {
        least = std::max(high.least, end.least);
        greatest = std::min(low.greatest, start.greatest);
      }
      bounds.least = bounds.count ? std::min(bounds.least, least) : least;
      bounds.end = bounds.count ? std::max(bounds.end, greatest + 1) : greatest + 1;
      count += (most + run.step - 1) / run.step;
      bounds.count = std::max(bounds.count, count);
    }
  }
  return bounds;
}

void check_key_runs(const Program& program, const std::string& what, const IterationDomain& cells, const KeySet& set) {
  check_span(what, "run", set.run0, set.run1, program.key_runs.size());
  for (std::int64_t r = set.run0; r < set.run1; ++r) {
    const KeyRun& run = program.key_runs[r];
    const std::string name = text("key_runs[", r, "]");
    check_map(name, run.start);
    check_map(name, run.end);
    check_range(name, "low", run.low, 0, kMostCells);
    check_range(name, "high", run.high, run.low, kFar);
    check_range(name, "step", run.step, 1, kMostCells);
    for (const AccessMap& map : {run.start, run.end}) values_of(name, map, cells);
  }
}

// That the operand has a value at every cell.
void check_whole(const Program& program, const std::string& what, const IterationDomain& cells, std::int64_t index) {
  const bool whole = cells.empty() || program.operands[index].box.holds(cells);
  FASTGEN_CHECK(whole, what, ": operand ", index, " must have all cells of the domain in its box");
}

void check_keywise(const Program& program, const std::string& what, const IterationDomain& cells, const Attend& attend,
                   const KeyBounds& keys, const Operation& operation) {
  check_range(what, "opcode", operation.opcode, 0, kOpcodes);
  FASTGEN_CHECK(operation.opcode == kLoad || kOpcodeInfo[operation.opcode].form == OpcodeForm::LANES, what,
                ": only loads and operations lane by lane make scores");
  check_range(what, "dst", operation.dst, 0, attend.registers);
  const std::int64_t arguments[] = {operation.a, operation.b, operation.c};
  for (int i = 0; i < register_arguments(operation.opcode); ++i) check_range(what, "register", arguments[i], 0, attend.registers);
  if (operation.opcode != kLoad) return;
  check_range(what, "score operand", operation.a, 0, static_cast<std::int64_t>(program.score_operands.size()));
  const ScoreOperand& score = program.score_operands[operation.a];
  const std::string name = text("score_operands[", operation.a, "]");
  check_range(name, "operand", score.operand, 0, static_cast<std::int64_t>(program.operands.size()));
  for (std::int64_t stride : {score.row_stride, score.column_stride, score.key_stride, score.head_stride}) {
    check_range(name, "stride", stride, -kMostCells, kMostCells);
  }
  check_range(name, "offset", score.offset, -kFar, kFar);
  check_positions(program, name, cells, score.operand);
  check_whole(program, name, cells, score.operand);
  if (keys.count == 0 || cells.empty()) return;
  const AccessMap own = {score.row_stride, score.column_stride, score.offset};
  const KeyBounds channels = key_bounds(program, attend, cells, own, score.key_stride);
  const Range heads = product(name, score.head_stride, 0, attend.heads);
  const std::int64_t least = channels.least + heads.least, greatest = channels.end - 1 + heads.greatest;
  FASTGEN_CHECK(least >= 0 && greatest < program.buffers[program.operands[score.operand].buffer].channels, name,
                ": addresses the channels ", least, " .. ", greatest, " of a buffer of ",
                program.buffers[program.operands[score.operand].buffer].channels);
}

}  // namespace

void check_attend(const Program& program, const std::string& what, const Instruction& instruction, const Attend& attend) {
  const IterationDomain& cells = instruction.domain;
  check_domain(what, cells, program.row_length, instruction.when);
  FASTGEN_CHECK(cells.frame0 == 0 && cells.frame1 == 1, what, ": attends in the frames ", cells.frame0, " .. ", cells.frame1,
                ", allowed is frame 0 alone");
  const std::int64_t operands = static_cast<std::int64_t>(program.operands.size());
  for (std::int64_t operand : {attend.query, attend.key, attend.value, attend.out}) {
    check_range(what, "operand", operand, 0, operands);
  }
  check_range(what, "groups", attend.groups, 1, 1 << 16);
  check_range(what, "heads", attend.heads, attend.groups, 1 << 16);
  check_range(what, "registers", attend.registers, 1, 1 << 10);
  check_range(what, "softmax", attend.softmax, 0, 2);
  check_range(what, "least", attend.least, -1, static_cast<std::int64_t>(program.constants.size()));
  const Operand &query = program.operands[attend.query], &key = program.operands[attend.key];
  const Operand &value = program.operands[attend.value], &out = program.operands[attend.out];
  const bool fits = attend.heads % attend.groups == 0 && key.length % attend.groups == 0 && value.length % attend.groups == 0 &&
                    query.length == key.length / attend.groups * attend.heads &&
                    out.length == value.length / attend.groups * attend.heads;
  FASTGEN_CHECK(fits, what, ": query, key, value and out of ", query.length, ", ", key.length, ", ", value.length, " and ",
                out.length, " channels are not those of ", attend.heads, " heads in ", attend.groups, " groups");
  for (const Operand* operand : {&query, &key, &value, &out}) {
    FASTGEN_CHECK(operand->channel_stride == 1 || operand->length == 1, what, ": its operands must have channel_stride 1");
  }
  check_map(what, attend.keys);
  const Rows sets = key_sets_of(attend, cells);
  check_span(what, "key set", sets.begin, std::max(sets.begin, sets.end), program.key_sets.size());
  for (std::int64_t s = sets.begin; s < sets.end; ++s) {
    check_key_runs(program, text("key_sets[", s, "]"), cells, program.key_sets[s]);
  }
  const KeyBounds keys = key_bounds(program, attend, cells);
  const IterationDomain along = {1, 1, 0, 0, 1, keys.least, std::max(keys.least, keys.end)};
  for (std::int64_t operand : {attend.key, attend.value}) {
    check_positions(program, what, along, operand, true);
    check_rounded(program, what, operand);
    check_whole(program, what, along, operand);
    const Buffer& buffer = program.buffers[program.operands[operand].buffer];
    const AccessMap& map = program.operands[operand].map;
    FASTGEN_CHECK(buffer.format != Format::int8 || program.operands[operand].length == attend.groups * buffer.group, what,
                  ": scales of ", buffer.group, " channels are not those of its heads");
    FASTGEN_CHECK(buffer.where != kContext || (map.column_stride == 1 && map.offset == 0), what,
                  ": the keys of a context must be its positions");
    FASTGEN_CHECK(buffer.where == kContext || keys.count <= buffer.positions, what, ": ", keys.count,
                  " keys are seen at once, of a buffer of ", buffer.positions, " positions");
  }
  check_positions(program, what, cells, attend.query);
  check_positions(program, what, cells, attend.out);
  check_written(program, what, attend.out);
  check_span(what, "operation", attend.operation0, attend.operation1, program.operations.size());
  check_span(what, "weighting", attend.weighting0, attend.weighting1, program.operations.size());
  for (const auto& [begin, end] : {Rows{attend.operation0, attend.operation1}, Rows{attend.weighting0, attend.weighting1}}) {
    for (std::int64_t o = begin; o < end; ++o) {
      check_keywise(program, text("operations[", o, "]"), cells, attend, keys, program.operations[o]);
    }
  }
  check_concurrent(program, what, instruction, program.buffers[out.buffer].positions);
}

Rows key_sets_of(const Attend& attend, const IterationDomain& cells) {
  if (cells.empty()) return {0, 0};
  const Range numbers = values_of("keys", attend.keys, cells);
  return {numbers.least, numbers.greatest + 1};
}

KeyBounds key_bounds(const Program& program, const Attend& attend, const IterationDomain& cells) {
  return key_bounds(program, attend, cells, {0, 0, 0}, 1);
}

}  // namespace fastgen
