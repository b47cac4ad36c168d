#include "program/program.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr std::int64_t kMostCells = std::int64_t{1} << 31;
constexpr std::int64_t kFar = std::int64_t{1} << 41;  // beyond UNBOUNDED
constexpr std::int64_t kFarther = std::int64_t{1} << 52;  // of every term of a position or a time: doubles hold their sums exactly

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

template <typename Lattice>
void check_lattice(const std::string& what, const Lattice& cells, std::int64_t row_length, bool timed) {
  FASTGEN_CHECK(cells.q0 <= cells.q1 && cells.w0 <= cells.w1, what, ": the lattice q ", cells.q0, " .. ", cells.q1, ", w ", cells.w0,
                " .. ", cells.w1, " runs backwards");
  for (std::int64_t value : {cells.q0, cells.q1, cells.w0, cells.w1, cells.delay}) check_range(what, "lattice", value, -kFar, kFar);
  check_range(what, "row_stride", cells.row_stride, cells.q1 - cells.q0 > 1 ? 1 : 0, 1 << 20);
  check_range(what, "column_stride", cells.column_stride, cells.w1 - cells.w0 > 1 ? 1 : 0, 1 << 20);
  if (!timed) return;
  constexpr std::int64_t kLongest = std::int64_t{1} << 60;
  for (std::int64_t q : {cells.q0, cells.q1}) {
    FASTGEN_CHECK(!beyond(cells.row_stride, row_length, kLongest) && !beyond(cells.row_stride * row_length, q, kLongest), what,
                  ": rows of ", row_length, " steps are too long for q ", cells.q0, " .. ", cells.q1);
  }
  for (std::int64_t w : {cells.w0, cells.w1}) {
    FASTGEN_CHECK(!beyond(cells.column_stride, w, kLongest), what, ": columns of ", cells.column_stride, " steps are too long for w ",
                  cells.w0, " .. ", cells.w1);
  }
}

// The least and greatest value of coefficient * i for begin <= i < end.
struct Range {
  std::int64_t least, greatest;
};
Range product(const std::string& what, std::int64_t coefficient, std::int64_t begin, std::int64_t end) {
  FASTGEN_CHECK(!beyond(coefficient, begin, kFarther) && !beyond(coefficient, end - 1, kFarther), what, ": ", coefficient, " * ", begin,
                " .. ", end - 1, " is too large for a position");
  const std::int64_t first = coefficient * begin, last = coefficient * (end - 1);
  return {std::min(first, last), std::max(first, last)};
}

// That no cell of the record's lattice, inside the operand's box, addresses a position before the first.
template <typename Lattice>
void check_positions(const Program& program, const std::string& what, const Lattice& cells, std::int64_t index) {
  const Operand& operand = program.operands[index];
  const std::int64_t q0 = std::max(cells.q0, operand.box_q0), q1 = std::min(cells.q1, operand.box_q1);
  const std::int64_t w0 = std::max(cells.w0, operand.box_w0), w1 = std::min(cells.w1, operand.box_w1);
  if (q0 >= q1 || w0 >= w1) return;
  const Range along_q = product(what, operand.a, q0, q1), along_w = product(what, operand.b, w0, w1);
  const std::int64_t least = along_q.least + along_w.least + operand.c;
  FASTGEN_CHECK(least >= 0, what, ": operand ", index, " addresses position ", least);
}

void check_operand(const Program& program, std::size_t index) {
  const Operand& operand = program.operands[index];
  const std::string what = text("operands[", index, "]");
  check_range(what, "buffer", operand.buffer, 0, static_cast<std::int64_t>(program.buffers.size()));
  const Buffer& buffer = program.buffers[operand.buffer];
  check_range(what, "length", operand.length, 1, kMostCells);
  check_range(what, "channel_stride", operand.channel_stride, 0, buffer.channels + 1);
  check_range(what, "channel", operand.channel, 0, buffer.channels);
  FASTGEN_CHECK(operand.channel + (operand.length - 1) * operand.channel_stride < buffer.channels, what, ": channel ", operand.channel,
                " + ", operand.length - 1, " * ", operand.channel_stride, " is outside the buffer's ", buffer.channels, " channels");
  for (std::int64_t value : {operand.a, operand.b}) check_range(what, "coefficient", value, -(1 << 21), 1 << 21);
  for (std::int64_t value : {operand.c, operand.box_q0, operand.box_q1, operand.box_w0, operand.box_w1}) {
    check_range(what, "position", value, -kFar, kFar);
  }
  const std::int64_t constants = static_cast<std::int64_t>(program.constants.size());
  FASTGEN_CHECK(operand.border == -1 || (operand.border >= 0 && operand.border + operand.length <= constants), what, ": border ",
                operand.border, " + ", operand.length, " is outside the ", constants, " constants");
}

