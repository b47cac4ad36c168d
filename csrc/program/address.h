// Where the cells of a lattice lie in time, and where their operands lie in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "program/program.h"

namespace fastgen {

struct Cell {
  std::int64_t q, w;
};

// The cells q0 <= q < q1, w0 <= w < w1 of a PIXEL record; cell (q, w) runs at step row q + column w + delay. Of one row,
// `together` cells may run at the step of the first of them.
struct Lattice {
  std::int64_t row, column, delay, q0, q1, w0, w1, together;

  template <typename Record>
  static Lattice of(const Record& record, std::int64_t row_length, std::int64_t together = 1) {
    const bool one_row = record.q1 - record.q0 <= 1;
    return {one_row ? 0 : row_length * record.row_stride, std::max<std::int64_t>(record.column_stride, 1),
            one_row ? record.delay + static_cast<std::int64_t>(static_cast<__int128>(row_length) * record.row_stride * record.q0)
                    : record.delay,
            record.q0, record.q1, record.w0, record.w1, together};
  }

  using Key = std::array<std::int64_t, 8>;
  Key key() const { return {row, column, delay, q0, q1, w0, w1, together}; }
  bool operator==(const Lattice& other) const { return key() == other.key(); }
  bool empty() const { return q0 == q1 || w0 == w1; }
  bool single() const { return q1 - q0 == 1 && w1 - w0 == 1; }
  std::int64_t first_step() const { return row * q0 + column * w0 + delay; }

  // Appends the cells of step t, in the order of q.
  void cells_at(std::int64_t t, std::vector<Cell>& cells) const {
    if (empty()) return;
    const std::int64_t rest = t - delay - column * w0;  // = row q + column (w - w0)
    std::int64_t first = q0, last = q1 - 1;
    if (row > 0) {
      if (rest < row * q0) return;
      last = std::min(last, rest / row);
      const std::int64_t beyond = rest - column * (w1 - 1 - w0);
      if (beyond > row * q0) first = (beyond + row - 1) / row;
    }
    if (together > 1) {
      if (rest < 0 || rest % (column * together) != 0) return;
      for (std::int64_t w = w0 + rest / column, end = std::min(w + together, w1); w < end; ++w) cells.push_back({q0, w});
      return;
    }
    for (std::int64_t q = first; q <= last; ++q) {
      const std::int64_t along = rest - row * q;
      if (along < 0) return;
      if (column == 1 ? along < w1 - w0 : along % column == 0 && along / column < w1 - w0) {
        cells.push_back({q, w0 + (column == 1 ? along : along / column)});
      }
    }
  }
};

struct Context {
  const float* data;
  std::int64_t positions, channels;
};

// One generation in flight, as fastgen.generate.machines.batch.Run.
struct Run {
  std::int64_t batch = 0;
  float* state = nullptr;
  std::int64_t state_stride = 0;
  std::vector<Context> contexts;
  std::uint64_t seed = 0;
  const std::int64_t* samples = nullptr;
  float* levels = nullptr;
  std::int64_t channels = 0, positions = 0, position0 = 0;  // of levels
  const std::uint8_t* known = nullptr;
  double* log_prob = nullptr;
  double* proposal_log_prob = nullptr;
  float* parameters = nullptr;  // [batch, positions, position_parameters]: where given, what the draws read is kept
  std::int64_t position_parameters = 0;
  double temperature = 1.0, top_p = 1.0;
  int top_k = 0, threads = 1;
  bool ahead = true;
};

// Sample b's values of an operand at a cell: base[b * sample_stride + i * channel_stride]; base is null for a write outside the
// box, which is dropped.
struct Address {
  float* base;
  std::int64_t sample_stride, channel_stride;
};

enum class Reach { inside, before_first_position, beyond_context };

// Cells outside it read `border`; null where they are written.
struct Box {
  std::int64_t q0, q1, w0, w1;
  float* border;
  bool holds(Cell cell) const { return cell.q >= q0 && cell.q < q1 && cell.w >= w0 && cell.w < w1; }
};

// An operand made ready for one record: what can be decided for the whole of the record's lattice is. It takes one cache line,
// since the weights of a step drive the operands, too, out of the near caches.
struct alignas(64) BoundOperand {
  std::int64_t c;
  std::int64_t offset;     // of the first value of position 0, in its arena; of a context, the channel
  double reciprocal;       // of positions
  const Box* box;          // null where all cells of the lattice are inside
  std::int32_t a, b;
  std::int32_t positions;  // of the buffer
  std::int32_t channels;   // of the buffer
  std::int32_t channel_stride, length;
  std::int32_t context;    // its number
  std::int8_t where;
  bool wraps;              // some positions of the lattice are beyond the buffer
  bool written;

  Reach resolve(Cell cell, const Run& run, float* constants, Address& address) const {
    if (box && !box->holds(cell)) {
      address = {box->border, 0, 1};
      return Reach::inside;
    }
    std::int64_t position = a * cell.q + b * cell.w + c;
    if (position < 0) return Reach::before_first_position;
    if (where == kContext) {
      const Context& given = run.contexts[context];
      if (position >= given.positions) return Reach::beyond_context;
      address = {const_cast<float*>(given.data) + position * channels + offset, given.positions * channels, channel_stride};
      return Reach::inside;
    }
    if (wraps) {  // exact: the quotient is off by one at most
      position -= static_cast<std::int64_t>(static_cast<double>(position) * reciprocal) * positions;
      position += position < 0 ? positions : 0;
      position -= position >= positions ? positions : 0;
    }
    float* arena = where == kState ? run.state : constants;
    address = {arena + offset + position * channels, where == kState ? run.state_stride : 0, channel_stride};
    return Reach::inside;
  }
};
static_assert(sizeof(BoundOperand) == 64);

}  // namespace fastgen
