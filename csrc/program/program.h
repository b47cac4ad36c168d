// The step program (fastgen/generate/ir/program.py documents the format), and its checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "program/opcodes.h"

namespace fastgen {

enum Kind : std::int64_t { kPrologue = 0, kRow = 1, kPixel = 2 };
enum Where : std::int64_t { kState = 0, kConstant = 1, kContext = 2 };
enum SegmentKind : std::int64_t { kDense = 0, kIndex = 1 };

// The records have the fields of the Python records, in the same order, so that a table's row is a record's memory.
struct Buffer {
  std::int64_t where, channels, positions, offset;
};
struct Operand {
  std::int64_t buffer, channel, channel_stride, length, a, b, c, box_q0, box_q1, box_w0, box_w1, border;
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
struct Code {
  std::int64_t kind, level, row_stride, column_stride, delay, q0, q1, w0, w1, segment0, segment1, weight, bias, accumulator, parts,
      lanes, operation0, operation1, registers, together;
};
struct Draw {
  std::int64_t row_stride, column_stride, delay, q0, q1, w0, w1, parameter0, parameter1, a, b, c, channel0, channels, input0,
      input1;
};

struct Program {
  std::int64_t steps = 0, row_length = 0, state_size = 0, lookahead = 0;
  std::vector<Buffer> buffers;
  std::vector<Operand> operands;
  std::vector<Segment> segments;
  std::vector<Weight> weight_table;
  std::vector<Operation> operations;
  std::vector<Code> codes;
  std::vector<Draw> draws;
  std::vector<float> constants;
  std::int64_t weights_size = 0;
};

// Throws std::invalid_argument that names the record and the field unless every index of the program is inside its table, every
// operand inside its buffer at every cell of the lattices that use it, every weight row inside its matrix, and every register
// inside the code's registers; no sum of a position or a time leaves 64 bits, and no code runs more cells at once than it stores.
void check(const Program& program);

}  // namespace fastgen
