// The cells of an iteration domain in time.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "program/program.h"

namespace fastgen {

struct Cell {
  std::int64_t row, column, frame = 0;
};

inline std::int64_t floor_of_quotient(std::int64_t value, std::int64_t divisor) {
  return value / divisor - (value % divisor < 0 ? 1 : 0);
}

// Calls function(frame, first row, row beyond the last) for the rows of cells that a ROW instruction computes at the start of row
// `start` of steps: those with start == frame_stride frame + row_stride row + delay, in the order of the frames.
template <typename Function>
void each_row_at(const IterationDomain& cells, std::int64_t start, Function function) {
  if (cells.empty()) return;
  const std::int64_t rest = start - cells.delay, stride = cells.frame_stride;
  std::int64_t first = cells.frame0, last = cells.frame1 - 1;
  if (last > first) {
    const std::int64_t beyond = rest - cells.row_stride * (cells.row1 - 1) + stride - 1;
    first = std::max(first, floor_of_quotient(beyond, stride));
    last = std::min(last, floor_of_quotient(rest - cells.row_stride * cells.row0, stride));
  }
  for (std::int64_t frame = first; frame <= last; ++frame) {
    const std::int64_t along = rest - stride * frame;
    if (cells.row_stride == 0) {
      if (along == 0) function(frame, cells.row0, cells.row1);
    } else if (along % cells.row_stride == 0) {
      const std::int64_t row = along / cells.row_stride;
      if (row >= cells.row0 && row < cells.row1) function(frame, row, row + 1);
    }
  }
}

// The domain of a PIXEL instruction with its schedule in steps: cell (frame, row, column) runs at step
// frame_steps frame + row_steps row + column_steps column + delay. Of one row, a `block` of cells may run at the step of the first
// of them.
struct TimedDomain {
  std::int64_t row_steps, column_steps, delay, row0, row1, column0, column1, block, frame_steps, frame0, frame1;

  static TimedDomain of(const IterationDomain& domain, std::int64_t row_length, std::int64_t block = 1) {
    const bool one_row = domain.row1 - domain.row0 <= 1, one_frame = domain.frame1 - domain.frame0 <= 1;
    const __int128 first_row = one_row ? static_cast<__int128>(row_length) * domain.row_stride * domain.row0 : 0;
    const __int128 first_frame = one_frame ? static_cast<__int128>(row_length) * domain.frame_stride * domain.frame0 : 0;
    return {one_row ? 0 : row_length * domain.row_stride,
            std::max<std::int64_t>(domain.column_stride, 1),
            domain.delay + static_cast<std::int64_t>(first_row + first_frame),
            domain.row0,
            domain.row1,
            domain.column0,
            domain.column1,
            block,
            one_frame ? 0 : row_length * domain.frame_stride,
            domain.frame0,
            domain.frame1};
  }

  using Key = std::array<std::int64_t, 11>;
  Key key() const { return {row_steps, column_steps, delay, row0, row1, column0, column1, block, frame_steps, frame0, frame1}; }
  bool operator==(const TimedDomain& other) const { return key() == other.key(); }
  bool empty() const { return row0 == row1 || column0 == column1 || frame0 == frame1; }
  bool single() const { return row1 - row0 == 1 && column1 - column0 == 1 && frame1 - frame0 == 1; }
  std::int64_t first_step() const { return frame_steps * frame0 + row_steps * row0 + column_steps * column0 + delay; }

  // Appends the cells of step t, in the order of the frames and the rows.
  void cells_at(std::int64_t t, std::vector<Cell>& cells) const {
    if (empty()) return;
    if (frame_steps == 0) return cells_of_frame(frame0, t - delay, cells);
    const std::int64_t rest = t - delay - row_steps * row0 - column_steps * column0;
    const std::int64_t span = row_steps * (row1 - 1 - row0) + column_steps * (column1 - 1 - column0);
    const std::int64_t first = std::max(frame0, floor_of_quotient(rest - span + frame_steps - 1, frame_steps));
    const std::int64_t last = std::min(frame1 - 1, floor_of_quotient(rest, frame_steps));
    for (std::int64_t frame = first; frame <= last; ++frame) cells_of_frame(frame, t - delay - frame_steps * frame, cells);
  }

 private:
  // Appends the cells of a frame that run t steps after its start.
  void cells_of_frame(std::int64_t frame, std::int64_t t, std::vector<Cell>& cells) const {
    const std::int64_t rest = t - column_steps * column0;  // = row_steps row + column_steps (column - column0)
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
      for (std::int64_t column = begin; column < end; ++column) cells.push_back({row0, column, frame});
      return;
    }
    for (std::int64_t row = first; row <= last; ++row) {
      const std::int64_t along = rest - row_steps * row;
      if (along < 0) return;
      if (column_steps == 1 ? along < column1 - column0 : along % column_steps == 0 && along / column_steps < column1 - column0) {
        cells.push_back({row, column0 + (column_steps == 1 ? along : along / column_steps), frame});
      }
    }
  }
};

}  // namespace fastgen
