// The recurrence of the Row LSTM and of the Diagonal BiLSTM, kWidth positions at once: a step's convolution stays in registers
// until the cell has used it.
#include "common/lanes.h"
#include "cpu/skew_lstm/skew_lstm.h"

namespace fastgen {
namespace {

constexpr int kRows = kLstmRows;

// sums[r][v] += the packed block's coefficients of output r times the channels' rows, shifted by each tap.
template <int kVectors, typename V, typename T>
inline void convolve(V (&sums)[kRows][kVectors], const T* packed, const T* rows, std::int64_t stride, std::int64_t channels,
                     std::int64_t taps) {
  for (std::int64_t channel = 0; channel < channels; ++channel) {
    for (std::int64_t tap = 0; tap < taps; ++tap, packed += kRows) {
      V x[kVectors];
      for (int v = 0; v < kVectors; ++v) x[v] = load_vector<V>(rows + channel * stride + tap + v * kWidth);
      for (int r = 0; r < kRows; ++r) {
        const V coefficient = V{} + packed[r];
        for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(coefficient, x[v], sums[r][v]);
      }
    }
  }
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// function(first position, how many vectors) for all positions.
template <typename Function>
inline void each_block(std::int64_t positions, Function function) {
  std::int64_t l = 0;
  for (; l + kWidth < positions; l += 2 * kWidth) function(l, Count<2>());
  if (l < positions) function(l, Count<1>());
}

template <typename T>
struct Sample {
  using V = typename VectorOf<T>::type;

  const SkewLstm<T>& task;
  const std::int64_t n, kept;  // the sample; the steps whose state is kept
  const LstmRow row = lstm_row(task.positions, task.taps, kWidth);
  const std::int64_t left = task.taps / 2, right = task.taps - 1 - left;  // zeros before a row of h, and of gradients
  T* const h;              // [hidden, kept, row.size]
  T* const c;              // [hidden, kept, row.columns]
  T* const gradients;      // [4 hidden, steps, row.size]: of the gates
  T* const grad_c;         // [hidden, row.columns]

  Sample(const SkewLstm<T>& task, std::int64_t n, std::int64_t kept, T* scratch)
      : task(task), n(n), kept(kept), h(scratch), c(h + task.hidden * kept * row.size),
        gradients(c + task.hidden * kept * row.columns), grad_c(gradients + 4 * task.hidden * task.steps * row.size) {}

  T* h_at(std::int64_t unit, std::int64_t step) const { return h + (unit * kept + step % kept) * row.size; }
  T* c_at(std::int64_t unit, std::int64_t step) const { return c + (unit * kept + step % kept) * row.columns; }
  std::int64_t gate_at(std::int64_t gate, std::int64_t unit, std::int64_t step) const {
    return (((n * 4 + gate) * task.hidden + unit) * task.steps + step) * task.positions;
  }
  std::int64_t unit_at(std::int64_t unit, std::int64_t step) const {
    return ((n * task.hidden + unit) * task.steps + step) * task.positions;
  }
  std::int64_t state_at(std::int64_t unit) const { return (n * task.hidden + unit) * task.positions; }

  // State s is the one before step s; the cell's gates go where their gradients will be, if they are kept.
  template <bool kKeepGates>
  void forward() const {
    for (std::int64_t unit = 0; unit < task.hidden; ++unit) {
      for (std::int64_t l = 0; l < task.positions; ++l) {
        h_at(unit, 0)[left + l] = task.h0[state_at(unit) + l];
        c_at(unit, 0)[l] = task.c0[state_at(unit) + l];
      }
    }
    for (std::int64_t step = 0; step < task.steps; ++step) {
      each_block(task.positions, [&](std::int64_t l, auto count) __attribute__((always_inline)) {
        constexpr int kVectors = decltype(count)::value;
        for (std::int64_t unit = 0; unit < task.hidden; ++unit) cells<kVectors, kKeepGates>(step, l, unit);
      });
    }
  }

  template <int kVectors, bool kKeepGates>
  void cells(std::int64_t step, std::int64_t l, std::int64_t unit) const {
    V sums[kRows][kVectors];
    for (int gate = 0; gate < kRows; ++gate) {
      const T* from = task.gates + gate_at(gate, unit, step) + l;
      for (int v = 0; v < kVectors; ++v) sums[gate][v] = load_first<V>(from + v * kWidth, task.positions - l - v * kWidth);
    }
    const T* packed = task.forwards + unit * task.hidden * task.taps * kRows;
    convolve<kVectors>(sums, packed, h_at(0, step) + l, kept * row.size, task.hidden, task.taps);
    for (int v = 0; v < kVectors; ++v) {
      const std::int64_t at = l + v * kWidth, valid = task.positions - at;
      const V i = sigmoid(sums[0][v]), f = sigmoid(sums[1][v]), o = sigmoid(sums[2][v]), g = tanh(sums[3][v]);
      const V cell = f * load_vector<V>(c_at(unit, step) + at) + i * g, out = o * tanh(cell);
      store_vector(c_at(unit, step + 1) + at, cell);
      store_first(h_at(unit, step + 1) + left + at, out, valid);
      if constexpr (kKeepGates) {
        const V gates[kRows] = {i, f, o, g};
        for (int gate = 0; gate < kRows; ++gate)
          store_first(task.grad_gates + gate_at(gate, unit, step) + at, gates[gate], valid);
      } else {
        store_first(task.h + unit_at(unit, step) + at, out, valid);
        if (step + 1 == task.steps) store_first(task.c + state_at(unit) + at, cell, valid);
      }
    }
  }

  T* gradient_at(std::int64_t output, std::int64_t step) const { return gradients + (output * task.steps + step) * row.size; }

  // What the step after hands to kRows units of h.
  template <int kVectors>
  void pull(V (&sums)[kRows][kVectors], std::int64_t first, std::int64_t after, std::int64_t l) const {
    const T* packed = task.backwards + first * 4 * task.hidden * task.taps;
    convolve<kVectors>(sums, packed, gradient_at(0, after) + l, task.steps * row.size, 4 * task.hidden, task.taps);
  }

  void backward() const {
    for (std::int64_t unit = 0; unit < task.hidden; ++unit) {
      for (std::int64_t l = 0; l < task.positions; ++l) grad_c[unit * row.columns + l] = task.grad_c[state_at(unit) + l];
    }
    for (std::int64_t step = task.steps - 1; step >= -1; --step) {
      each_block(task.positions, [&](std::int64_t l, auto count) __attribute__((always_inline)) {
        constexpr int kVectors = decltype(count)::value;
        for (std::int64_t first = 0; first < task.hidden; first += kRows) gradients_of<kVectors>(step, l, first);
      });
    }
  }

  // Of kRows units at a step; at step -1, of the state before the first.
  template <int kVectors>
  void gradients_of(std::int64_t step, std::int64_t l, std::int64_t first) const {
    const std::int64_t units = task.hidden - first < kRows ? task.hidden - first : kRows;
    V of_h[kRows][kVectors] = {};
    for (std::int64_t r = 0; step >= 0 && r < units; ++r) {
      const T* from = task.grad_h + unit_at(first + r, step) + l;
      for (int v = 0; v < kVectors; ++v) of_h[r][v] = load_first<V>(from + v * kWidth, task.positions - l - v * kWidth);
    }
    if (step + 1 < task.steps) pull<kVectors>(of_h, first, step + 1, l);
    for (std::int64_t r = 0; r < units; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const std::int64_t at = l + v * kWidth, unit = first + r;
        if (step >= 0) {
          cell_gradient(step, unit, at, of_h[r][v]);
        } else {
          store_first(task.grad_h0 + state_at(unit) + at, of_h[r][v], task.positions - at);
          store_first(task.grad_c0 + state_at(unit) + at, load_vector<V>(grad_c + unit * row.columns + at), task.positions - at);
        }
      }
    }
  }

  void cell_gradient(std::int64_t step, std::int64_t unit, std::int64_t at, V of_h) const {
    const std::int64_t valid = task.positions - at;
    V gates[kRows];
    for (int gate = 0; gate < kRows; ++gate) gates[gate] = load_first<V>(task.grad_gates + gate_at(gate, unit, step) + at, valid);
    const V i = gates[0], f = gates[1], o = gates[2], g = gates[3], one = V{} + 1;
    const V before = load_vector<V>(c_at(unit, step) + at), bounded = tanh(load_vector<V>(c_at(unit, step + 1) + at));
    T* const carried = grad_c + unit * row.columns + at;
    const V of_c = load_vector<V>(carried) + of_h * o * ((one - bounded) * (one + bounded));
    const V found[kRows] = {of_c * g * (i * (one - i)), of_c * before * (f * (one - f)), of_h * bounded * (o * (one - o)),
                            of_c * i * ((one - g) * (one + g))};
    store_vector(carried, of_c * f);
    for (int gate = 0; gate < kRows; ++gate) {
      store_first(gradient_at(gate * task.hidden + unit, step) + right + at, found[gate], valid);
      store_first(task.grad_gates + gate_at(gate, unit, step) + at, found[gate], valid);
    }
  }

  // grad_weight [4 hidden, hidden, taps] += gradients of the gates times the h before, over steps and positions.
  void weight_gradient(T* grad_weight) const {
    constexpr int kColumns = kWidth == 16 ? 4 : 2;
    const std::int64_t columns = task.hidden * task.taps;
    for (std::int64_t output = 0; output < 4 * task.hidden; output += kRows) {
      const T* of_gates = gradient_at(output, 0) + right;
      for (std::int64_t first = 0; first < columns; first += kColumns) {
        const T* states[kColumns];
        for (int q = 0; q < kColumns; ++q) {
          const std::int64_t column = first + q < columns ? first + q : columns - 1;
          states[q] = h_at(column / task.taps, 0) + column % task.taps;
        }
        V sums[kRows][kColumns] = {};
        for (std::int64_t step = 0; step < task.steps; ++step) {
          for (std::int64_t l = 0; l < task.positions; l += kWidth) {
            V x[kColumns];
            for (int q = 0; q < kColumns; ++q) x[q] = load_vector<V>(states[q] + step * row.size + l);
            for (int r = 0; r < kRows; ++r) {
              const V gradient = load_vector<V>(of_gates + (r * task.steps + step) * row.size + l);
              for (int q = 0; q < kColumns; ++q) sums[r][q] = fma(gradient, x[q], sums[r][q]);
            }
          }
        }
        for (int r = 0; r < kRows; ++r) {
          for (int q = 0; q < kColumns && first + q < columns; ++q) {
            T& total = grad_weight[(output + r) * columns + first + q];
            for (int lane = 0; lane < kWidth; ++lane) total += sums[r][q][lane];
          }
        }
      }
    }
  }
};

template <typename T>
void forward(const SkewLstm<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  for (std::int64_t n = begin; n < end; ++n) Sample<T>(task, n, 2, scratch).template forward<false>();
}

template <typename T>
void backward(const SkewLstm<T>& task, std::int64_t begin, std::int64_t end, T* grad_weight, T* scratch) {
  for (std::int64_t n = begin; n < end; ++n) {
    const Sample<T> sample(task, n, task.steps + 1, scratch);
    sample.template forward<true>();
    sample.backward();
    sample.weight_gradient(grad_weight);
  }
}

}  // namespace

const SkewLstmKernels& FASTGEN_OF_ISA(skew_lstm_kernels)() {
  static const SkewLstmKernels kernels = {kWidth, forward<float>, forward<double>, backward<float>, backward<double>};
  return kernels;
}

}  // namespace fastgen
