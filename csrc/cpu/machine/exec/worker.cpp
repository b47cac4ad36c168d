#include "cpu/machine/exec/worker.h"

#include <algorithm>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr int kLinesAtOperation = 4;  // of the next weights
constexpr std::int64_t kLaneFloats = 4096;  // of registers that a lane program works on at once: half of a first-level cache

void expect_bytes(const void* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

float* floats(const Arena& arena) { return reinterpret_cast<float*>(arena.data()); }
Arena float_arena(std::int64_t count) { return Arena(static_cast<std::size_t>(count + kTile) * sizeof(float)); }

}  // namespace

Worker::Worker(const Plan& plan, const PackedWeights& weights, const HeadSpec& head, const Kernels& kernels, Failure& failure)
    : plan_(plan), weights_(weights), head_(head), kernels_(kernels), failure_(failure), inputs_(float_arena(plan.inputs_floats)),
      registers_(float_arena(plan.registers_floats)), parameters_(float_arena(plan.parameters)),
      values_(float_arena(plan.channels)), scratch_(plan.draw_doubles * sizeof(double)), input_pointers_(plan.items),
      addresses_(plan.addresses), domain_cells_(plan.domains.size()), once_cell_(1), ahead_(weights.begin()) {
  active_.reserve(plan.computes.size());
  once_active_.reserve(plan.computes.size());
  keys_.reserve(plan.key_spans);
  key_rows_.reserve(2 * plan.key_spans);  // a ring may begin anew in each
  value_rows_.reserve(2 * plan.key_spans);
  scores_.reserve(plan.score_floats);
}

void Worker::begin(Interrupt& interrupt, bool asks, bool together) {
  interrupt_ = &interrupt;
  asks_ = asks && interrupt.possible();
  together_ = together;
  stopped_ = false;
}

void Worker::ask(std::int64_t step) {
  work_ = 0;
  if (asks_ && interrupt_->ask() && together_) failure_.leave_after(step);
  stopped_ = interrupt_->broken_off();
}

const std::vector<int>& Worker::collect(std::int64_t t0, std::int64_t t1) {
  for (std::size_t i = 0; i < plan_.domains.size(); ++i) {
    domain_cells_[i].clear();
    for (std::int64_t t = t0; t < t1; ++t) plan_.domains[i].cells_at(t, domain_cells_[i]);
  }
  const auto earlier = [](const Once& once, std::int64_t step) { return once.step < step; };
  auto once = std::lower_bound(plan_.computes_once.begin(), plan_.computes_once.end(), t0, earlier);
  once_active_.clear();
  for (; once != plan_.computes_once.end() && once->step < t1; ++once) once_active_.push_back(once->number);
  if (t1 - t0 > 1) std::sort(once_active_.begin(), once_active_.end());
  active_.clear();
  std::merge(plan_.pixel.begin(), plan_.pixel.end(), once_active_.begin(), once_active_.end(), std::back_inserter(active_));
  return active_;
}

const std::vector<Cell>& Worker::cells_of(int number) {
  const PlannedCompute& planned = plan_.computes[number];
  if (planned.domain >= 0) return domain_cells_[planned.domain];
  once_cell_[0] = planned.only;
  return once_cell_;
}

const std::vector<Cell>& Worker::cells_at(int number, std::int64_t t) {
  const PlannedCompute& planned = plan_.computes[number];
  step_cells_.clear();
  if (planned.domain >= 0) {
    plan_.domains[planned.domain].cells_at(t, step_cells_);
  } else if (planned.step == t) {
    step_cells_.push_back(planned.only);
  }
  return step_cells_;
}

void Worker::resolve(const BoundOperand* operands, std::size_t count, Cell cell, const GenerationBatch& run, std::int64_t step,
                     Address* addresses) {
  for (std::size_t i = 0; i < count; ++i) {
    const Reach reach = operands[i].resolve(cell, run, plan_.constants, addresses[i]);
    if (reach == Reach::inside) continue;
    addresses[i] = {operands[i].written ? nullptr : const_cast<float*>(plan_.zeros.data()), 0, 1};
    const std::int64_t position = operands[i].position_of(cell);
    failure_.report(step, reach == Reach::before_first_position
                              ? text("an operand addresses position ", position, " of its buffer, at step ", step)
                              : text("contexts[", operands[i].positions, "] has ", run.contexts[operands[i].positions].positions,
                                     " positions; position ", position, " is needed"));
  }
}

