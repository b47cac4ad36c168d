// Counter-based noise: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011).
// For C++ and CUDA; fastgen/generate/noise.py computes the same bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTGEN_HD __host__ __device__ __forceinline__
#else
#define FASTGEN_HD inline
#endif

namespace fastgen {

struct Philox4 {
  std::uint32_t word[4];
};

FASTGEN_HD Philox4 philox4x32_10(Philox4 counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter =
        Philox4{{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(product1),
                 static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The noise of (seed, sample, position, channel, draw). The packing
//   key     = (seed low 32, sample low 32)
//   counter = (position low 32, position high 16 | channel << 16, seed high 32, sample high 16 | draw << 16)
// is one to one for every 64-bit seed, sample < 2^48, position < 2^48, channel < 2^16 and draw < 2^16.
FASTGEN_HD Philox4 philox_words(std::uint64_t seed, std::uint64_t sample, std::uint64_t position, std::uint32_t channel,
                                std::uint32_t draw) {
  const Philox4 counter{
      {static_cast<std::uint32_t>(position), (static_cast<std::uint32_t>(position >> 32) & 0xFFFFu) | (channel << 16),
       static_cast<std::uint32_t>(seed >> 32), (static_cast<std::uint32_t>(sample >> 32) & 0xFFFFu) | (draw << 16)}};
  return philox4x32_10(counter, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(sample));
}

// Uniform in the open interval (0, 1): (k + 1/2) / 2^52, where k is the upper 52 bits of word 1 and word 0 (word 1 is
// the upper half). k + 1/2 has 53 significant bits, so the value is exact: neither 0 nor 1 can come out by rounding.
FASTGEN_HD double philox_uniform(std::uint64_t seed, std::uint64_t sample, std::uint64_t position, std::uint32_t channel,
                                 std::uint32_t draw) {
  const Philox4 words = philox_words(seed, sample, position, channel, draw);
  const std::uint64_t k = (std::uint64_t{words.word[1]} << 20) | (words.word[0] >> 12);
  return (static_cast<double>(k) + 0.5) * 0x1p-52;
}

}  // namespace fastgen
