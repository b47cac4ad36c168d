#include "program/program.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr std::int64_t kMostCells = std::int64_t{1} << 31;
constexpr std::int64_t kFar = std::int64_t{1} << 41;  // beyond UNBOUNDED
constexpr std::int64_t kFarther = std::int64_t{1}
                                  << 52;  // of every term of a position or a time: doubles hold their sums exactly

void check_range(const std::string& what, const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  FASTGEN_CHECK(value >= low && value < high, what, ": ", field, " is ", value, ", allowed are ", low, " .. ", high - 1);
}

void check_span(const std::string& what, const char* field, std::int64_t begin, std::int64_t end, std::size_t size) {
  FASTGEN_CHECK(0 <= begin && begin <= end && end <= static_cast<std::int64_t>(size), what, ": ", field, " range ", begin, " .. ",
                end, " is outside the table of ", size);
}

bool beyond(std::int64_t coefficient, std::int64_t value, std::int64_t limit) {
  const __int128 product = static_cast<__int128>(coefficient) * value;
  return product > limit || product < -limit;
}

void check_domain(const std::string& what, const IterationDomain& cells, std::int64_t row_length, bool timed) {
  FASTGEN_CHECK(cells.row0 <= cells.row1 && cells.column0 <= cells.column1, what, ": the domain of rows ", cells.row0, " .. ",
                cells.row1, " and columns ", cells.column0, " .. ", cells.column1, " runs backwards");
  for (std::int64_t value : {cells.row0, cells.row1, cells.column0, cells.column1, cells.delay}) {
    check_range(what, "domain", value, -kFar, kFar);
  }
  check_range(what, "row_stride", cells.row_stride, cells.row1 - cells.row0 > 1 ? 1 : 0, 1 << 20);
  check_range(what, "column_stride", cells.column_stride, cells.column1 - cells.column0 > 1 ? 1 : 0, 1 << 20);
  if (!timed) return;
  constexpr std::int64_t kLongest = std::int64_t{1} << 60;
  for (std::int64_t row : {cells.row0, cells.row1}) {
    FASTGEN_CHECK(!beyond(cells.row_stride, row_length, kLongest) && !beyond(cells.row_stride * row_length, row, kLongest), what,
                  ": rows of ", row_length, " steps are too long for rows ", cells.row0, " .. ", cells.row1);
  }
  for (std::int64_t column : {cells.column0, cells.column1}) {
    FASTGEN_CHECK(!beyond(cells.column_stride, column, kLongest), what, ": columns of ", cells.column_stride,
                  " steps are too long for columns ", cells.column0, " .. ", cells.column1);
  }
}

// The least and greatest value of coefficient * i for begin <= i < end.
struct Range {
  std::int64_t least, greatest;
};
Range product(const std::string& what, std::int64_t coefficient, std::int64_t begin, std::int64_t end) {
  FASTGEN_CHECK(!beyond(coefficient, begin, kFarther) && !beyond(coefficient, end - 1, kFarther), what, ": ", coefficient, " * ",
                begin, " .. ", end - 1, " is too large for a position");
  const std::int64_t first = coefficient * begin, last = coefficient * (end - 1);
  return {std::min(first, last), std::max(first, last)};
}

// The least position of some cells.
std::int64_t least_position(const std::string& what, const AccessMap& map, const Box& cells) {
  const Range rows = product(what, map.row_stride, cells.row0, cells.row1);
  const Range columns = product(what, map.column_stride, cells.column0, cells.column1);
  return rows.least + columns.least + map.offset;
}

// That no cell of the domain, inside the operand's box, addresses a position before the first.
void check_positions(const Program& program, const std::string& what, const IterationDomain& cells, std::int64_t index) {
  const Operand& operand = program.operands[index];
  const Box inside = {std::max(cells.row0, operand.box.row0), std::min(cells.row1, operand.box.row1),
                      std::max(cells.column0, operand.box.column0), std::min(cells.column1, operand.box.column1)};
  if (inside.row0 >= inside.row1 || inside.column0 >= inside.column1) return;
  const std::int64_t least = least_position(what, operand.map, inside);
  FASTGEN_CHECK(least >= 0, what, ": operand ", index, " addresses position ", least);
}