void Worker::execute(int number, const Cell* cells, std::int64_t count, const Share& share, const GenerationBatch& run,
                     std::int64_t step) {
  const PlannedCompute& planned = plan_.computes[number];
  if (planned.attend >= 0) {
    attend(planned, cells, count, share, run, step);
    return;
  }
  Tile tile{};
  tile.planned = &planned;
  tile.lane_tile0 = share.units.begin * planned.unit_tiles;
  tile.lane_tile1 = std::min(share.units.end * planned.unit_tiles, planned.lane_tiles);
  const std::int64_t samples = share.samples.end - share.samples.begin;
  if (tile.lane_tile0 >= tile.lane_tile1 || samples <= 0) return;
  tile.lane0 = tile.lane_tile0 * kTile;
  tile.width = (tile.lane_tile1 - tile.lane_tile0) * kTile;
  tile.lanes = std::min(planned.lanes - tile.lane0, tile.width);
  tile.run = &run;
  tile.step = step;
  const std::int64_t together = samples == 1 ? planned.chunk : std::max<std::int64_t>(1, planned.chunk / samples);
  for (std::int64_t cell = 0; cell < count; cell += together) {
    tile.cells = cells + cell;
    tile.cell_count = std::min(together, count - cell);
    for (std::int64_t done = 0; done < samples; done += planned.chunk) {
      tile.sample0 = share.samples.begin + done;
      tile.samples = std::min(planned.chunk, samples - done);
      tile.register_stride = tile.items() * tile.width;
      if (!goes_on(tile.items() * planned.work, step)) return;
      compute(tile);
    }
  }
}

void Worker::expect_tables(const std::vector<int>& computes, std::size_t place) const {
  if (place + 3 < computes.size()) expect_bytes(&plan_.computes[computes[place + 3]], sizeof(PlannedCompute));
  if (place + 2 >= computes.size()) return;
  const PlannedCompute& planned = plan_.computes[computes[place + 2]];
  expect_bytes(planned.operands.data(), planned.operands.size() * sizeof(BoundOperand));
  expect_bytes(planned.operations.data(), planned.operations.size() * sizeof(PlannedOperation));
  expect_bytes(planned.dense.data(), planned.dense.size() * sizeof(DenseInput));
  if (planned.matrix >= 0) expect_bytes(&weights_.matrix(planned.matrix), sizeof(Packed));
}

void Worker::prefetch(int number, Span samples, const GenerationBatch& run) {
  const PlannedCompute& planned = plan_.computes[number];
  for (const DenseInput& input : planned.dense) {
    const BoundOperand& operand = planned.operands[input.operand];
    if (!operand.wraps || operand.where != kState || operand.channel_stride != 1) continue;
    for (const Cell& cell : cells_of(number)) {
      Address address;
      if (operand.resolve(cell, run, plan_.constants, address) != Reach::inside) continue;
      for (std::int64_t b = samples.begin; b < samples.end; ++b) {
        expect_bytes(address.base + b * address.sample_stride, input.length * sizeof(float));
      }
    }
  }
}

void Worker::compute(const Tile& tile) {
  const bool starts_here = tile.planned->hoisted >= 0 && !tile.run->ahead;
  if (starts_here) {
    Tile hoisted = tile;
    hoisted.planned = &plan_.computes[tile.planned->hoisted];
    resolve(hoisted);
    start(hoisted);
    multiply(hoisted);
  }
  resolve(tile);
  if (tile.planned->multiplies) {
    if (!starts_here) start(tile);
    if (!tile.planned->index.empty()) add_table_rows(tile);
    if (tile.planned->matrix >= 0) multiply(tile);
  }
  apply(tile);
}

