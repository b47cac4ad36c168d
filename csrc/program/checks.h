// What the checks of all kinds of instructions share. Each throws std::invalid_argument that begins with `what`.
#pragma once

#include <cstdint>
#include <string>

#include "program/program.h"

namespace fastgen {

constexpr std::int64_t kMostCells = std::int64_t{1} << 31;
constexpr std::int64_t kFar = std::int64_t{1} << 41;  // beyond UNBOUNDED
constexpr std::int64_t kFarther = std::int64_t{1}
                                  << 52;  // of every term of a position or a time: doubles hold their sums exactly

// low <= value < high
void check_range(const std::string& what, const char* field, std::int64_t value, std::int64_t low, std::int64_t high);

// That begin .. end is a range of a table.
void check_span(const std::string& what, const char* field, std::int64_t begin, std::int64_t end, std::size_t size);

// `when` its cells run: what answers to steps has schedules in 64 bits, and only what runs at the starts of rows runs several rows
// at once.
void check_domain(const std::string& what, const IterationDomain& cells, std::int64_t row_length, std::int64_t when);

struct Range {
  std::int64_t least, greatest;
};
// The least and greatest value of coefficient * i for begin <= i < end.
Range product(const std::string& what, std::int64_t coefficient, std::int64_t begin, std::int64_t end);

// The least and greatest value of a map at the cells of a domain.
Range values_of(const std::string& what, const AccessMap& map, const IterationDomain& cells);

// The least position of some cells.
std::int64_t least_position(const std::string& what, const AccessMap& map, const Box& cells);

// That no cell of the domain, inside the operand's box, addresses a position before the first. Where it is no Compute that stores
// and no Attend that reads keys or values, `rounded` is false: the buffer must hold float32.
void check_positions(const Program& program, const std::string& what, const IterationDomain& cells, std::int64_t index,
                     bool rounded = false);

// That an operand of keys or values begins at a float, and holds whole groups of channels that share a scale.
void check_rounded(const Program& program, const std::string& what, std::int64_t index);

void check_map(const std::string& what, const AccessMap& map);
void check_written(const Program& program, const std::string& what, std::int64_t index);

// How many cells of a PIXEL domain answer to one step, at most.
__int128 cells_of_a_step(const IterationDomain& cells, std::int64_t row_length);

// Cells that run together: all of a PROLOGUE instruction, those of one start of a row of a ROW one, those of one step of others.
// As each has a place in the buffers that the instruction writes, there are no more of them than of the places.
void check_cells(const std::string& what, __int128 cells, std::int64_t places);
void check_concurrent(const Program& program, const std::string& what, const Instruction& instruction, std::int64_t places);

void check_attend(const Program& program, const std::string& what, const Instruction& instruction, const Attend& attend);

}  // namespace fastgen
