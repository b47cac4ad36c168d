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

void check_domain(const std::string& what, const IterationDomain& cells, std::int64_t row_length, std::int64_t when) {
  FASTGEN_CHECK(cells.row0 <= cells.row1 && cells.column0 <= cells.column1 && cells.frame0 <= cells.frame1, what,
                ": the domain of frames ", cells.frame0, " .. ", cells.frame1, ", rows ", cells.row0, " .. ", cells.row1,
                " and columns ", cells.column0, " .. ", cells.column1, " runs backwards");
  for (std::int64_t value : {cells.row0, cells.row1, cells.column0, cells.column1, cells.frame0, cells.frame1, cells.delay}) {
    check_range(what, "domain", value, -kFar, kFar);
  }
  check_range(what, "row_stride", cells.row_stride, when == kPixel && cells.row1 - cells.row0 > 1 ? 1 : 0, 1 << 20);
  check_range(what, "column_stride", cells.column_stride, cells.column1 - cells.column0 > 1 ? 1 : 0, 1 << 20);
  check_range(what, "frame_stride", cells.frame_stride, cells.frame1 - cells.frame0 > 1 ? 1 : 0, 1 << 20);
  if (when != kPixel) return;
  constexpr std::int64_t kLongest = std::int64_t{1} << 60;
  for (std::int64_t row : {cells.row0, cells.row1}) {
    FASTGEN_CHECK(!beyond(cells.row_stride, row_length, kLongest) && !beyond(cells.row_stride * row_length, row, kLongest), what,
                  ": rows of ", row_length, " steps are too long for rows ", cells.row0, " .. ", cells.row1);
  }
  for (std::int64_t frame : {cells.frame0, cells.frame1}) {
    FASTGEN_CHECK(!beyond(cells.frame_stride, row_length, kLongest) && !beyond(cells.frame_stride * row_length, frame, kLongest),
                  what, ": frames of ", cells.frame_stride, " rows are too long for frames ", cells.frame0, " .. ", cells.frame1);
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
  const Range frames = product(what, map.frame_stride, cells.frame0, cells.frame1);
  return frames.least + rows.least + columns.least + map.offset;
}

void check_positions(const Program& program, const std::string& what, const IterationDomain& cells, std::int64_t index,
                     bool rounded) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(rounded || program.buffers[operand.buffer].format == Format::float32, what, ": operand ", index,
                " must lie in a float32 buffer");
  const Box inside = Box::of(cells).within(operand.box);
  if (inside.empty()) return;
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
  check_range(what, "stride", map.frame_stride, -kMostCells, kMostCells);
  check_range(what, "offset", map.offset, -kFar, kFar);
}

Range values_of(const std::string& what, const AccessMap& map, const IterationDomain& cells) {
  const Range rows = product(what, map.row_stride, cells.row0, cells.row1);
  const Range columns = product(what, map.column_stride, cells.column0, cells.column1);
  const Range frames = product(what, map.frame_stride, cells.frame0, cells.frame1);
  return {frames.least + rows.least + columns.least + map.offset,
          frames.greatest + rows.greatest + columns.greatest + map.offset};
}

void check_written(const Program& program, const std::string& what, std::int64_t index) {
  const Operand& operand = program.operands[index];
  FASTGEN_CHECK(program.buffers[operand.buffer].where == kState, what, ": operand ", index,
                " is written but lies outside the state");
  FASTGEN_CHECK(operand.channel_stride > 0 || operand.length == 1, what, ": operand ", index,
                " is written with channel_stride 0");
}

__int128 cells_of_a_step(const IterationDomain& cells, std::int64_t row_length) {
  const std::int64_t rows = cells.row1 - cells.row0, columns = cells.column1 - cells.column0;
  const std::int64_t row = std::max<std::int64_t>(cells.row_stride * row_length, 1);
  const std::int64_t frame = std::max<std::int64_t>(cells.frame_stride * row_length, 1);
  if (cells.empty()) return 0;
  const std::int64_t along = cells.column_stride * (columns - 1), span = cells.row_stride * row_length * (rows - 1) + along;
  return static_cast<__int128>(std::min(rows, along / row + 1)) * std::min(cells.frame1 - cells.frame0, span / frame + 1);
}

// How many rows of cells of a ROW domain answer to the start of one row of steps, at most.
std::int64_t rows_of_a_start(const IterationDomain& cells) {
  const std::int64_t rows = cells.row1 - cells.row0, frames = cells.frame1 - cells.frame0;
  if (cells.row_stride == 0 || frames < 2) return cells.row_stride == 0 ? rows : 1;
  return std::min(frames, cells.row_stride * (rows - 1) / cells.frame_stride + 1);
}

void check_cells(const std::string& what, __int128 cells, std::int64_t places) {
  FASTGEN_CHECK(cells <= places, what, ": the domain has more cells that run together than the ", places,
                " positions of the buffers that are written");
}

void check_concurrent(const Program& program, const std::string& what, const Instruction& instruction, std::int64_t places) {
  const IterationDomain& cells = instruction.domain;
  check_cells(what,
              instruction.when == kPrologue ? static_cast<__int128>(cells.row1 - cells.row0) * (cells.column1 - cells.column0) *
                                                  (cells.frame1 - cells.frame0)
              : instruction.when == kRow    ? static_cast<__int128>(rows_of_a_start(cells)) * (cells.column1 - cells.column0)
                                            : cells_of_a_step(cells, program.row_length),
              places);
}

}  // namespace fastgen