void check_map(const std::string& what, const AccessMap& map) {
  for (std::int64_t stride : {map.row_stride, map.column_stride}) check_range(what, "stride", stride, -(1 << 21), 1 << 21);
  check_range(what, "offset", map.offset, -kFar, kFar);
}

void check_operand(const Program& program, std::size_t index) {
  const Operand& operand = program.operands[index];
  const std::string what = text("operands[", index, "]");
  check_range(what, "buffer", operand.buffer, 0, static_cast<std::int64_t>(program.buffers.size()));
  const Buffer& buffer = program.buffers[operand.buffer];
  check_range(what, "length", operand.length, 1, kMostCells);
  check_range(what, "channel_stride", operand.channel_stride, 0, buffer.channels + 1);
  check_range(what, "channel", operand.channel, 0, buffer.channels);
  FASTGEN_CHECK(operand.channel + (operand.length - 1) * operand.channel_stride < buffer.channels, what, ": channel ",
                operand.channel, " + ", operand.length - 1, " * ", operand.channel_stride, " is outside the buffer's ",
                buffer.channels, " channels");
  check_map(what, operand.map);
  for (std::int64_t value : {operand.box.row0, operand.box.row1, operand.box.column0, operand.box.column1}) {
    check_range(what, "box", value, -kFar, kFar);
  }
  const std::int64_t constants = static_cast<std::int64_t>(program.constants.size());
  FASTGEN_CHECK(operand.border == -1 || (operand.border >= 0 && operand.border + operand.length <= constants), what, ": border ",
                operand.border, " + ", operand.length, " is outside the ", constants, " constants");
}

void check_written(const Program& program, const std::string& what, std::int64_t index) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(program.buffers[operand.buffer].where == kState, what, ": operand ", index,
                " is written but lies outside the state");
  FASTGEN_CHECK(operand.channel_stride > 0 || operand.length == 1, what, ": operand ", index,
                " is written with channel_stride 0");
}

void check_operation(const Program& program, const Instruction& instruction, const Compute& compute, const std::string& what,
                     const Operation& operation) {
  check_range(what, "opcode", operation.opcode, 0, kOpcodes);
  const std::int64_t operands = static_cast<std::int64_t>(program.operands.size());
  if (operation.opcode != kStore) check_range(what, "dst", operation.dst, 0, compute.registers);
  const std::int64_t arguments[] = {operation.a, operation.b, operation.c};
  for (int i = 0; i < register_arguments(operation.opcode); ++i)
    check_range(what, "register", arguments[i], 0, compute.registers);
  if (operation.opcode == kLoad || operation.opcode == kStore) {
    const std::int64_t operand = operation.opcode == kLoad ? operation.a : operation.b;
    check_range(what, "operand", operand, 0, operands);
    FASTGEN_CHECK(program.operands[operand].length == compute.lanes, what, ": operand ", operand, " has length ",
                  program.operands[operand].length, ", the instruction has ", compute.lanes, " lanes");
    check_positions(program, what, instruction.domain, operand);
    if (operation.opcode == kStore) check_written(program, what, operand);
  }
  if (is_reduction(operation.opcode)) {
    FASTGEN_CHECK(operation.b > 0 && compute.lanes % operation.b == 0, what, ": groups of ", operation.b, " do not divide ",
                  compute.lanes, " lanes");
  }
}

// How many cells of a PIXEL domain answer to one step, at most.
std::int64_t cells_of_a_step(const IterationDomain& cells, std::int64_t row_length) {
  const std::int64_t rows = cells.row1 - cells.row0, columns = cells.column1 - cells.column0;
  const std::int64_t row = std::max<std::int64_t>(cells.row_stride * row_length, 1);
  return columns > 0 ? std::min(rows, cells.column_stride * (columns - 1) / row + 1) : 0;
}

