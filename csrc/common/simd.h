// Vectors of float32 and their elementary functions, for the instruction set that the including file is compiled for.
//
// Everything is in an unnamed namespace: each translation unit has its own copy, so that a function compiled for a wider
// instruction set can never be linked into a narrower one. Include nothing with inline code of the standard library beside it
// in files that are compiled with -m flags.
//
// `Float` holds kWidth lanes (16 with AVX-512, 8 with AVX2, 4 otherwise). Every function works lane by lane: the result of a
// lane does not depend on its neighbours. Errors, in units in the last place of float32: exp, log, log1p, expm1, tanh, sigmoid,
// erf, sin, cos, softplus at most 3; infinities and NaN as in IEEE 754.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own headers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fastgen {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Float __attribute__((vector_size(kWidth * 4)));
typedef std::int32_t Int __attribute__((vector_size(kWidth * 4)));
typedef std::uint32_t Unsigned __attribute__((vector_size(kWidth * 4)));

inline Float broadcast(float x) { return x - Float{}; }
inline Int broadcast_int(std::int32_t x) { return x - Int{}; }

inline Float load(const float* p) {
  Float v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Float v) { std::memcpy(p, &v, sizeof v); }

inline Int bits(Float v) { return (Int)v; }
inline Float from_bits(Int v) { return (Float)v; }
inline Float select(Int mask, Float a, Float b) { return mask ? a : b; }

