// The step program (fastgen/generate/ir/program.py explains it), and its checks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <variant>
#include <vector>

#include "program/format.h"
#include "program/opcodes.h"

namespace fastgen {

enum When : std::int64_t { kPrologue = 0, kRow = 1, kPixel = 2 };
enum Where : std::int64_t { kState = 0, kConstant = 1, kContext = 2 };
enum SegmentKind : std::int64_t { kDense = 0, kIndex = 1 };

// The records have the fields of the Python records (fastgen/generate/ir/instructions.py), in the same order, so that a table's row
// is a record's memory.

// The cells (frame, row, column) with frame0 <= frame < frame1, row0 <= row < row1 and column0 <= column < column1, and their
// affine schedule; all but videos have one frame, 0.
struct IterationDomain {
  std::int64_t row_stride, column_stride, delay, row0, row1, column0, column1, frame_stride = 1, frame0 = 0, frame1 = 1;
  bool empty() const { return row0 == row1 || column0 == column1 || frame0 == frame1; }
};
// For the cell (frame, row, column) the position frame_stride frame + row_stride row + column_stride column + offset.
struct AccessMap {
  std::int64_t row_stride, column_stride, offset, frame_stride = 0;
};
struct Box {
  std::int64_t row0, row1, column0, column1, frame0, frame1;
  static Box of(const IterationDomain& cells) {
    return {cells.row0, cells.row1, cells.column0, cells.column1, cells.frame0, cells.frame1};
  }
  Box within(const Box& other) const {
    return {std::max(row0, other.row0),       std::min(row1, other.row1),     std::max(column0, other.column0),
            std::min(column1, other.column1), std::max(frame0, other.frame0), std::min(frame1, other.frame1)};
  }
  bool empty() const { return row0 >= row1 || column0 >= column1 || frame0 >= frame1; }
  bool holds(const IterationDomain& cells) const {
    return row0 <= cells.row0 && cells.row1 <= row1 && column0 <= cells.column0 && cells.column1 <= column1 &&
           frame0 <= cells.frame0 && cells.frame1 <= frame1;
  }
};
// A position of int8 values is followed by a scale for each `group` of its channels.
struct Buffer {
  std::int64_t where, channels, positions, offset;
  Format format;
  std::int64_t group;
  std::int64_t words() const {  // floats that hold a position's channels, without the scales
    return format == Format::float32 ? channels : format == Format::bfloat16 ? (channels + 1) / 2 : (channels + 3) / 4;
  }
  std::int64_t stride() const { return words() + (format == Format::int8 ? channels / group : 0); }  // between positions
};
struct Operand {
  std::int64_t buffer, channel, channel_stride, length;
  AccessMap map;
  Box box;
  std::int64_t border;
};
struct Segment {
  std::int64_t operand, kind, row, length;
};
struct Weight {
  std::int64_t offset, rows, columns;
};
struct OperationRow {
  std::int64_t opcode, dst, a, b, c;
};
struct Operation : OperationRow {
  float x, y;
};

// The keys that a query sees: those of the runs run0 .. run1.
struct KeySet {
  std::int64_t run0, run1;
};
// The keys first, first + step, ... below stop: first = max(low, start(cell)), stop = min(high, end(cell)).
struct KeyRun {
  AccessMap start;
  std::int64_t low;
  AccessMap end;
  std::int64_t high, step;
};
// For a query, a key and a head the channel offset + row_stride row + column_stride column + key_stride key + head_stride head of
// the operand's buffer, at the position that the operand's access map gives the cell.
struct ScoreOperand {
  std::int64_t operand, offset, row_stride, column_stride, key_stride, head_stride;
};

// The bodies of instructions.
struct Compute {
  std::int64_t segment0, segment1, weight, bias, accumulator, parts, lanes, operation0, operation1, registers, block;
};
struct Draw {
  std::int64_t parameter0, parameter1;
  AccessMap map;
  std::int64_t channel0, channels, input0, input1;
};
struct Attend {
  std::int64_t query, key, value, out, heads, groups;
  AccessMap keys;
  std::int64_t operation0, operation1, weighting0, weighting1, registers, softmax, least;
};
using Body = std::variant<Compute, Draw, Attend>;
enum Kind : std::int64_t { kCompute = 0, kDraw = 1, kAttend = 2 };
static_assert(std::is_same_v<std::variant_alternative_t<kCompute, Body>, Compute>);
static_assert(std::is_same_v<std::variant_alternative_t<kDraw, Body>, Draw>);
static_assert(std::is_same_v<std::variant_alternative_t<kAttend, Body>, Attend>);

// What all instructions share; `kind` is a Kind, `loop` the number of a loop or 0.
struct Header {
  std::int64_t kind, when, level, loop;
  IterationDomain domain;
};
struct Instruction : Header {
  Body body;
};

struct Program {
  std::int64_t steps = 0, row_length = 0, state_size = 0, lookahead = 0;
  std::vector<Buffer> buffers;
  std::vector<Operand> operands;
  std::vector<Segment> segments;
  std::vector<Weight> weight_table;
  std::vector<Operation> operations;
  std::vector<KeySet> key_sets;
  std::vector<KeyRun> key_runs;
  std::vector<ScoreOperand> score_operands;
  std::vector<Instruction> instructions;
  std::vector<float> constants;
  std::int64_t weights_size = 0;
};

// Calls function(instruction, body, number among the instructions of this kind) for each whose body is a BodyKind.
template <typename BodyKind, typename Function>
void each_of_kind(const Program& program, Function function) {
  std::size_t number = 0;
  for (const Instruction& instruction : program.instructions) {
    if (const BodyKind* body = std::get_if<BodyKind>(&instruction.body)) function(instruction, *body, number++);
  }
}

// The instructions of a program from their headers and the bodies of each kind, both in the order of the program. Throws
// std::invalid_argument unless every header has a body.
std::vector<Instruction> instructions_of(const std::vector<Header>& headers, const std::vector<Compute>& computes,
                                         const std::vector<Draw>& draws, const std::vector<Attend>& attends);

// The rows of a table.
struct Rows {
  std::int64_t begin, end;
};
// The key sets that an Attend chooses from at the cells of its domain.
Rows key_sets_of(const Attend& attend, const IterationDomain& cells);
// The keys that may be seen, from the least to the greatest, and how many of them at once, at most.
struct KeyBounds {
  std::int64_t least, end, count;
};
KeyBounds key_bounds(const Program& program, const Attend& attend, const IterationDomain& cells);

// Throws std::invalid_argument that names the record and the field unless every index of the program is inside its table, every
// operand inside its buffer at every cell of the domains that use it, every weight row inside its matrix, and every register inside
// the instruction's registers; no sum of a position or a time leaves 64 bits, and no instruction runs more cells at once than it
// stores.
void check(const Program& program);

}  // namespace fastgen