// Cells that run together: all of a PROLOGUE instruction, a row of a ROW one, those of one step of others. As each has a place in
// the buffers that the instruction writes, there are no more of them than of the places.
void check_cells(const std::string& what, __int128 cells, std::int64_t places) {
  FASTGEN_CHECK(cells <= places, what, ": the domain has more cells that run together than the ", places,
                " positions of the buffers that are written");
}

// check_cells for the cells of an instruction.
void check_concurrent(const Program& program, const std::string& what, const Instruction& instruction, std::int64_t places) {
  const IterationDomain& cells = instruction.domain;
  check_cells(what,
              instruction.when == kPrologue ? static_cast<__int128>(cells.row1 - cells.row0) * (cells.column1 - cells.column0)
              : instruction.when == kRow    ? cells.column1 - cells.column0
                                            : cells_of_a_step(cells, program.row_length),
              places);
}

void check_compute(const Program& program, const std::string& what, const Instruction& instruction, const Compute& compute) {
  const IterationDomain& cells = instruction.domain;
  check_domain(what, cells, program.row_length, instruction.when == kPixel);
  check_range(what, "block", compute.block, 1, instruction.when == kPixel && cells.row1 - cells.row0 == 1 ? 1 << 10 : 2);
  check_range(what, "lanes", compute.lanes, 1, 1 << 24);
  check_range(what, "parts", compute.parts, 0, 1 << 10);
  check_range(what, "registers", compute.registers, compute.parts, 1 << 16);
  check_span(what, "segment", compute.segment0, compute.segment1, program.segments.size());
  check_span(what, "operation", compute.operation0, compute.operation1, program.operations.size());
  const std::int64_t outputs = compute.parts * compute.lanes, constants = static_cast<std::int64_t>(program.constants.size());
  const std::int64_t operands = static_cast<std::int64_t>(program.operands.size());
  FASTGEN_CHECK(compute.bias == -1 || (compute.bias >= 0 && compute.bias + outputs <= constants), what, ": bias ", compute.bias,
                " + ", outputs, " is outside the ", constants, " constants");
  check_range(what, "accumulator", compute.accumulator, -1, operands);
  FASTGEN_CHECK(compute.accumulator == -1 || program.operands[compute.accumulator].length == outputs, what,
                ": the accumulator's length is not parts * lanes = ", outputs);
  if (compute.accumulator >= 0) check_positions(program, what, cells, compute.accumulator);
  check_range(what, "weight", compute.weight, -1, static_cast<std::int64_t>(program.weight_table.size()));
  FASTGEN_CHECK(compute.weight >= 0 || compute.segment0 == compute.segment1, what, ": has segments but no weight");
  for (std::int64_t s = compute.segment0; s < compute.segment1; ++s) {
    const Segment& segment = program.segments[s];
    const std::string name = text("segments[", s, "]");
    const Weight& weight = program.weight_table[compute.weight];
    check_range(name, "kind", segment.kind, kDense, kIndex + 1);
    check_range(name, "operand", segment.operand, 0, operands);
    const std::int64_t length = segment.kind == kDense ? segment.length : 1;
    check_range(name, "length", segment.length, 1, weight.rows + 1);
    check_range(name, "row", segment.row, 0, weight.rows - segment.length + 1);
    FASTGEN_CHECK(weight.columns == outputs, name, ": the weight has ", weight.columns, " columns, the instruction ", outputs,
                  " outputs");
    FASTGEN_CHECK(program.operands[segment.operand].length == length, name, ": operand ", segment.operand, " has length ",
                  program.operands[segment.operand].length, ", needed is ", length);
    check_positions(program, name, cells, segment.operand);
  }
  for (std::int64_t o = compute.operation0; o < compute.operation1; ++o) {
    check_operation(program, instruction, compute, text("operations[", o, "]"), program.operations[o]);
  }
  std::int64_t places = 0;
  for (std::int64_t o = compute.operation0; o < compute.operation1; ++o) {
    if (program.operations[o].opcode != kStore) continue;
    places = std::max(places, program.buffers[program.operands[program.operations[o].b].buffer].positions);
  }
  check_concurrent(program, what, instruction, places);
}