void check_written(const Program& program, const std::string& what, std::int64_t index) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(program.buffers[operand.buffer].where == kState, what, ": operand ", index, " is written but lies outside the state");
  FASTGEN_CHECK(operand.channel_stride > 0 || operand.length == 1, what, ": operand ", index, " is written with channel_stride 0");
}

void check_operation(const Program& program, const Code& code, const std::string& what, const Operation& operation) {
  check_range(what, "opcode", operation.opcode, 0, kOpcodes);
  const std::int64_t operands = static_cast<std::int64_t>(program.operands.size());
  if (operation.opcode != kStore) check_range(what, "dst", operation.dst, 0, code.registers);
  const std::int64_t arguments[] = {operation.a, operation.b, operation.c};
  for (int i = 0; i < register_arguments(operation.opcode); ++i) check_range(what, "register", arguments[i], 0, code.registers);
  if (operation.opcode == kLoad || operation.opcode == kStore) {
    const std::int64_t operand = operation.opcode == kLoad ? operation.a : operation.b;
    check_range(what, "operand", operand, 0, operands);
    FASTGEN_CHECK(program.operands[operand].length == code.lanes, what, ": operand ", operand, " has length ",
                  program.operands[operand].length, ", the code has ", code.lanes, " lanes");
    check_positions(program, what, code, operand);
    if (operation.opcode == kStore) check_written(program, what, operand);
  }
  if (operation.opcode >= kSum && operation.opcode <= kAmin) {
    FASTGEN_CHECK(operation.b > 0 && code.lanes % operation.b == 0, what, ": groups of ", operation.b, " do not divide ", code.lanes,
                  " lanes");
  }
}

// How many cells of a PIXEL record answer to one step, at most.
template <typename Lattice>
std::int64_t cells_of_a_step(const Lattice& cells, std::int64_t row_length) {
  const std::int64_t rows = cells.q1 - cells.q0, columns = cells.w1 - cells.w0;
  const std::int64_t row = std::max<std::int64_t>(cells.row_stride * row_length, 1);
  return columns > 0 ? std::min(rows, cells.column_stride * (columns - 1) / row + 1) : 0;
}

// Cells that run together: all of a PROLOGUE code, a row of a ROW code, those of one step of others. As each has a place in the
// buffers that the record writes, there are no more of them than of the places.
void check_cells(const std::string& what, __int128 cells, std::int64_t places) {
  FASTGEN_CHECK(cells <= places, what, ": the lattice has more cells that run together than the ", places,
                " positions of the buffers that are written");
}

