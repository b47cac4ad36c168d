#include "cpu/machine/plan/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastgen {
namespace {

constexpr std::size_t step_bytes(Format format) {
  return format == Format::float32 ? 256 : format == Format::bfloat16 ? 128 : 64;
}

// Round to nearest, ties to even; NaN stays NaN.
std::uint16_t to_bfloat16(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  if (std::isnan(value)) return static_cast<std::uint16_t>((word >> 16) | 0x40);
  return static_cast<std::uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

float from_bfloat16(std::uint16_t half) {
  const std::uint32_t word = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

}  // namespace

PackedWeights::PackedWeights(const Program& program, Format format) : format_(format) {
  std::size_t bytes = 0, scales = 0, table_floats = 0;
  std::map<Packed::Key, int> matrices;
  each_of_kind<Compute>(program, [&](const Instruction&, const Compute& compute, std::size_t) {
    Packed packed{compute.weight, {}, compute.parts, compute.lanes};
    const std::int64_t lane_tiles = (compute.lanes + kTile - 1) / kTile;
    for (std::int64_t s = compute.segment0; s < compute.segment1; ++s) {
      const Segment& segment = program.segments[s];
      if (segment.kind == kDense) {
        packed.rows.emplace_back(segment.row, segment.length);
      } else if (table_numbers_.emplace(table_key(compute, segment), static_cast<int>(tables_.size())).second) {
        Table table{compute.weight, segment.row, compute.parts, compute.lanes, segment.length};
        table.width = compute.parts * lane_tiles * kTile;
        table.offset = table_floats;
        table_floats += static_cast<std::size_t>(table.count * table.width);
        tables_.push_back(table);
      }
    }
    if (packed.rows.empty()) {
      of_compute_.push_back(-1);
      return;
    }
    const auto [found, is_new] = matrices.emplace(packed.key(), static_cast<int>(matrices_.size()));
    of_compute_.push_back(found->second);
    if (!is_new) return;
    for (const auto& rows : packed.rows) packed.inputs += rows.second;
    packed.lane_tiles = lane_tiles;
    packed.block_bytes = packed.steps(2) * step_bytes(format);
    packed.offset = bytes;
    packed.scales = scales;
    bytes += packed.tiles() / 2 * packed.block_bytes + packed.tiles() % 2 * packed.steps(1) * step_bytes(format);
    scales += packed.tiles() * kTile;
    matrices_.push_back(std::move(packed));
  });
  arena_ = Arena(bytes);
  table_values_.assign(table_floats, 0.0f);
  if (format == Format::int8) scales_.assign(scales, 1.0f);
}

PackedWeights::TableKey PackedWeights::table_key(const Compute& compute, const Segment& segment) {
  return {compute.weight, segment.row, segment.length, compute.parts, compute.lanes};
}

void PackedWeights::fill(const Program& program, const float* weights) {
  for (const Packed& matrix : matrices_) fill_matrix(program, matrix, weights);
  for (const Table& table : tables_) fill_table(program, table, weights);
}

float PackedWeights::column_scale(const Weight& weight, const float* column) const {
  if (format_ != Format::int8) return 1.0f;
  float largest = 0.0f;
  for (std::int64_t row = 0; row < weight.rows; ++row) largest = std::max(largest, std::fabs(column[row * weight.columns]));
  return largest > 0.0f ? largest / 127.0f : 1.0f;
}

void PackedWeights::fill_table(const Program& program, const Table& table, const float* weights) {
  const Weight& weight = program.weight_table[table.weight];
  for (std::int64_t output = 0; output < table.parts * table.lanes; ++output) {
    const float* column = weights + weight.offset + output;
    const float scale = column_scale(weight, column);
    float* to = table_values_.data() + table.offset + output / table.lanes * (table.width / table.parts) + output % table.lanes;
    for (std::int64_t row = 0; row < table.count; ++row) {
      const float value = column[(table.row + row) * weight.columns];
      to[row * table.width] = format_ == Format::float32    ? value
                              : format_ == Format::bfloat16 ? from_bfloat16(to_bfloat16(value))
                                                            : std::nearbyint(value / scale) * scale;
    }
  }
}

void PackedWeights::fill_matrix(const Program& program, const Packed& matrix, const float* weights) {
  const Weight& weight = program.weight_table[matrix.weight];
  for (std::int64_t tile = 0; tile < matrix.tiles(); ++tile) {
    const std::int64_t lane0 = tile / matrix.parts * kTile, part = tile % matrix.parts;
    const bool alone = tile == matrix.tiles() - 1 && tile % 2 == 0;
    const std::int64_t tiles = alone ? 1 : 2, chains = 4 / tiles, in_block = tile % 2;
    unsigned char* block = arena_.data() + matrix.offset + static_cast<std::size_t>(tile / 2) * matrix.block_bytes;
    for (std::int64_t lane = 0; lane < kTile && lane0 + lane < matrix.lanes; ++lane) {
      const float* column = weights + weight.offset + part * matrix.lanes + lane0 + lane;
      const float scale = column_scale(weight, column);
      if (format_ == Format::int8) scales_[matrix.scales + tile * kTile + lane] = scale;
      std::int64_t k = 0;
      for (const auto& [row, count] : matrix.rows) {
        for (std::int64_t r = row; r < row + count; ++r, ++k) {
          const float value = column[r * weight.columns];
          unsigned char* step = block + static_cast<std::size_t>(k / chains) * step_bytes(format_);
          const std::int64_t chain = k % chains;
          const std::int64_t place = (chain * tiles + in_block) * kTile + lane;
          if (format_ == Format::float32) {
            reinterpret_cast<float*>(step)[place] = value;
          } else if (format_ == Format::bfloat16) {
            const std::int64_t word = (chain / 2 * tiles + in_block) * kTile + lane;
            reinterpret_cast<std::uint16_t*>(step)[2 * word + chain % 2] = to_bfloat16(value);
          } else {
            reinterpret_cast<std::int8_t*>(step)[place] = static_cast<std::int8_t>(std::lrint(value / scale));
          }
        }
      }
    }
  }
}

}  // namespace fastgen
