// Counter-based uniform noise: fastgen::philox_uniform on the CPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "common/philox.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 4096;  // numbers a thread makes at least: about 20 ns each

void check_indices(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1, name, " must be a one-dimensional int64 tensor");
}

void check_uint16(std::int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value < 65536, name, " must be at least 0 and less than 65536, got ", value);
}

Tensor philox_uniform_cpu(std::int64_t seed, Tensor samples, Tensor positions, std::int64_t channel, std::int64_t draw) {
  check_indices(samples, "samples");
  check_indices(positions, "positions");
  check_uint16(channel, "channel");
  check_uint16(draw, "draw");
  samples = torch::stable::contiguous(samples);
  positions = torch::stable::contiguous(positions);
  const std::int64_t count = positions.size(0);
  Tensor noise = torch::stable::new_empty(samples, {samples.size(0), count}, ScalarType::Double);
  const auto* sample = samples.const_data_ptr<std::int64_t>();
  const auto* position = positions.const_data_ptr<std::int64_t>();
  auto* out = noise.mutable_data_ptr<double>();
  parallel_for(0, samples.size(0) * count, kGrain, [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t row = i / count;
      const std::int64_t row_end = std::min(end, (row + 1) * count);
      for (; i < row_end; ++i) {
        out[i] = philox_uniform(static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(sample[row]),
                                static_cast<std::uint64_t>(position[i - row * count]), static_cast<std::uint32_t>(channel),
                                static_cast<std::uint32_t>(draw));
      }
    }
  });
  return noise;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("philox_uniform", TORCH_BOX(&fastgen::philox_uniform_cpu)); }