void Worker::resolve(const Tile& tile) {
  const std::vector<BoundOperand>& operands = tile.planned->operands;
  for (std::int64_t i = 0; i < tile.cell_count; ++i) {
    resolve(operands.data(), operands.size(), tile.cells[i], *tile.run, tile.step, addresses_.data() + i * operands.size());
  }
}

template <typename Function>
void Worker::each_item(const Tile& tile, int operand, Function function) {
  const std::size_t stride = tile.planned->operands.size();
  std::int64_t item = 0;
  for (std::int64_t i = 0; i < tile.cell_count; ++i) {
    Address address = addresses_[i * stride + operand];
    if (address.base) address.base += tile.sample0 * address.sample_stride;
    for (std::int64_t s = 0; s < tile.samples; ++s, ++item) {
      function(item, address);
      if (address.base) address.base += address.sample_stride;
    }
  }
}

void Worker::start(const Tile& tile) {
  const PlannedCompute& planned = *tile.planned;
  for (std::int64_t part = 0; part < planned.parts; ++part) {
    float* sums = floats(registers_) + part * tile.register_stride;
    const std::int64_t output = part * planned.lanes + tile.lane0;
    if (planned.accumulator >= 0) {
      each_item(tile, planned.accumulator, [&](std::int64_t item, const Address& from) {
        kernels_.gather(sums + item * tile.width, from.base + output * from.channel_stride, from.channel_stride, tile.lanes);
      });
    } else if (planned.bias) {
      for (std::int64_t item = 0; item < tile.items(); ++item) {
        kernels_.gather(sums + item * tile.width, planned.bias + output, 1, tile.lanes);
      }
    } else {
      std::fill_n(sums, tile.register_stride, 0.0f);
    }
  }
}

void Worker::add_table_rows(const Tile& tile) {
  const PlannedCompute& planned = *tile.planned;
  for (const IndexInput& input : planned.index) {
    const Table& table = weights_.table(input.table);
    each_item(tile, input.operand, [&](std::int64_t item, const Address& from) {
      const float value = *from.base;
      std::int64_t row = 0;
      if (value >= 0.0f && value < static_cast<float>(table.count) &&
          value == static_cast<float>(static_cast<std::int64_t>(value))) {
        row = static_cast<std::int64_t>(value);
      } else {
        failure_.report(tile.step, text("an index must be a whole number in 0 .. ", table.count - 1, ", got ", value, " at step ",
                                        tile.step));
      }
      const float* values = weights_.table_row(table, row) + tile.lane0;
      for (std::int64_t part = 0; part < planned.parts; ++part) {
        float* sums = floats(registers_) + part * tile.register_stride + item * tile.width;
        kernels_.lanes[kAdd](sums, sums, values + part * (table.width / planned.parts), sums, tile.width, 0.0f, 0.0f);
      }
    });
  }
}

void Worker::multiply(const Tile& tile) {
  const PlannedCompute& planned = *tile.planned;
  const float** x = input_pointers_.data();
  if (planned.in_place) {
    each_item(tile, planned.dense[0].operand, [&](std::int64_t item, const Address& from) { x[item] = from.base; });
  } else {
    float* inputs = floats(inputs_);
    for (std::int64_t item = 0; item < tile.items(); ++item) x[item] = inputs + item * planned.padded_inputs;
    std::int64_t k = 0;
    for (const DenseInput& input : planned.dense) {
      if (tile.items() == 1) look_ahead(kLinesAtOperation);
      each_item(tile, input.operand, [&](std::int64_t item, const Address& from) {
        kernels_.gather(inputs + item * planned.padded_inputs + k, from.base, from.channel_stride, input.length);
      });
      k += input.length;
    }
    for (std::int64_t item = 0; item < tile.items(); ++item) {
      std::fill(inputs + item * planned.padded_inputs + k, inputs + (item + 1) * planned.padded_inputs, 0.0f);
    }
  }
  const Packed& matrix = weights_.matrix(planned.matrix);
  const std::int64_t first = tile.lane_tile0 * planned.parts;
  PanelTask task{};
  task.x = x;
  task.items = static_cast<int>(tile.items());
  task.inputs = planned.inputs;
  task.weights = weights_.block(matrix, first / 2);
  task.scale = weights_.scales(matrix, first);
  task.tiles = tile.lane_tile1 * planned.parts - first;
  task.parts = planned.parts;
  task.out = floats(registers_);
  task.part_stride = tile.register_stride;
  task.item_stride = tile.width;
  kernels_.panel[static_cast<int>(weights_.format())](task);
  ahead_ = weights_.block(matrix, matrix.blocks()) + kPrefetch;
}

