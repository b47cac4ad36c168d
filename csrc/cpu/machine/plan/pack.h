// Weights in the order in which the kernels read them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "common/arena.h"
#include "cpu/machine/kernels/kernels.h"
#include "program/program.h"

namespace fastgen {

// The dense rows of one weight matrix for one arrangement of its outputs: tiles of 16 lanes in the order (lane tile, part), two
// tiles a block, the last alone where their number is odd.
struct Packed {
  std::int64_t weight;
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;  // (first, count) in the order of the inputs
  std::int64_t parts, lanes;

  std::int64_t inputs = 0;       // sum of the counts
  std::int64_t lane_tiles = 0;   // of a part
  std::size_t offset = 0;        // of the first block, in bytes
  std::size_t block_bytes = 0;   // of a block of two tiles
  std::size_t scales = 0;        // of the first tile's 16 scales, in floats

  std::int64_t tiles() const { return parts * lane_tiles; }
  std::int64_t blocks() const { return (tiles() + 1) / 2; }
  std::int64_t steps(int block_tiles) const { return (inputs * block_tiles + 3) / 4; }
  using Key = std::tuple<std::int64_t, std::vector<std::pair<std::int64_t, std::int64_t>>, std::int64_t, std::int64_t>;
  Key key() const { return {weight, rows, parts, lanes}; }  // of the instructions that share it
};

// The rows of a matrix that an index may choose, row by row: [count, parts, lane_tiles * 16] float32, rounded to the format.
struct Table {
  std::int64_t weight, row, parts, lanes;
  std::int64_t count;      // rows
  std::int64_t width = 0;  // floats of a row
  std::size_t offset = 0;
};

// Every matrix of a program: the dense ones packed one after the other in the order of their first use, and the tables.
class PackedWeights {
 public:
  PackedWeights(const Program& program, Format format);

  // The number of the packed matrix of a Compute, or -1 where it multiplies nothing dense.
  int of_compute(std::size_t number) const { return of_compute_[number]; }
  const Packed& matrix(int number) const { return matrices_[number]; }
  // The number of the table of an index segment of a Compute.
  int table_of(const Compute& compute, const Segment& segment) const { return table_numbers_.at(table_key(compute, segment)); }
  const Table& table(int number) const { return tables_[number]; }
  const float* table_row(const Table& table, std::int64_t row) const {
    return table_values_.data() + table.offset + static_cast<std::size_t>(row * table.width);
  }
  const unsigned char* begin() const { return arena_.data(); }
  const unsigned char* block(const Packed& matrix, std::int64_t block) const {
    return arena_.data() + matrix.offset + static_cast<std::size_t>(block) * matrix.block_bytes;
  }
  const float* scales(const Packed& matrix, std::int64_t tile) const {
    return format_ == Format::int8 ? scales_.data() + matrix.scales + tile * kTile : nullptr;
  }
  Format format() const { return format_; }
  std::size_t bytes() const { return arena_.size() + (table_values_.size() + scales_.size()) * sizeof(float); }

  // Packs the values of `weights`, the program's arena.
  void fill(const Program& program, const float* weights);

 private:
  using TableKey = std::array<std::int64_t, 5>;
  static TableKey table_key(const Compute& compute, const Segment& segment);
  void fill_matrix(const Program& program, const Packed& matrix, const float* weights);
  void fill_table(const Program& program, const Table& table, const float* weights);
  float column_scale(const Weight& weight, const float* column) const;

  Format format_;
  std::vector<Packed> matrices_;
  std::vector<int> of_compute_;
  std::vector<Table> tables_;
  std::map<TableKey, int> table_numbers_;
  std::vector<float> table_values_;
  std::vector<float> scales_;
  Arena arena_;
};

}  // namespace fastgen