void check_draw(const Program& program, const std::string& what, const Instruction& instruction, const Draw& draw) {
  const IterationDomain& cells = instruction.domain;
  check_range(what, "when", instruction.when, kPixel, kPixel + 1);
  check_range(what, "level", instruction.level, 0, 1);
  check_domain(what, cells, program.row_length, true);
  check_span(what, "parameter", draw.parameter0, draw.parameter1, program.operands.size());
  check_span(what, "input", draw.input0, draw.input1, program.operands.size());
  check_range(what, "channels", draw.channels, 1, 1 << 16);
  check_range(what, "channel0", draw.channel0, 0, 1 << 16);
  check_map(what, draw.map);
  if (!cells.empty()) {
    const std::int64_t least = least_position(what, draw.map, {cells.row0, cells.row1, cells.column0, cells.column1});
    FASTGEN_CHECK(least >= 0, what, ": draws position ", least);
  }
  for (std::int64_t i = draw.parameter0; i < draw.parameter1; ++i) check_positions(program, what, cells, i);
  FASTGEN_CHECK(draw.input1 - draw.input0 == draw.channels, what, ": ", draw.input1 - draw.input0, " input operands for ",
                draw.channels, " channels");
  for (std::int64_t i = draw.input0; i < draw.input1; ++i) {
    FASTGEN_CHECK(program.operands[i].length == 1, what, ": input operand ", i, " has length ", program.operands[i].length);
    check_written(program, what, i);
    check_positions(program, what, cells, i);
    check_cells(what, cells_of_a_step(cells, program.row_length), program.buffers[program.operands[i].buffer].positions);
  }
}

// A value of a map at the corners of a domain, from the least to the greatest.
Range values_of(const std::string& what, const AccessMap& map, const IterationDomain& cells) {
  const Range rows = product(what, map.row_stride, cells.row0, cells.row1);
  const Range columns = product(what, map.column_stride, cells.column0, cells.column1);
  return {rows.least + columns.least + map.offset, rows.greatest + columns.greatest + map.offset};
}

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
        return values_of("key_runs", {own.row_stride + stride * end.row_stride, own.column_stride + stride * end.column_stride,
                                      own.offset + stride * (end.offset + key)}, here);
      };
      const AccessMap none = {0, 0, 0};
      const AccessMap between = {run.end.row_stride - run.start.row_stride, run.end.column_stride - run.start.column_stride,
                                 run.end.offset - run.start.offset};
      const std::int64_t most =
          std::min({run.high - run.low, values_of("key_runs", between, here).greatest,
                    values_of("key_runs", run.end, here).greatest - run.low, run.high - values_of("key_runs", run.start, here).least});
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
  const Box& box = program.operands[index].box;
  const bool whole =
      cells.empty() || (box.row0 <= cells.row0 && cells.row1 <= box.row1 && box.column0 <= cells.column0 && cells.column1 <= box.column1);
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

void check_attend(const Program& program, const std::string& what, const Instruction& instruction, const Attend& attend) {
  const IterationDomain& cells = instruction.domain;
  check_domain(what, cells, program.row_length, instruction.when == kPixel);
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
    check_positions(program, what, along, operand);
    check_whole(program, what, along, operand);
    const Buffer& buffer = program.buffers[program.operands[operand].buffer];
    const AccessMap& map = program.operands[operand].map;
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

}  // namespace

Rows key_sets_of(const Attend& attend, const IterationDomain& cells) {
  if (cells.empty()) return {0, 0};
  const Range numbers = values_of("keys", attend.keys, cells);
  return {numbers.least, numbers.greatest + 1};
}

KeyBounds key_bounds(const Program& program, const Attend& attend, const IterationDomain& cells) {
  return key_bounds(program, attend, cells, {0, 0, 0}, 1);
}