void check_code(const Program& program, std::size_t index) {
  const Code& code = program.codes[index];
  const std::string what = text("codes[", index, "]");
  check_range(what, "kind", code.kind, kPrologue, kPixel + 1);
  check_lattice(what, code, program.row_length, code.kind == kPixel);
  check_range(what, "together", code.together, 1, code.kind == kPixel && code.q1 - code.q0 == 1 ? 1 << 10 : 2);
  check_range(what, "lanes", code.lanes, 1, 1 << 24);
  check_range(what, "parts", code.parts, 0, 1 << 10);
  check_range(what, "registers", code.registers, code.parts, 1 << 16);
  check_span(what, "segment", code.segment0, code.segment1, program.segments.size());
  check_span(what, "operation", code.operation0, code.operation1, program.operations.size());
  const std::int64_t outputs = code.parts * code.lanes, constants = static_cast<std::int64_t>(program.constants.size());
  const std::int64_t operands = static_cast<std::int64_t>(program.operands.size());
  FASTGEN_CHECK(code.bias == -1 || (code.bias >= 0 && code.bias + outputs <= constants), what, ": bias ", code.bias, " + ", outputs,
                " is outside the ", constants, " constants");
  check_range(what, "accumulator", code.accumulator, -1, operands);
  FASTGEN_CHECK(code.accumulator == -1 || program.operands[code.accumulator].length == outputs, what,
                ": the accumulator's length is not parts * lanes = ", outputs);
  if (code.accumulator >= 0) check_positions(program, what, code, code.accumulator);
  check_range(what, "weight", code.weight, -1, static_cast<std::int64_t>(program.weight_table.size()));
  FASTGEN_CHECK(code.weight >= 0 || code.segment0 == code.segment1, what, ": has segments but no weight");
  for (std::int64_t s = code.segment0; s < code.segment1; ++s) {
    const Segment& segment = program.segments[s];
    const std::string name = text("segments[", s, "]");
    const Weight& weight = program.weight_table[code.weight];
    check_range(name, "kind", segment.kind, kDense, kIndex + 1);
    check_range(name, "operand", segment.operand, 0, operands);
    const std::int64_t length = segment.kind == kDense ? segment.length : 1;
    check_range(name, "length", segment.length, 1, weight.rows + 1);
    check_range(name, "row", segment.row, 0, weight.rows - segment.length + 1);
    FASTGEN_CHECK(weight.columns == outputs, name, ": the weight has ", weight.columns, " columns, the code ", outputs, " outputs");
    FASTGEN_CHECK(program.operands[segment.operand].length == length, name, ": operand ", segment.operand, " has length ",
                  program.operands[segment.operand].length, ", needed is ", length);
    check_positions(program, name, code, segment.operand);
  }
  for (std::int64_t o = code.operation0; o < code.operation1; ++o) {
    check_operation(program, code, text("operations[", o, "]"), program.operations[o]);
  }
  std::int64_t places = 0;
  for (std::int64_t o = code.operation0; o < code.operation1; ++o) {
    if (program.operations[o].opcode != kStore) continue;
    places = std::max(places, program.buffers[program.operands[program.operations[o].b].buffer].positions);
  }
  check_cells(what,
              code.kind == kPrologue ? static_cast<__int128>(code.q1 - code.q0) * (code.w1 - code.w0)
              : code.kind == kRow    ? code.w1 - code.w0
                                     : cells_of_a_step(code, program.row_length),
              places);
}

void check_draw(const Program& program, std::size_t index) {
  const Draw& draw = program.draws[index];
  const std::string what = text("draws[", index, "]");
  check_lattice(what, draw, program.row_length, true);
  check_span(what, "parameter", draw.parameter0, draw.parameter1, program.operands.size());
  check_span(what, "input", draw.input0, draw.input1, program.operands.size());
  check_range(what, "channels", draw.channels, 1, 1 << 16);
  check_range(what, "channel0", draw.channel0, 0, 1 << 16);
  for (std::int64_t value : {draw.a, draw.b}) check_range(what, "coefficient", value, -(1 << 21), 1 << 21);
  check_range(what, "c", draw.c, -kFar, kFar);
  if (draw.q0 < draw.q1 && draw.w0 < draw.w1) {
    const Range along_q = product(what, draw.a, draw.q0, draw.q1), along_w = product(what, draw.b, draw.w0, draw.w1);
    const std::int64_t least = along_q.least + along_w.least + draw.c;
    FASTGEN_CHECK(least >= 0, what, ": draws position ", least);
  }
  for (std::int64_t i = draw.parameter0; i < draw.parameter1; ++i) check_positions(program, what, draw, i);
  FASTGEN_CHECK(draw.input1 - draw.input0 == draw.channels, what, ": ", draw.input1 - draw.input0, " input operands for ", draw.channels,
                " channels");
  for (std::int64_t i = draw.input0; i < draw.input1; ++i) {
    FASTGEN_CHECK(program.operands[i].length == 1, what, ": input operand ", i, " has length ", program.operands[i].length);
    check_written(program, what, i);
    check_positions(program, what, draw, i);
    check_cells(what, cells_of_a_step(draw, program.row_length), program.buffers[program.operands[i].buffer].positions);
  }
}

}  // namespace

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
    check_range(what, "positions", buffer.positions, buffer.where == kContext ? 0 : 1, buffer.where == kContext ? kFar : kMostCells);
    check_range(what, "offset", buffer.offset, 0, buffer.where == kContext ? 1 << 16 : kFar);
    const std::int64_t size = buffer.where == kState ? program.state_size : static_cast<std::int64_t>(program.constants.size());
    FASTGEN_CHECK(buffer.where == kContext || (buffer.positions <= size / buffer.channels &&
                                               buffer.offset <= size - buffer.positions * buffer.channels),
                  what, ": ", buffer.positions, " x ", buffer.channels, " at ", buffer.offset, " is outside the ", size, " floats");
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
  for (std::size_t i = 0; i < program.codes.size(); ++i) check_code(program, i);
  for (std::size_t i = 0; i < program.draws.size(); ++i) check_draw(program, i);
}

}  // namespace fastgen
