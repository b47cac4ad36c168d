// One thread's part of the machine: executes instructions for a share of the samples, cells or lanes.
#pragma once

#include <cstdint>
#include <vector>

#include "program/access.h"
#include "cpu/machine/exec/failure.h"
#include "cpu/machine/exec/interrupt.h"
#include "cpu/machine/kernels/kernels.h"
#include "cpu/machine/plan/pack.h"
#include "cpu/machine/plan/plan.h"

namespace fastgen {

// What a worker computes of an instruction.
struct Share {
  Span samples;
  Span units;  // of lanes
};

// Some of the keys that a query sees, at equal distances in memory.
struct KeySpan {
  std::int64_t first, count, step;  // of the keys
};
struct KeyRows {
  const float* base;  // of the first key's channels, in sample 0
  std::int64_t sample_stride;
  std::ptrdiff_t stride;
  std::int64_t count;
};

class Worker {
 public:
  Worker(const Plan& plan, const PackedWeights& weights, const HeadSpec& head, const Kernels& kernels, Failure& failure);

  // Before a run. Now and then the worker of the calling thread `asks` the interrupt. Where all threads are in the same step, they
  // leave `together` after it; once it is broken off, what a worker is told to do is not done.
  void begin(Interrupt& interrupt, bool asks, bool together);
  bool stopped() const { return stopped_; }

  // Runs a Compute at `count` cells.
  void execute(int number, const Cell* cells, std::int64_t count, const Share& share, const GenerationBatch& run,
               std::int64_t step);

  // Asks for what the plan says of the computes that follow the one at `place`: the weights of a step have driven that, too, out
  // of the near caches.
  void expect_tables(const std::vector<int>& computes, std::size_t place) const;

  // Asks for the inputs of a Compute in rings, which the weights of a step have driven out of the near caches.
  void prefetch(int number, Span samples, const GenerationBatch& run);

  // Draws, or scores where all is known, the elements of step t; the inputs are written unless `inputs_written`.
  void draw_step(std::int64_t t, Span samples, const GenerationBatch& run, bool inputs_written);

  // An element of step t that is not known is a failure.
  void check_known(std::int64_t t, Span samples, const GenerationBatch& run);

  // Writes the inputs of the elements of step t, all known.
  void write_known(std::int64_t t, Span samples, const GenerationBatch& run);

  // The computes that run within the steps [t0, t1), in the order of the program, with cells_of() for each.
  const std::vector<int>& collect(std::int64_t t0, std::int64_t t1);
  const std::vector<Cell>& cells_of(int number);

  // The cells of one of them at step t.
  const std::vector<Cell>& cells_at(int number, std::int64_t t);

 private:
  struct Tile {
    const PlannedCompute* planned;
    std::int64_t lane0, lanes, width;      // first lane, how many, and padded to whole tiles
    std::int64_t lane_tile0, lane_tile1;
    std::int64_t register_stride;
    const Cell* cells;
    std::int64_t cell_count, sample0, samples;
    const GenerationBatch* run;
    std::int64_t step;
    std::int64_t items() const { return cell_count * samples; }
  };

  void compute(const Tile& tile);
  // Whether the run goes on, given how much is to be computed next, in about the time of a multiply-add.
  bool goes_on(std::int64_t work, std::int64_t step) {
    if ((work_ += work) >= kUnasked) ask(step);
    return !stopped_;
  }
  void ask(std::int64_t step);
  // Asks for the next lines of the weights: between two products of one item memory would have nothing to do.
  void look_ahead(int lines) {
    for (int i = 0; i < lines; ++i, ahead_ += 64) __builtin_prefetch(ahead_, 0, 2);
  }
  void resolve(const BoundOperand* operands, std::size_t count, Cell cell, const GenerationBatch& run, std::int64_t step,
               Address* addresses);
  void resolve(const Tile& tile);
  // Runs an Attend at cells for some samples and groups of heads.
  void attend(const PlannedCompute& planned, const Cell* cells, std::int64_t count, const Share& share,
              const GenerationBatch& run, std::int64_t step);
  void list_keys(const PlannedAttend& planned, Cell cell, const GenerationBatch& run);
  void list_rows(const BoundOperand& operand, const GenerationBatch& run, std::int64_t step, std::vector<KeyRows>& rows);
  void attend_head(const PlannedAttend& planned, std::int64_t head, Cell cell, std::int64_t sample, std::int64_t step);
  // Multiplies the scores of a head by the scales of its int8 keys or values.
  void scale_scores(const PlannedAttend& planned, const std::vector<KeyRows>& rows, std::int64_t scales, std::int64_t sample);
  // Stores a row of keys or values in a format of less than 32 bits, from the lane `lane0` on.
  void store_rounded(const PlannedOperation& store, Format format, float* row, const float* from, std::int64_t lane0,
                     std::int64_t lanes);
  void score(const PlannedAttend& planned, const std::vector<PlannedOperation>& operations, std::int64_t head, Cell cell,
             std::int64_t sample);
  void start(const Tile& tile);
  void add_table_rows(const Tile& tile);
  void multiply(const Tile& tile);
  void apply(const Tile& tile);
  void draw_cell(const PlannedDraw& draw, Cell cell, std::int64_t t, Span samples, const GenerationBatch& run,
                 bool inputs_written);
  void draw_in_python(const PlannedDraw& planned, std::int64_t position, std::int64_t t, Span samples, const GenerationBatch& run,
                      bool inputs_written);
  void report_status(DrawStatus status, std::int64_t step, std::int64_t position, std::int64_t b);
  void keep_parameters(const PlannedDraw& planned, std::int64_t place, std::int64_t b, const GenerationBatch& run);
  template <typename Function>
  void each_draw(std::int64_t t, Function function);
  template <typename Function>
  void each_known(std::int64_t t, Span samples, const GenerationBatch& run, Function function);
  // Calls function(item, address of the operand for that item's sample).
  template <typename Function>
  void each_item(const Tile& tile, int operand, Function function);

  const Plan& plan_;
  const PackedWeights& weights_;
  const HeadSpec& head_;
  const Kernels& kernels_;
  Failure& failure_;
  Interrupt* interrupt_ = nullptr;
  bool asks_ = false, together_ = false, stopped_ = false;
  std::int64_t work_ = 0;  // since the last question
  Arena inputs_, registers_, parameters_, values_, scratch_;
  std::vector<float> batch_parameters_, batch_inputs_;  // of a draw in Python
  std::vector<const float*> input_pointers_;
  std::vector<Address> addresses_;
  std::vector<std::vector<Cell>> domain_cells_;
  std::vector<Cell> once_cell_, step_cells_, draw_cells_;
  const unsigned char* ahead_;  // in the packed weights, or a little beyond them
  std::vector<int> active_, once_active_;
  std::vector<KeySpan> keys_;  // of the query at hand, their number, and where they and their values lie
  std::int64_t key_count_ = 0;
  std::vector<KeyRows> key_rows_, value_rows_;
  std::vector<float> scores_;  // registers of as many values as there are keys
};

}  // namespace fastgen
