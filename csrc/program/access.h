// Where the operands of a cell lie in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "program/program.h"
#include "program/timed_domain.h"

namespace fastgen {

struct Context {
  const float* data;
  std::int64_t positions, channels;
};

// What a head that draws for the whole batch reads and writes of one position, besides the levels and scores of the batch.
struct PositionDraw {
  const float* parameters;  // [batch, count]
  std::int64_t count, position, channel0, channels;
  float* inputs;            // [batch, channels], out
};

// One generation in flight, as fastgen.generate.machines.batch.GenerationBatch.
struct GenerationBatch {
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
  std::function<void(const PositionDraw&)> draw_position;  // empty but for a custom head
};

inline std::int64_t position_of(const AccessMap& map, Cell cell) {
  return map.frame_stride * cell.frame + map.row_stride * cell.row + map.column_stride * cell.column + map.offset;
}

// Sample b's values of an operand at a cell: base[b * sample_stride + i * channel_stride], or side by side from base + b *
// sample_stride on in formats of less than 32 bits; base is null for a write outside the box, which is dropped.
struct Address {
  float* base;
  std::int64_t sample_stride, channel_stride;
};

enum class Reach { inside, before_first_position, beyond_context };

// Cells outside the box read `border`; null where they are written.
struct BorderedBox {
  Box box;
  float* border;
  bool holds(Cell cell) const {
    return cell.row >= box.row0 && cell.row < box.row1 && cell.column >= box.column0 && cell.column < box.column1 &&
           cell.frame >= box.frame0 && cell.frame < box.frame1;
  }
};

// An operand made ready for one instruction: what can be decided for the whole of the instruction's domain is. It takes one cache
// line, since the weights of a step drive the operands, too, out of the near caches.
struct alignas(64) BoundOperand {
  std::int64_t offset;     // of the access map
  std::int64_t first;      // float of the first value of position 0, in its arena; of a context, the channel
  double reciprocal;       // of positions
  const BorderedBox* box;  // null where all cells of the domain are inside
  std::int32_t row_stride, column_stride, frame_stride;  // of the access map
  std::int32_t positions;  // of the buffer; of a context, its number
  std::int32_t stride;     // floats from one position to the next
  std::int32_t channel_stride, length;
  std::int8_t where;
  std::int8_t format;      // of the buffer; no channel_stride goes with those of less than 32 bits
  bool wraps;              // some positions of the domain are beyond the buffer
  bool written;

  std::int64_t position_of(Cell cell) const {
    return frame_stride * cell.frame + row_stride * cell.row + column_stride * cell.column + offset;
  }

  Reach resolve(Cell cell, const GenerationBatch& run, float* constants, Address& address) const {
    if (box && !box->holds(cell)) {
      address = {box->border, 0, 1};
      return Reach::inside;
    }
    std::int64_t position = position_of(cell);
    if (position < 0) return Reach::before_first_position;
    if (where == kContext) {
      const Context& given = run.contexts[positions];
      if (position >= given.positions) return Reach::beyond_context;
      address = {const_cast<float*>(given.data) + position * stride + first, given.positions * stride, channel_stride};
      return Reach::inside;
    }
    if (wraps) {  // exact: the quotient is off by one at most
      position -= static_cast<std::int64_t>(static_cast<double>(position) * reciprocal) * positions;
      position += position < 0 ? positions : 0;
      position -= position >= positions ? positions : 0;
    }
    float* arena = where == kState ? run.state : constants;
    address = {arena + first + position * stride, where == kState ? run.state_stride : 0, channel_stride};
    return Reach::inside;
  }
};
static_assert(sizeof(BoundOperand) == 64);

}  // namespace fastgen
