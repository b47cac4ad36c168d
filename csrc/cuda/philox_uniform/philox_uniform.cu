// Counter-based uniform noise: fastgen::philox_uniform on CUDA. Raw pointers and a stream; no torch header.
#include "cuda/philox_uniform/philox_uniform.h"

#include "common/philox.h"

namespace fastgen {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaximumBlocks = 4096;

__global__ void __launch_bounds__(kThreads)
    fill(double* noise, const std::int64_t* samples, const std::int64_t* positions, std::int64_t numbers, std::int64_t count,
         std::uint64_t seed, std::uint32_t channel, std::uint32_t draw) {
  const std::int64_t stride = std::int64_t{kThreads} * gridDim.x;
  for (std::int64_t i = std::int64_t{kThreads} * blockIdx.x + threadIdx.x; i < numbers; i += stride) {
    noise[i] = philox_uniform(seed, static_cast<std::uint64_t>(samples[i / count]),
                              static_cast<std::uint64_t>(positions[i % count]), channel, draw);
  }
}

}  // namespace

cudaError_t philox_uniform_fill(double* noise, const std::int64_t* samples, std::int64_t sample_count,
                                const std::int64_t* positions, std::int64_t position_count, std::uint64_t seed,
                                std::uint32_t channel, std::uint32_t draw, cudaStream_t stream) {
  const std::int64_t numbers = sample_count * position_count;
  if (numbers == 0) return cudaSuccess;
  const std::int64_t needed = (numbers + kThreads - 1) / kThreads;
  const auto blocks = static_cast<unsigned>(needed < kMaximumBlocks ? needed : kMaximumBlocks);
  fill<<<blocks, kThreads, 0, stream>>>(noise, samples, positions, numbers, position_count, seed, channel, draw);
  return cudaGetLastError();
}

}  // namespace fastgen
