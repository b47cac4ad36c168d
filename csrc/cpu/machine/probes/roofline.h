// Probes of the machine for the floors that benchmarks compare with.
#pragma once

#include <cstddef>

namespace fastgen {

// Median rate in GB/s at which `threads` threads read `bytes` bytes, each its share, `repeats` times over.
double read_bandwidth(std::size_t bytes, int threads, int repeats);

// GFLOP/s of independent float32 multiply-adds from registers on `threads` threads; the best of some tenths of a second.
double fma_peak(int threads);

}  // namespace fastgen
