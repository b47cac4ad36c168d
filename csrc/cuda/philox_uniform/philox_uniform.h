#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fastgen {

// noise[b * position_count + p] = philox_uniform(seed, samples[b], positions[p], channel, draw); device pointers.
cudaError_t philox_uniform_fill(double* noise, const std::int64_t* samples, std::int64_t sample_count,
                                const std::int64_t* positions, std::int64_t position_count, std::uint64_t seed,
                                std::uint32_t channel, std::uint32_t draw, cudaStream_t stream);

}  // namespace fastgen