// a * b + c in one rounding, except on x86 without FMA, where it takes two.
inline Float fma(Float a, Float b, Float c) {
#if defined(__AVX512F__)
  return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline Float sqrt(Float a) {
#if defined(__AVX512F__)
  return (Float)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
  return (Float)_mm256_sqrt_ps((__m256)a);
#elif defined(__aarch64__)
  return (Float)vsqrtq_f32((float32x4_t)a);
#elif defined(__x86_64__)
  return (Float)_mm_sqrt_ps((__m128)a);
#else
  for (int i = 0; i < kWidth; ++i) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

inline Float abs(Float a) { return from_bits(bits(a) & 0x7fffffff); }
inline Float copysign(Float magnitude, Float sign) {
  return from_bits((bits(magnitude) & 0x7fffffff) | (bits(sign) & INT32_MIN));
}
inline Int is_nan(Float a) { return a != a; }

// The larger and the smaller; NaN where either is NaN.
inline Float max(Float a, Float b) {
  const Float larger = a < b ? b : a;
  return is_nan(b) ? b : larger;
}
inline Float min(Float a, Float b) {
  const Float smaller = b < a ? b : a;
  return is_nan(b) ? b : smaller;
}

// Nearest integer, ties to even.
inline Float round(Float a) {
#if defined(__AVX512F__)
  return (Float)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
  return (Float)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  return (Float)vrndnq_f32((float32x4_t)a);
#else
  const Float magic = broadcast(8388608.0f);  // magnitudes of 2^23 and more are integers already
  const Float size = abs(a);
  const Float rounded = (size + magic) - magic;
  return copysign(size < magic ? rounded : size, a);
#endif
}
inline Float floor(Float a) {
  const Float r = round(a);
  return copysign(r > a ? r - 1.0f : r, a);
}
inline Float ceil(Float a) {
  const Float r = round(a);
  return copysign(r < a ? r + 1.0f : r, a);
}

// Modulo 2^32: of the bits of NaN and of negative numbers, whose results are not used.
inline Int wrapping_add(Int a, Int b) { return (Int)((Unsigned)a + (Unsigned)b); }
inline Int wrapping_subtract(Int a, Int b) { return (Int)((Unsigned)a - (Unsigned)b); }

// 2^n for integers n in [-126, 127].
inline Float power_of_two(Int n) { return from_bits((n + 127) << 23); }

// exp(r) - 1 - r for |r| <= log(2) / 2.
inline Float expm1_tail(Float r) {
  Float p = broadcast(1.9841270e-4f);
  p = fma(p, r, broadcast(1.3888889e-3f));
  p = fma(p, r, broadcast(8.3333333e-3f));
  p = fma(p, r, broadcast(4.1666668e-2f));
  p = fma(p, r, broadcast(1.6666667e-1f));
  p = fma(p, r, broadcast(0.5f));
  return p * (r * r);
}

// x = n log 2 + r, for x in [-104, 89].
inline void reduce_by_log2(Float x, Int& n, Float& r) {
  const Float whole = round(x * 1.44269504f);
  n = __builtin_convertvector(whole, Int);
  r = fma(whole, broadcast(-0.693145752f), x);
  r = fma(whole, broadcast(-1.42860677e-6f), r);
}

// a 2^n for integers n in [-150, 150] that are given as floats; NaN of NaN.
inline Float scale_by_power(Float a, Float n) {
#if defined(__AVX512F__)
  return (Float)_mm512_scalef_ps((__m512)a, (__m512)n);
#else
  const Int whole = __builtin_convertvector(is_nan(n) ? Float{} : n, Int), half = whole >> 1;
  return a * power_of_two(half) * power_of_two(whole - half);
#endif
}

inline Float exp(Float x) {
  const Float limited = x < -104.0f ? broadcast(-104.0f) : (x > 89.0f ? broadcast(89.0f) : x);
  const Float whole = round(limited * 1.44269504f);
  Float r = fma(whole, broadcast(-0.693145752f), limited);
  r = fma(whole, broadcast(-1.42860677e-6f), r);
  return scale_by_power((expm1_tail(r) + r) + 1.0f, whole);
}

// exp(x) of N vectors of x <= 0 at once, at least exp(-87): step by step, so that their chains of operations overlap.
template <int N>
inline void exp_nonpositive(Float (&x)[N]) {
  constexpr float kTail[] = {1.3888889e-3f, 8.3333333e-3f, 4.1666668e-2f, 1.6666667e-1f, 0.5f};  // as in expm1_tail
  const Float magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, the low bits of the sum
  Float shifted[N], p[N];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = x[i] < -87.0f ? broadcast(-87.0f) : x[i];
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) shifted[i] = fma(x[i], broadcast(1.44269504f), magic);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = fma(shifted[i] - magic, broadcast(-0.693145752f), x[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = fma(shifted[i] - magic, broadcast(-1.42860677e-6f), x[i]);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) p[i] = broadcast(1.9841270e-4f);
#pragma GCC unroll 8
  for (int k = 0; k < 5; ++k) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) p[i] = fma(p[i], x[i], broadcast(kTail[k]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = (p[i] * (x[i] * x[i]) + x[i]) + 1.0f;
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) x[i] = x[i] * from_bits(wrapping_add(bits(shifted[i]) << 23, broadcast_int(0x3f800000)));
}
inline Float exp_nonpositive(Float x) {
  Float one[1] = {x};
  exp_nonpositive(one);
  return one[0];
}

inline Float expm1(Float x) {
  const Float limited = x < -30.0f ? broadcast(-30.0f) : (x > 89.0f ? broadcast(89.0f) : x);
  Int n;
  Float r;
  reduce_by_log2(is_nan(x) ? Float{} : limited, n, r);
  const Float tail = expm1_tail(r);
  const Int half = n >> 1;
  const Float s1 = power_of_two(half), s2 = power_of_two(n - half);
  // 2^n (1 + r + tail) - 1 = (2^n - 1) + 2^n (r + tail); for large n the 1 is lost anyway, and 2^n may overflow.
  const Float small = fma(s1 * s2, tail, fma(s1 * s2, r, s1 * s2 - 1.0f));
  const Float large = ((tail + r) + 1.0f) * s1 * s2;
  const Float result = n == 0 ? r + tail : (n > 40 ? large : small);
  return is_nan(x) | (x == 0.0f) ? x : result;
}

// log(x + low) of a positive normal number, low below a unit in its last place. x = 2^e m with m in [2/3, 4/3).
inline Float log_of(Float x, Float low) {
  const Int raised = wrapping_subtract(bits(x), broadcast_int(0x3f2aaaab));
  const Int e = raised >> 23;
  const Float m = from_bits(wrapping_subtract(bits(x), raised & broadcast_int(-0x800000)));
  const Float f = (m - 1.0f) + (e > 60 ? Float{} : low * power_of_two(-e));
  Float p = broadcast(-0.130187988f);
  p = fma(p, f, broadcast(0.140889585f));
  p = fma(p, f, broadcast(-0.121489584f));
  p = fma(p, f, broadcast(0.139809534f));
  p = fma(p, f, broadcast(-0.166845024f));
  p = fma(p, f, broadcast(0.200121149f));
  p = fma(p, f, broadcast(-0.249996364f));
  p = fma(p, f, broadcast(0.333331943f));
  p = fma(p, f, broadcast(-0.5f));
  const Float square = f * f;
  return fma(__builtin_convertvector(e, Float), broadcast(0.693147182f), fma(p, square, f));
}

inline Float log(Float x) {
  const Int tiny = x < 1.17549435e-38f;
  const Float scaled = tiny ? x * 8388608.0f : x;
  Float result = log_of(scaled, Float{});
  result = tiny ? result - 15.9423851f : result;
  const Float infinity = broadcast(INFINITY);
  result = x == 0.0f ? -infinity : result;
  result = x < 0.0f ? broadcast(NAN) : result;
  return is_nan(x) | (x == infinity) ? x : result;
}

inline Float log1p(Float x) {
  const Float infinity = broadcast(INFINITY);
  const Float u = 1.0f + x;
  const Float low = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // 1 + x = u + low exactly
  Float result = log_of(u, low);
  result = x == -1.0f ? -infinity : result;
  result = x < -1.0f ? broadcast(NAN) : result;
  return is_nan(x) | (x == infinity) | (abs(x) < 1e-20f) ? x : result;
}

inline Float sigmoid(Float x) {
  const Float z = exp(-abs(x));
  return (x < 0.0f ? z : broadcast(1.0f)) / (1.0f + z);
}

// E / (E + 2) near zero and 1 - 2 / (E + 2) elsewhere, with E = exp(2 |x|) - 1 = 2^n (1 + r + tail) - 1.
inline Float tanh(Float x) {
  const Float size = abs(x), limited = size > 10.0f ? broadcast(10.0f) : size;
  const Float whole = round(limited * 2.88539008f);
  Float r = fma(whole, broadcast(-0.693145752f), limited + limited);
  r = fma(whole, broadcast(-1.42860677e-6f), r);
  const Float power = scale_by_power(broadcast(1.0f), whole);
  const Float e = fma(power, expm1_tail(r), fma(power, r, power - 1.0f));
  return copysign(e / (e + 2.0f), x);
}

// Minimax approximations of N. Juffa, two branches.
inline Float erf(Float x) {
  const Float t = abs(x), s = x * x;
  Float r = fma(broadcast(-1.72853470e-5f), t, broadcast(3.83197126e-4f));
  const Float u = fma(broadcast(-3.88396438e-3f), t, broadcast(2.42546219e-2f));
  r = fma(r, s, u);
  r = fma(r, t, broadcast(-1.06777877e-1f));
  r = fma(r, t, broadcast(-6.34846687e-1f));
  r = fma(r, t, broadcast(-1.28717512e-1f));
  r = fma(r, t, -t);
  const Float outer = copysign(1.0f - exp(t > 4.0f ? broadcast(-40.0f) : r), x);
  Float p = broadcast(-5.96761703e-4f);
  p = fma(p, s, broadcast(4.99119423e-3f));
  p = fma(p, s, broadcast(-2.67681349e-2f));
  p = fma(p, s, broadcast(1.12819925e-1f));
  p = fma(p, s, broadcast(-3.76125336e-1f));
  p = fma(p, s, broadcast(1.28379166e-1f));
  const Float result = t > 0.927734375f ? outer : fma(p, x, x);
  return is_nan(x) ? x : result;
}

// The range in which three fma reduce an argument by multiples of pi / 2 without loss; the rest goes lane by lane through the C
// library.
#if defined(__FMA__) || defined(__aarch64__)
constexpr float kNearTurns = 8192.0f;
#else
constexpr float kNearTurns = 0.0f;
#endif

// sin(x + quarter_turns pi / 2).
inline Float sine(Float x, int quarter_turns) {
  const Int far = ~(abs(x) <= kNearTurns);
  const Float near = far ? Float{} : x;
  const Float whole = round(near * 0.636619747f);
  Float r = fma(whole, broadcast(-1.57079601f), near);
  r = fma(whole, broadcast(-3.13916473e-7f), r);
  r = fma(whole, broadcast(-5.39030253e-15f), r);
  const Int quadrant = __builtin_convertvector(whole, Int) + quarter_turns;
  const Float s = r * r;
  Float p = fma(broadcast(2.86567956e-6f), s, broadcast(-1.98559923e-4f));
  p = fma(p, s, broadcast(8.33338592e-3f));
  p = fma(p, s, broadcast(-1.66666672e-1f));
  const Float odd = fma(p, r * s, r);
  Float c = fma(broadcast(2.44677067e-5f), s, broadcast(-1.38877297e-3f));
  c = fma(c, s, broadcast(4.16666567e-2f));
  c = fma(c, s, broadcast(-0.5f));
  const Float even = fma(c, s, broadcast(1.0f));
  Float result = (quadrant & 1) != 0 ? even : odd;
  result = (quadrant & 2) != 0 ? -result : result;
  for (int i = 0; i < kWidth; ++i) {
    if (far[i])
      result[i] = static_cast<float>(quarter_turns ? std::cos(static_cast<double>(x[i])) : std::sin(static_cast<double>(x[i])));
  }
  return result;
}
inline Float sin(Float x) { return sine(x, 0); }
inline Float cos(Float x) { return sine(x, 1); }

inline Float pow(Float a, Float b) {
  for (int i = 0; i < kWidth; ++i) a[i] = static_cast<float>(std::pow(static_cast<double>(a[i]), static_cast<double>(b[i])));
  return a;
}

}  // namespace
}  // namespace fastgen
