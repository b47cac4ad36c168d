// Activations with their derivatives, and what they do to the tangents beside them.
//
// Like simd.h, for files that are compiled once for each instruction set.
#pragma once

#include "common/lanes.h"
#include "cpu/hutchinson_trace/hutchinson_trace.h"

#include <type_traits>

namespace fastgen {
namespace {

// Calls `body` with the activation as a constant: what its value, slope and bend have in common is then computed once.
template <typename Body>
inline void with_activation(int activation, Body body) {
  switch (activation) {
    case 0: return body(std::integral_constant<int, 0>{});
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    default: return body(std::integral_constant<int, 3>{});
  }
}

template <typename V>
inline void activate(int activation, V a, V& value, V& slope) {
  const V one = V{} + 1;
  if (activation == 0) {
    value = tanh(a);
    slope = one - value * value;
    return;
  }
  if (activation == 1) {
    const V z = exp_nonpositive(-abs(a));
    value = max(a, V{}) + log1p_of_part(z);
    slope = (a < 0 ? z : one) / (one + z);
    return;
  }
  if (activation == 3) {
    const V below = min(a, V{});
    value = a > 0 ? a : expm1(below);
    slope = exp_nonpositive(below);
    return;
  }
  const V gate = sigmoid(a);
  value = a * gate;
  slope = gate * (one + a * (one - gate));
}

// The derivative of the slope.
template <typename V>
inline V bend_of(int activation, V a, V value, V slope) {
  if (activation == 0) return -2 * value * slope;
  const V one = V{} + 1;
  if (activation == 1) return slope * (one - slope);
  if (activation == 3) return a > 0 ? V{} : slope;
  const V gate = sigmoid(a);
  return gate * (one - gate) * (2 + a * (one - 2 * gate));
}

// A piece of a sample: its numbers start .. start + count.
template <typename T>
inline void activate_piece(const ActivationData<T>& data, std::int64_t sample, std::int64_t start, std::int64_t count) {
  using V = typename VectorOf<T>::type;
  const std::int64_t at = sample * data.numbers + start;
  const T* a = data.a + at;
  T *values = data.value + at, *slopes = data.slope + at;
  for (std::int64_t i = 0; i < count; i += kWidth) {
    V value, slope;
    activate(data.activation, load_first<V>(a + i, count - i), value, slope);
    store_first(values + i, value, count - i);
    store_first(slopes + i, slope, count - i);
  }
  for (std::int64_t p = 0; p < data.probes; ++p) {
    const T* tangents = data.tangents + p * data.tangents_probe + sample * data.tangents_sample + start;
    T* scaled = data.scaled + p * data.samples * data.numbers + at;
    for (std::int64_t i = 0; i < count; i += kWidth) {
      store_first(scaled + i, load_first<V>(tangents + i, count - i) * load_first<V>(slopes + i, count - i), count - i);
    }
  }
}

template <typename T>
inline void activate_piece_backward(const ActivationData<T>& data, std::int64_t sample, std::int64_t start, std::int64_t count) {
  using V = typename VectorOf<T>::type;
  const std::int64_t at = sample * data.numbers + start;
  const T *a = data.a + at, *values = data.value + at, *slopes = data.slope + at, *gradient = data.gradient + at;
  V of_slope[kActivationPiece / kWidth] = {};
  for (std::int64_t p = 0; p < data.probes; ++p) {
    const std::int64_t to = p * data.samples * data.numbers + at;
    const T* tangents = data.tangents + p * data.tangents_probe + sample * data.tangents_sample + start;
    const T* carried = data.carried + to;
    for (std::int64_t i = 0; i < count; i += kWidth) {
      const V slope = load_first<V>(slopes + i, count - i), tangent = load_first<V>(tangents + i, count - i);
      const V cotangent = load_first<V>(carried + i, count - i);
      of_slope[i / kWidth] = fma(tangent, cotangent, of_slope[i / kWidth]);
      store_first(data.scaled_carried + to + i, cotangent * slope, count - i);
      store_first(data.scaled + to + i, tangent * slope, count - i);
    }
  }
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const V slope = load_first<V>(slopes + i, count - i);
    const V bend = bend_of(data.activation, load_first<V>(a + i, count - i), load_first<V>(values + i, count - i), slope);
    const V through = load_first<V>(gradient + i, count - i) * slope;
    store_first(data.grad_a + at + i, fma(of_slope[i / kWidth], bend, through), count - i);
  }
}

template <typename T>
inline void contract_piece(const ActivationData<T>& data, std::int64_t sample, std::int64_t start, std::int64_t count) {
  using V = typename VectorOf<T>::type;
  const std::int64_t at = sample * data.numbers + start;
  V sum[kActivationPiece / kWidth] = {};
  for (std::int64_t p = 0; p < data.probes; ++p) {
    const T* tangents = data.tangents + p * data.tangents_probe + sample * data.tangents_sample + start;
    const T* carried = data.carried + p * data.carried_probe + sample * data.carried_sample + start;
    for (std::int64_t i = 0; i < count; i += kWidth) {
      sum[i / kWidth] = fma(load_first<V>(tangents + i, count - i), load_first<V>(carried + i, count - i), sum[i / kWidth]);
    }
  }
  for (std::int64_t i = 0; i < count; i += kWidth) {
    store_first(data.value + at + i, sum[i / kWidth] * load_first<V>(data.slope + at + i, count - i), count - i);
  }
}

// Each piece of begin .. end by `Piece`.
template <auto Piece, typename T>
void each_piece(const ActivationData<T>& data, std::int64_t begin, std::int64_t end) {
  const std::int64_t pieces = (data.numbers + kActivationPiece - 1) / kActivationPiece;
  for (std::int64_t piece = begin; piece < end; ++piece) {
    const std::int64_t sample = piece / pieces, start = piece % pieces * kActivationPiece;
    const std::int64_t rest = data.numbers - start, count = rest < kActivationPiece ? rest : kActivationPiece;
    Piece(data, sample, start, count);
  }
}

}  // namespace
}  // namespace fastgen
