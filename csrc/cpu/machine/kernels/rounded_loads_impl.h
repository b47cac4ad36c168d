// Loads of rounded numbers as float32, for the instruction set of the including file; std::uint16_t holds a bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace fastgen {
namespace {

typedef std::uint16_t Halves __attribute__((vector_size(kWidth * 2)));
typedef std::int8_t Bytes __attribute__((vector_size(kWidth)));

inline Float load(const std::uint16_t* p) {
#if defined(__AVX512F__)
  return (Float)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  return (Float)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  return from_bits((Int)(__builtin_convertvector(halves, Unsigned) << 16));
#endif
}

inline Float load(const std::int8_t* p) {
#if defined(__AVX512F__)
  return (Float)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return (Float)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Float);
#endif
}

}  // namespace
}  // namespace fastgen
