#include "program/exp_weights.h"

#include <cstdint>
#include <cstring>

// The loops here are plain C++ that the compiler vectorises; where the loader can choose between clones, they use the
// widest vectors of the processor. Products and sums are never contracted, so all clones round alike. The choice is made
// before ThreadSanitizer is there.
#if defined(__x86_64__) && defined(__ELF__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define FASTGEN_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FASTGEN_CLONES
#endif

namespace fastgen {
namespace {

constexpr int kBlock = 16;

// exp(-d) of d >= 0 by -d = k log 2 + r, |r| <= log(2) / 2, and the Taylor polynomial of degree 13 (error below 5e-18).
// Clamped at 709, where k = -1023 and the bits of 2^k are those of 0. The comparison is one of integers (the bits of
// non-negative doubles are in their order): compilers do not vectorise one of floating point, which may trap.
inline double exp_minus(double d) {
  constexpr std::int64_t kLimit = 0x4086280000000000;  // the bits of 709.0
  constexpr double kRound = 6755399441055744.0;        // 1.5 * 2^52: adding it rounds to an integer
  constexpr double kLog2High = 6.93147180369123816490e-01, kLog2Low = 1.90821492927058770002e-10;
  std::int64_t bits;
  std::memcpy(&bits, &d, sizeof bits);
  bits = bits < kLimit ? bits : kLimit;
  std::memcpy(&d, &bits, sizeof d);
  const double shifted = d * -1.44269504088896340736 + kRound;
  const double k = shifted - kRound;
  const double r = (-d - k * kLog2High) - k * kLog2Low;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  std::memcpy(&bits, &shifted, sizeof bits);  // the low bits of `shifted` are k
  const std::uint64_t power_bits = (static_cast<std::uint64_t>(bits) << 52) + 0x3FF0000000000000u;
  double power;
  std::memcpy(&power, &power_bits, sizeof power);
  return p * power;
}

inline double block_sum(const double* weights, int count) {
  double sums[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int j = 0; j < 4; ++j) sums[j] += weights[i + j];
  }
  for (int j = 0; i + j < count; ++j) sums[j] += weights[i + j];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace

FASTGEN_CLONES double sum_weights(const double* weights, int count) {
  double sums[kBlock] = {};
  int i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    for (int j = 0; j < kBlock; ++j) sums[j] += weights[i + j];
  }
  for (int j = 0; i + j < count; ++j) sums[j] += weights[i + j];
  double total = 0;
  for (int j = 0; j < kBlock; ++j) total += sums[j];
  return total;
}

FASTGEN_CLONES static void fill_weights(const double* logits, int count, double top, double* weights) {
  for (int i = 0; i < count; ++i) weights[i] = exp_minus(top - logits[i]);
}

double exp_weights(const double* logits, int count, double top, double* weights) {
  fill_weights(logits, count, top, weights);
  return sum_weights(weights, count);
}

int inverse_cdf(const double* weights, int count, double total, double uniform) {
  const double threshold = uniform * total;
  double before = 0, cumulated = 0;
  int reached = 0;  // the last block with weight in it, where the search ends; `cumulated` is the weight before it
  for (int block = 0; block < count; block += kBlock) {
    const double sum = block_sum(weights + block, count - block < kBlock ? count - block : kBlock);
    if (sum > 0) {
      reached = block;
      cumulated = before;
    }
    if (before + sum > threshold) break;
    before += sum;
  }
  int last = reached;
  for (int i = reached; i < count && i < reached + kBlock; ++i) {
    cumulated += weights[i];
    if (cumulated > threshold) return i;
    if (weights[i] > 0) last = i;
  }
  return last;
}

}  // namespace fastgen
