// A program made ready to run: operands bound, weights located, and the instructions of each step found without a search.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "program/access.h"
#include "program/heads.h"
#include "cpu/machine/plan/pack.h"
#include "program/program.h"

namespace fastgen {

// Work, in multiply-adds, after which it is time to ask whether to stop: some milliseconds.
constexpr std::int64_t kUnasked = std::int64_t{1} << 26;

struct DenseInput {
  int operand;  // in the instruction's bound operands
  std::int64_t length;
};
struct IndexInput {
  int operand, table;
};

// As Operation, with what opcodes.def says of it; the operands of load and store are numbers in the instruction's. A store of int8
// has as c how many channels share a scale, and as dst how many floats behind its first channel the first scale lies.
struct PlannedOperation {
  std::int16_t opcode;
  OpcodeForm form;
  std::int8_t arguments;  // registers that it reads
  std::int32_t dst, a, b, c;
  float x, y;
};

// What a load of a program over the keys reads: the operand is a number in the instruction's.
struct ScoreInput {
  int operand;
  std::int64_t offset, row_stride, column_stride, key_stride, head_stride;
};

struct PlannedAttend {
  int query, out;           // in the instruction's operands
  BoundOperand key, value;  // at the cell (0, key)
  std::int64_t heads, groups, depth, width;
  AccessMap keys;           // to the number of the key set
  bool softmax;
  const float* least;       // or null
  std::int64_t registers;
  Format key_format, value_format;
  std::int64_t key_scales, value_scales, scale_register;  // for int8: floats from a row's first channel to its scales
  std::vector<PlannedOperation> scores, weighting;  // loads name inputs
  std::vector<ScoreInput> inputs;
};

struct PlannedCompute {
  std::int64_t level, loop, parts, lanes, lane_tiles, registers;
  std::int64_t unit_tiles;  // lane tiles that threads never split
  std::int64_t units;
  bool whole;               // a reduction needs all lanes on one thread
  int domain;               // number among Plan::domains, or -1 where the instruction runs at one step only
  Cell only;                // that step's cell
  std::int64_t step;        // that step
  std::vector<BoundOperand> operands;
  int accumulator;          // in operands, or -1
  int hoisted;              // the Compute that runs blocks of cells to sum what the accumulator holds, or -1
  bool in_blocks;           // whether it is such a Compute itself
  const float* bias;        // or null
  bool multiplies;          // registers 0 .. parts - 1 hold sums
  int matrix;               // in the packed weights, or -1
  bool in_place;            // the inputs are read where they lie
  std::int64_t inputs, padded_inputs;
  std::vector<DenseInput> dense;
  std::vector<IndexInput> index;
  std::vector<PlannedOperation> operations;
  int attend;               // number among Plan::attends; -1 for a Compute
  std::int64_t chunk;       // items that are computed together
  std::int64_t work;        // of an item, in multiply-adds, about; kUnasked at most
};

struct PlannedDraw {
  TimedDomain domain;
  std::vector<BoundOperand> operands;  // parameters, then inputs
  int parameters;                      // how many of them
  int count;                           // of parameter values
  bool in_place;                       // one contiguous parameter operand
  AccessMap map;
  std::int64_t channel0, channels;
};

// A Compute, an Attend or a Draw that runs at one step only.
struct Once {
  std::int64_t step;
  int number;
};

struct Span {
  std::int64_t begin, end;
};

struct Plan {
  // Keeps pointers into `program.constants`.
  Plan(Program& program, const PackedWeights& weights, const HeadSpec& head);

  // For each Compute, the units of lanes that each of `threads` threads computes: balanced over those of a level.
  std::vector<std::vector<Span>> shares(int threads) const;

  std::vector<PlannedCompute> computes;  // and attends, in the order of the program
  std::vector<PlannedAttend> attends;
  std::vector<KeySet> key_sets;
  std::vector<KeyRun> key_runs;
  std::vector<IterationDomain> iterations;  // of computes
  std::vector<PlannedDraw> draws;
  std::vector<TimedDomain> domains;       // the different ones of the computes that run at many steps
  std::vector<int> prologue, row, pixel;  // computes; pixel only those that run at many steps
  std::vector<Once> computes_once;        // sorted by step, then number
  std::vector<int> draws_often;
  std::vector<Once> draws_once;
  float* constants;
  std::vector<float> zeros;  // what is read outside a box without a border
  std::deque<BorderedBox> boxes;
  std::int64_t inputs_floats = 0, registers_floats = 0, addresses = 0, items = 0, parameters = 0, channels = 0, score_floats = 0,
               key_spans = 0;  // scratch of a thread
  std::size_t draw_doubles = 0;
};

}  // namespace fastgen
