// The lane operations of kernels.h for the instruction set of the including file.
#pragma once

#include "common/simd.h"
#include "cpu/machine/kernels/kernels.h"

namespace fastgen {
namespace {

template <typename Function>
inline void each(float* dst, const float* a, const float* b, const float* c, std::size_t n, Function function) {
  for (std::size_t i = 0; i < n; i += kWidth) store(dst + i, function(load(a + i), load(b + i), load(c + i)));
}

inline Float truth(Int mask) { return mask ? broadcast(1.0f) : Float{}; }

inline Float softplus(Float a, float x, float y) {
  const Float scaled = a * x;
  return scaled > y ? a : log1p(exp(scaled > y ? Float{} : scaled)) / x;
}

inline Float sign(Float a) {
  const Float unit = copysign(broadcast(1.0f), a);
  return (a == 0.0f) | is_nan(a) ? Float{} : unit;
}

inline Float trunc(Float a) { return copysign(floor(abs(a)), a); }

// Exact. The C library's function, lane by lane.
inline Float fmod(Float a, Float b) {
  for (int i = 0; i < kWidth; ++i) a[i] = __builtin_fmodf(a[i], b[i]);
  return a;
}

// These two and their special cases are PyTorch's.
inline Int other_sign(Float remainder, Float b) { return (remainder != 0.0f) & ((b < 0.0f) ^ (remainder < 0.0f)); }
inline Float remainder(Float a, Float b) {
  const Float rest = fmod(a, b);
  return other_sign(rest, b) ? rest + b : rest;
}
inline Float floor_divide(Float a, Float b) {
  const Float rest = fmod(a, b), quotient = (a - rest) / b;
  const Float below = other_sign(rest, b) ? quotient - 1.0f : quotient, whole = floor(below);
  const Float nearest = below - whole > 0.5f ? whole + 1.0f : whole;
  const Float result = below == 0.0f ? copysign(Float{}, a / b) : nearest;
  return b == 0.0f ? a / b : result;
}

inline Int integers(Float a) { return __builtin_convertvector(abs(a) < 2147483648.0f ? a : Float{}, Int); }
inline Float numbers(Int a) { return __builtin_convertvector(a, Float); }

// (a b + c) modulo x of integers below 2^24: every intermediate value is exact in double.
inline Float mulmod(Float a, Float b, Float c, float x) {
  const double modulus = x;
  for (int i = 0; i < kWidth; ++i) {
    const double value = static_cast<double>(a[i]) * b[i] + c[i];
    double rest = value - modulus * __builtin_floor(value / modulus);
    rest = rest < 0 ? rest + modulus : rest;
    a[i] = static_cast<float>(rest >= modulus ? rest - modulus : rest);
  }
  return a;
}

#define FASTGEN_LANES(name, ...)                                                                                              \
  void name(float* dst, const float* pa, const float* pb, const float* pc, std::size_t n, [[maybe_unused]] float x,           \
            [[maybe_unused]] float y) {                                                                                       \
    each(dst, pa, pb, pc, n,                                                                                                  \
         [=]([[maybe_unused]] Float a, [[maybe_unused]] Float b, [[maybe_unused]] Float c) -> Float { return __VA_ARGS__; }); \
  }

FASTGEN_LANES(lanes_const, broadcast(x))
FASTGEN_LANES(lanes_neg, -a)
FASTGEN_LANES(lanes_abs, abs(a))
FASTGEN_LANES(lanes_exp, exp(a))
FASTGEN_LANES(lanes_log, log(a))
FASTGEN_LANES(lanes_log1p, log1p(a))
FASTGEN_LANES(lanes_expm1, expm1(a))
FASTGEN_LANES(lanes_sqrt, sqrt(a))
FASTGEN_LANES(lanes_rsqrt, 1.0f / sqrt(a))
FASTGEN_LANES(lanes_reciprocal, 1.0f / a)
FASTGEN_LANES(lanes_tanh, tanh(a))
FASTGEN_LANES(lanes_sigmoid, sigmoid(a))
FASTGEN_LANES(lanes_erf, erf(a))
FASTGEN_LANES(lanes_sin, sin(a))
FASTGEN_LANES(lanes_cos, cos(a))
FASTGEN_LANES(lanes_floor, floor(a))
FASTGEN_LANES(lanes_ceil, ceil(a))
FASTGEN_LANES(lanes_round, round(a))
FASTGEN_LANES(lanes_sign, sign(a))
FASTGEN_LANES(lanes_relu, max(a, Float{}))
FASTGEN_LANES(lanes_elu, a > 0.0f ? a : x * expm1(a))
FASTGEN_LANES(lanes_leaky_relu, a > 0.0f ? a : x * a)
FASTGEN_LANES(lanes_softplus, softplus(a, x, y))
FASTGEN_LANES(lanes_gelu, (0.5f * a) * (1.0f + erf(a * 0.707106781f)))
FASTGEN_LANES(lanes_add, a + b)
FASTGEN_LANES(lanes_sub, a - b)
FASTGEN_LANES(lanes_mul, (a * b))
FASTGEN_LANES(lanes_div, a / b)
FASTGEN_LANES(lanes_max, max(a, b))
FASTGEN_LANES(lanes_min, min(a, b))
FASTGEN_LANES(lanes_pow, pow(a, b))
FASTGEN_LANES(lanes_lt, truth(a < b))
FASTGEN_LANES(lanes_le, truth(a <= b))
FASTGEN_LANES(lanes_eq, truth(a == b))
FASTGEN_LANES(lanes_ne, truth(a != b))
FASTGEN_LANES(lanes_where, a != 0.0f ? b : c)
FASTGEN_LANES(lanes_addc, a + x)
FASTGEN_LANES(lanes_mulc, (a * x))
FASTGEN_LANES(lanes_clamp, min(max(a, broadcast(x)), broadcast(y)))
FASTGEN_LANES(lanes_trunc, trunc(a))
FASTGEN_LANES(lanes_fmod, fmod(a, b))
FASTGEN_LANES(lanes_remainder, remainder(a, b))
FASTGEN_LANES(lanes_floor_divide, floor_divide(a, b))
FASTGEN_LANES(lanes_bitand, numbers(integers(a) & integers(b)))
FASTGEN_LANES(lanes_bitor, numbers(integers(a) | integers(b)))
FASTGEN_LANES(lanes_bitxor, numbers(integers(a) ^ integers(b)))
FASTGEN_LANES(lanes_mulmod, mulmod(a, b, c, x))
#undef FASTGEN_LANES

// n floats, which do not overlap.
inline void copy(float* dst, const float* src, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(dst + i, load(src + i));
#if defined(__AVX512F__)
  const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1);
  _mm512_mask_storeu_ps(dst + i, rest, _mm512_maskz_loadu_ps(rest, src + i));
#else
  for (; i < n; ++i) dst[i] = src[i];
#endif
}

void gather(float* dst, const float* src, std::ptrdiff_t stride, std::size_t n) {
  std::size_t i = 0;
  if (stride == 1) {
    copy(dst, src, n);
  } else if (stride == 0) {
    const float value = n ? *src : 0.0f;
    for (; i < n; ++i) dst[i] = value;
  } else {
    for (; i < n; ++i) dst[i] = src[static_cast<std::ptrdiff_t>(i) * stride];
  }
}

void scatter(float* dst, std::ptrdiff_t stride, const float* src, std::size_t n) {
  if (stride == 1) {
    copy(dst, src, n);
  } else {
    for (std::size_t i = 0; i < n; ++i) dst[static_cast<std::ptrdiff_t>(i) * stride] = src[i];
  }
}

inline Float combine(std::int64_t opcode, Float a, Float b) {
  return opcode == kSum ? a + b : opcode == kAmax ? max(a, b) : min(a, b);
}

// Column i of 16 combines the values i, i + 16, ...; then the columns are folded in halves. The order depends on n only.
inline float reduce_group(std::int64_t opcode, const float* a, std::size_t n) {
  const float neutral = opcode == kSum ? 0.0f : opcode == kAmax ? -INFINITY : INFINITY;
  Float columns[kTile / kWidth];
  for (Float& column : columns) column = broadcast(neutral);
  std::size_t i = 0;
  for (; i + kTile <= n; i += kTile)
    for (int v = 0; v < kTile / kWidth; ++v) columns[v] = combine(opcode, columns[v], load(a + i + v * kWidth));
  float last[kTile + kWidth];
  if (i < n) {
    for (float& value : last) value = neutral;
    for (std::size_t j = 0; i + j < n; ++j) last[j] = a[i + j];
    for (int v = 0; v < kTile / kWidth; ++v) columns[v] = combine(opcode, columns[v], load(last + v * kWidth));
  }
  for (float& value : last) value = neutral;
  for (int v = 0; v < kTile / kWidth; ++v) store(last + v * kWidth, columns[v]);
  for (int half = kTile / 2; half > 0; half /= 2)
    for (int j = 0; j < half; j += kWidth) store(last + j, combine(opcode, load(last + j), load(last + j + half)));
  return last[0];
}

void reduce(std::int64_t opcode, float* dst, const float* a, std::size_t n, std::size_t group) {
  for (std::size_t i = 0; i < n; i += group) {
    const float value = reduce_group(opcode, a + i, group);
    for (std::size_t j = 0; j < group; ++j) dst[i + j] = value;
  }
}

// Both run a fixed number of independent chains, enough to hide the latency of an addition.
float read(const float* data, std::size_t n) {
  constexpr int chains = 8;
  Float sum[chains] = {};
  for (std::size_t i = 0; i < n; i += chains * kWidth) {
#pragma GCC unroll 8
    for (int c = 0; c < chains; ++c) sum[c] += load(data + i + c * kWidth);
  }
  Float total = {};
  for (Float value : sum) total += value;
  float result = 0;
  for (int i = 0; i < kWidth; ++i) result += total[i];
  return result;
}

double fma_burst(std::int64_t rounds, float* sink) {
  constexpr int chains = 12;
  Float sum[chains];
  for (int c = 0; c < chains; ++c) sum[c] = broadcast(static_cast<float>(c));
  const Float a = load(sink), b = load(sink + kTile);
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], a, b);
  }
  Float total = {};
  for (Float value : sum) total += value;
  store(sink, total);
  return 2.0 * chains * kWidth * static_cast<double>(rounds);
}

}  // namespace
}  // namespace fastgen
