// A program made ready to run: operands bound, weights located, and the codes of each step found without a search.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "program/address.h"
#include "program/heads.h"
#include "cpu/machine/plan/pack.h"
#include "program/program.h"

namespace fastgen {

// Work, in multiply-adds, after which it is time to ask whether to stop: some milliseconds.
constexpr std::int64_t kUnasked = std::int64_t{1} << 26;

struct DenseInput {
  int operand;  // in the code's bound operands
  std::int64_t length;
};
struct IndexInput {
  int operand, table;
};

// As Operation; the operands of load and store are numbers in the code's.
struct PlannedOperation {
  std::int32_t opcode, dst, a, b, c;
  float x, y;
};

struct PlannedCode {
  std::int64_t kind, level, parts, lanes, lane_tiles, registers;
  std::int64_t unit_tiles;  // lane tiles that threads never split
  std::int64_t units;
  bool whole;               // a reduction needs all lanes on one thread
  int lattice;              // number among Plan::lattices, or -1 where the code runs at one step only
  Cell only;                // that step's cell
  std::vector<BoundOperand> operands;
  int accumulator;          // in operands, or -1
  int early;                // the code that runs cells together to sum what the accumulator holds, or -1
  bool together;            // whether it is such a code itself
  const float* bias;        // or null
  bool multiplies;          // registers 0 .. parts - 1 hold sums
  int matrix;               // in the packed weights, or -1
  bool in_place;            // the inputs are read where they lie
  std::int64_t inputs, padded_inputs;
  std::vector<DenseInput> dense;
  std::vector<IndexInput> index;
  std::vector<PlannedOperation> operations;
  std::int64_t chunk;       // items that are computed together
  std::int64_t work;        // of an item, in multiply-adds, about; kUnasked at most
};

struct PlannedDraw {
  Lattice lattice;
  std::vector<BoundOperand> operands;  // parameters, then inputs
  int parameters;                      // how many of them
  int count;                           // of parameter values
  bool in_place;                       // one contiguous parameter operand
  std::int64_t a, b, c, channel0, channels;
};

// The record number of a record that runs at one step only.
struct Once {
  std::int64_t step;
  int record;
};

struct Span {
  std::int64_t begin, end;
};

struct Plan {
  // Keeps pointers into `program.constants`.
  Plan(Program& program, const PackedWeights& weights, const HeadSpec& head);

  // For each code, the units of lanes that each of `threads` threads computes: balanced over the codes of a level.
  std::vector<std::vector<Span>> shares(int threads) const;

  std::vector<PlannedCode> codes;
  std::vector<PlannedDraw> draws;
  std::vector<Lattice> lattices;         // the different ones of the codes that run at many steps
  std::vector<int> prologue, row, pixel;  // codes; pixel only those that run at many steps
  std::vector<Once> codes_once;          // sorted by step, then code
  std::vector<int> draws_often;
  std::vector<Once> draws_once;
  float* constants;
  std::vector<float> zeros;  // what is read outside a box without a border
  std::deque<Box> boxes;
  std::int64_t inputs_floats = 0, registers_floats = 0, addresses = 0, items = 0, parameters = 0, channels = 0;  // scratch of a thread
  std::size_t draw_doubles = 0;
};

}  // namespace fastgen