void Worker::apply(const Tile& tile) {
  const PlannedCompute& planned = *tile.planned;
  const std::int64_t items = tile.items(), stride = static_cast<std::int64_t>(planned.operands.size());
  const std::int64_t floats_of_item = tile.width * planned.registers;
  const std::int64_t together =
      items * floats_of_item <= kLaneFloats ? items : std::max<std::int64_t>(1, kLaneFloats / floats_of_item);
  for (std::int64_t item0 = 0; item0 < items; item0 += together) {
    const std::int64_t item1 = std::min(items, item0 + together);
    const std::int64_t cell0 = item0 == 0 ? 0 : item0 / tile.samples, sample0 = item0 - cell0 * tile.samples;
    float* registers = floats(registers_) + item0 * tile.width;
    const std::size_t lanes = static_cast<std::size_t>((item1 - item0) * tile.width);
    const auto each_address = [&](std::int64_t operand, auto function) {
      std::int64_t cell = cell0, sample = sample0;
      for (std::int64_t item = item0; item < item1; ++item) {
        const Address& address = addresses_[cell * stride + operand];
        if (address.base) {
          function(address.base + (tile.sample0 + sample) * address.sample_stride, address.channel_stride,
                   (item - item0) * tile.width);
        }
        if (++sample == tile.samples) {
          sample = 0;
          ++cell;
        }
      }
    };
    const auto each = [&](std::int64_t operand, auto function) {
      each_address(operand, [&](float* base, std::int64_t channel_stride, std::int64_t offset) {
        function(base + tile.lane0 * channel_stride, channel_stride, offset);
      });
    };
    for (const PlannedOperation& operation : planned.operations) {
      if (items == 1) look_ahead(kLinesAtOperation);
      float* dst = registers + (operation.opcode == kStore ? 0 : operation.dst) * tile.register_stride;
      const float* a = registers + operation.a * tile.register_stride;
      if (operation.opcode == kLoad) {
        each(operation.a, [&](const float* from, std::int64_t channel_stride, std::int64_t offset) {
          kernels_.gather(dst + offset, from, channel_stride, tile.lanes);
        });
      } else if (operation.opcode == kStore && planned.operands[operation.b].format != static_cast<int>(Format::float32)) {
        const Format format = static_cast<Format>(planned.operands[operation.b].format);
        each_address(operation.b, [&](float* row, std::int64_t, std::int64_t offset) {
          store_rounded(operation, format, row, a + offset, tile.lane0, tile.lanes);
        });
      } else if (operation.opcode == kStore) {
        each(operation.b, [&](float* to, std::int64_t channel_stride, std::int64_t offset) {
          kernels_.scatter(to, channel_stride, a + offset, tile.lanes);
        });
      } else if (operation.form == OpcodeForm::REDUCTION) {
        for (std::int64_t item = 0; item < item1 - item0; ++item) {
          kernels_.reduce(operation.opcode, dst + item * tile.width, a + item * tile.width, tile.lanes, operation.b);
        }
      } else {
        const int arguments = operation.arguments;
        const float* b = arguments > 1 ? registers + operation.b * tile.register_stride : a;
        const float* c = arguments > 2 ? registers + operation.c * tile.register_stride : a;
        kernels_.lanes[operation.opcode](dst, arguments > 0 ? a : dst, arguments > 0 ? b : dst, arguments > 0 ? c : dst, lanes,
                                         operation.x, operation.y);
      }
    }
  }
}

}  // namespace fastgen
