// The cells of an iteration domain in time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "program/program.h"

namespace fastgen {

struct Cell {
  std::int64_t row, column;
};

// The domain of a PIXEL instruction with its schedule in steps: cell (row, column) runs at step
// row_steps row + column_steps column + delay. Of one row, a `block` of cells may run at the step of the first of them.
struct TimedDomain {
  std::int64_t row_steps, column_steps, delay, row0, row1, column0, column1, block;

  static TimedDomain of(const IterationDomain& domain, std::int64_t row_length, std::int64_t block = 1) {
    const bool one_row = domain.row1 - domain.row0 <= 1;
    const __int128 first_row = static_cast<__int128>(row_length) * domain.row_stride * domain.row0;
    return {one_row ? 0 : row_length * domain.row_stride,
            std::max<std::int64_t>(domain.column_stride, 1),
            one_row ? domain.delay + static_cast<std::int64_t>(first_row) : domain.delay,
            domain.row0,
            domain.row1,
            domain.column0,
            domain.column1,
            block};
  }

  using Key = std::array<std::int64_t, 8>;
  Key key() const { return {row_steps, column_steps, delay, row0, row1, column0, column1, block}; }
  bool operator==(const TimedDomain& other) const { return key() == other.key(); }
  bool empty() const { return row0 == row1 || column0 == column1; }
  bool single() const { return row1 - row0 == 1 && column1 - column0 == 1; }
  std::int64_t first_step() const { return row_steps * row0 + column_steps * column0 + delay; }

  // Appends the cells of step t, in the order of the rows.
  void cells_at(std::int64_t t, std::vector<Cell>& cells) const {
    if (empty()) return;
    const std::int64_t rest = t - delay - column_steps * column0;  // = row_steps row + column_steps (column - column0)
    std::int64_t first = row0, last = row1 - 1;
    if (row_steps > 0) {
      if (rest < row_steps * row0) return;
      last = std::min(last, rest / row_steps);
      const std::int64_t beyond = rest - column_steps * (column1 - 1 - column0);
      if (beyond > row_steps * row0) first = (beyond + row_steps - 1) / row_steps;
    }
    if (block > 1) {
      if (rest < 0 || rest % (column_steps * block) != 0) return;
      const std::int64_t begin = column0 + rest / column_steps, end = std::min(begin + block, column1);
      for (std::int64_t column = begin; column < end; ++column) cells.push_back({row0, column});
      return;
    }
    for (std::int64_t row = first; row <= last; ++row) {
      const std::int64_t along = rest - row_steps * row;
      if (along < 0) return;
      if (column_steps == 1 ? along < column1 - column0 : along % column_steps == 0 && along / column_steps < column1 - column0) {
        cells.push_back({row, column0 + (column_steps == 1 ? along : along / column_steps)});
      }
    }
  }
};

}  // namespace fastgen
