#include "program/checks.h"

#include <algorithm>

#include "common/check.h"

namespace fastgen {
namespace {

bool beyond(std::int64_t coefficient, std::int64_t value, std::int64_t limit) {
  const __int128 product = static_cast<__int128>(coefficient) * value;
  return product > limit || product < -limit;
}

}  // namespace

void check_range(const std::string& what, const char* field, std::int64_t value, std::int64_t low, std::int64_t high) {
  FASTGEN_CHECK(value >= low && value < high, what, ": ", field, " is ", value, ", allowed are ", low, " .. ", high - 1);
}

void check_span(const std::string& what, const char* field, std::int64_t begin, std::int64_t end, std::size_t size) {
  FASTGEN_CHECK(0 <= begin && begin <= end && end <= static_cast<std::int64_t>(size), what, ": ", field, " range ", begin, " .. ",
                end, " is outside the table of ", size);
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

Range product(const std::string& what, std::int64_t coefficient, std::int64_t begin, std::int64_t end) {
  FASTGEN_CHECK(!beyond(coefficient, begin, kFarther) && !beyond(coefficient, end - 1, kFarther), what, ": ", coefficient, " * ",
                begin, " .. ", end - 1, " is too large for a position");
  const std::int64_t first = coefficient * begin, last = coefficient * (end - 1);
  return {std::min(first, last), std::max(first, last)};
}

std::int64_t least_position(const std::string& what, const AccessMap& map, const Box& cells) {
  const Range rows = product(what, map.row_stride, cells.row0, cells.row1);
  const Range columns = product(what, map.column_stride, cells.column0, cells.column1);
  return rows.least + columns.least + map.offset;
}

void check_positions(const Program& program, const std::string& what, const IterationDomain& cells, std::int64_t index,
                     bool rounded) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(rounded || program.buffers[operand.buffer].format == Format::float32, what, ": operand ", index,
                " must lie in a float32 buffer");
  const Box inside = {std::max(cells.row0, operand.box.row0), std::min(cells.row1, operand.box.row1),
                      std::max(cells.column0, operand.box.column0), std::min(cells.column1, operand.box.column1)};
  if (inside.row0 >= inside.row1 || inside.column0 >= inside.column1) return;
  const std::int64_t least = least_position(what, operand.map, inside);
  FASTGEN_CHECK(least >= 0, what, ": operand ", index, " addresses position ", least);
}

void check_rounded(const Program& program, const std::string& what, std::int64_t index) {
  const Operand& operand = program.operands[index];
  const Buffer& buffer = program.buffers[operand.buffer];
  if (buffer.format == Format::float32) return;
  const std::int64_t group = buffer.format == Format::int8 ? buffer.group : 1, word = buffer.format == Format::int8 ? 4 : 2;
  const bool whole = operand.channel % word == 0 && operand.channel % group == 0 && operand.length % group == 0;
  FASTGEN_CHECK(whole && (operand.channel_stride == 1 || operand.length == 1), what, ": operand ", index,
                " must have whole groups of neighbouring channels, from a whole number of the state on");
}

void check_map(const std::string& what, const AccessMap& map) {
  for (std::int64_t stride : {map.row_stride, map.column_stride}) check_range(what, "stride", stride, -(1 << 21), 1 << 21);
  check_range(what, "offset", map.offset, -kFar, kFar);
}

Range values_of(const std::string& what, const AccessMap& map, const IterationDomain& cells) {
  const Range rows = product(what, map.row_stride, cells.row0, cells.row1);
  const Range columns = product(what, map.column_stride, cells.column0, cells.column1);
  return {rows.least + columns.least + map.offset, rows.greatest + columns.greatest + map.offset};
}

void check_written(const Program& program, const std::string& what, std::int64_t index) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(program.buffers[operand.buffer].where == kState, what, ": operand ", index,
                " is written but lies outside the state");
  FASTGEN_CHECK(operand.channel_stride > 0 || operand.length == 1, what, ": operand ", index,
                " is written with channel_stride 0");
}

std::int64_t cells_of_a_step(const IterationDomain& cells, std::int64_t row_length) {
  const std::int64_t rows = cells.row1 - cells.row0, columns = cells.column1 - cells.column0;
  const std::int64_t row = std::max<std::int64_t>(cells.row_stride * row_length, 1);
  return columns > 0 ? std::min(rows, cells.column_stride * (columns - 1) / row + 1) : 0;
}

void check_cells(const std::string& what, __int128 cells, std::int64_t places) {
  FASTGEN_CHECK(cells <= places, what, ": the domain has more cells that run together than the ", places,
                " positions of the buffers that are written");
}

void check_concurrent(const Program& program, const std::string& what, const Instruction& instruction, std::int64_t places) {
  const IterationDomain& cells = instruction.domain;
  check_cells(what,
              instruction.when == kPrologue ? static_cast<__int128>(cells.row1 - cells.row0) * (cells.column1 - cells.column0)
              : instruction.when == kRow    ? cells.column1 - cells.column0
                                            : cells_of_a_step(cells, program.row_length),
              places);
}

}  // namespace fastgen