std::vector<Instruction> instructions_of(const std::vector<Header>& headers, const std::vector<Compute>& computes,
                                         const std::vector<Draw>& draws, const std::vector<Attend>& attends) {
  std::vector<Instruction> instructions;
  std::size_t compute = 0, draw = 0, attend = 0;
  for (const Header& header : headers) {
    check_range(text("instructions[", instructions.size(), "]"), "kind", header.kind, 0, std::variant_size_v<Body>);
    if (header.kind == kCompute) {
      FASTGEN_CHECK(compute < computes.size(), "computes has ", computes.size(), " rows, more instructions are of this kind");
      instructions.push_back({header, computes[compute++]});
    } else if (header.kind == kAttend) {
      FASTGEN_CHECK(attend < attends.size(), "attends has ", attends.size(), " rows, more instructions are of this kind");
      instructions.push_back({header, attends[attend++]});
    } else {
      FASTGEN_CHECK(draw < draws.size(), "draws has ", draws.size(), " rows, more instructions are of this kind");
      instructions.push_back({header, draws[draw++]});
    }
  }
  FASTGEN_CHECK(compute == computes.size() && draw == draws.size() && attend == attends.size(), "instructions has ", compute,
                " of kind compute, ", draw, " of kind draw and ", attend, " of kind attend, their tables have ", computes.size(),
                ", ", draws.size(), " and ", attends.size(), " rows");
  return instructions;
}

void check(const Program& program) {
  FASTGEN_CHECK(program.steps >= 0 && program.steps <= kFar, "steps is ", program.steps);
  FASTGEN_CHECK(program.row_length >= 1 && program.row_length <= kFar, "row_length is ", program.row_length);
  FASTGEN_CHECK(program.state_size >= 0, "state_size is ", program.state_size);
  FASTGEN_CHECK(program.lookahead >= 1, "lookahead is ", program.lookahead, ", at least 1 is needed");
  for (std::size_t i = 0; i < program.buffers.size(); ++i) {
    const Buffer& buffer = program.buffers[i];
    const std::string what = text("buffers[", i, "]");
    check_range(what, "where", buffer.where, kState, kContext + 1);
    check_range(what, "channels", buffer.channels, 1, kMostCells);
    check_range(what, "positions", buffer.positions, buffer.where == kContext ? 0 : 1,
                buffer.where == kContext ? kFar : kMostCells);
    check_range(what, "offset", buffer.offset, 0, buffer.where == kContext ? 1 << 16 : kFar);
    const std::int64_t size = buffer.where == kState ? program.state_size : static_cast<std::int64_t>(program.constants.size());
    FASTGEN_CHECK(buffer.where == kContext ||
                      (buffer.positions <= size / buffer.channels && buffer.offset <= size - buffer.positions * buffer.channels),
                  what, ": ", buffer.positions, " x ", buffer.channels, " at ", buffer.offset, " is outside the ", size,
                  " floats");
  }
  for (std::size_t i = 0; i < program.weight_table.size(); ++i) {
    const Weight& weight = program.weight_table[i];
    const std::string what = text("weight_table[", i, "]");
    check_range(what, "rows", weight.rows, 0, kFar);
    check_range(what, "columns", weight.columns, 1, kFar);
    FASTGEN_CHECK(weight.offset >= 0 && weight.rows <= program.weights_size / weight.columns &&
                      weight.offset <= program.weights_size - weight.rows * weight.columns,
                  what, ": ", weight.rows, " x ", weight.columns, " at ", weight.offset, " is outside the ", program.weights_size,
                  " weights");
  }
  for (std::size_t i = 0; i < program.operands.size(); ++i) check_operand(program, i);
  for (std::size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    const std::string what = text("instructions[", i, "]");
    check_range(what, "when", instruction.when, kPrologue, kPixel + 1);
    if (const Compute* compute = std::get_if<Compute>(&instruction.body)) check_compute(program, what, instruction, *compute);
    if (const Draw* draw = std::get_if<Draw>(&instruction.body)) check_draw(program, what, instruction, *draw);
    if (const Attend* attend = std::get_if<Attend>(&instruction.body)) check_attend(program, what, instruction, *attend);
  }
}

}  // namespace fastgen
