#include "program/program.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string>

#include "common/check.h"
#include "program/checks.h"

namespace fastgen {
namespace {

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
  const Box& box = operand.box;
  for (std::int64_t value : {box.row0, box.row1, box.column0, box.column1, box.frame0, box.frame1}) {
    check_range(what, "box", value, -kFar, kFar);
  }
  const std::int64_t constants = static_cast<std::int64_t>(program.constants.size());
  FASTGEN_CHECK(operand.border == -1 || (operand.border >= 0 && operand.border + operand.length <= constants), what, ": border ",
                operand.border, " + ", operand.length, " is outside the ", constants, " constants");
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
    check_positions(program, what, instruction.domain, operand, operation.opcode == kStore);
    if (operation.opcode == kStore) check_written(program, what, operand);
    if (operation.opcode == kStore) check_rounded(program, what, operand);
  }
  if (is_reduction(operation.opcode)) {
    FASTGEN_CHECK(operation.b > 0 && compute.lanes % operation.b == 0, what, ": groups of ", operation.b, " do not divide ",
                  compute.lanes, " lanes");
  }
}

void check_compute(const Program& program, const std::string& what, const Instruction& instruction, const Compute& compute) {
  const IterationDomain& cells = instruction.domain;
  check_domain(what, cells, program.row_length, instruction.when);
  const bool one_row = cells.row1 - cells.row0 == 1 && cells.frame1 - cells.frame0 == 1;
  check_range(what, "block", compute.block, 1, instruction.when == kPixel && one_row ? 1 << 10 : 2);
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
  check_domain(what, cells, program.row_length, kPixel);
  check_span(what, "parameter", draw.parameter0, draw.parameter1, program.operands.size());
  check_span(what, "input", draw.input0, draw.input1, program.operands.size());
  check_range(what, "channels", draw.channels, 1, 1 << 16);
  check_range(what, "channel0", draw.channel0, 0, 1 << 16);
  check_map(what, draw.map);
  if (!cells.empty()) {
    const std::int64_t least = least_position(what, draw.map, Box::of(cells));
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

// That the instructions of a loop lie side by side, and are computed at steps.
void check_loops(const Program& program) {
  std::set<std::int64_t> seen;
  std::int64_t before = 0;
  for (std::size_t i = 0; i < program.instructions.size(); ++i) {
    const Instruction& instruction = program.instructions[i];
    const std::string what = text("instructions[", i, "]");
    check_range(what, "loop", instruction.loop, 0, kFar);
    FASTGEN_CHECK(instruction.loop == 0 || (instruction.kind != kDraw && instruction.when == kPixel), what,
                  ": a loop has no such instruction");
    FASTGEN_CHECK(instruction.loop == 0 || instruction.loop == before || seen.insert(instruction.loop).second, what,
                  ": the instructions of its loop do not lie side by side");
    before = instruction.loop;
  }
}

}  // namespace

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
    check_range(what, "format", static_cast<std::int64_t>(buffer.format), 0, buffer.where == kState ? kFormats : 1);
    const bool scaled = buffer.format == Format::int8;
    check_range(what, "group", buffer.group, scaled, scaled ? buffer.channels + 1 : 1);
    FASTGEN_CHECK(!scaled || buffer.channels % buffer.group == 0, what, ": groups of ", buffer.group, " do not divide ",
                  buffer.channels, " channels");
    const std::int64_t size = buffer.where == kState ? program.state_size : static_cast<std::int64_t>(program.constants.size());
    FASTGEN_CHECK(buffer.where == kContext ||
                      (buffer.positions <= size / buffer.stride() && buffer.offset <= size - buffer.positions * buffer.stride()),
                  what, ": ", buffer.positions, " x ", buffer.stride(), " at ", buffer.offset, " is outside the ", size,
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
  check_loops(program);
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
