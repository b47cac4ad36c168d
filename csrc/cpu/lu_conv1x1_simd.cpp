// The inverse of the LU-parameterised 1x1 convolution: substitution in both triangles, for kWidth positions in a vector.
#include "common/lanes.h"
#include "cpu/lu_conv1x1.h"

namespace fastgen {
namespace {

constexpr int kGroups = kWidth == 16 ? 4 : 2;  // as many as leave a register for every sum

// Slot k in the order of solution is first[kStep * k], of group g `slots` vectors further.
template <int kStep, int kCount, typename V, typename T>
inline void substitute(std::int64_t slots, const T* packed, V* first) {
  for (std::int64_t k = 0; k < slots; k += kLuRows) {
    V sum[kLuRows][kCount];
#pragma GCC unroll 4
    for (int r = 0; r < kLuRows; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) sum[r][g] = first[g * slots + kStep * (k + r)];
    }
    for (std::int64_t j = 0; j < k; ++j, packed += kLuRows) {
#pragma GCC unroll 4
      for (int r = 0; r < kLuRows; ++r) {
        const V coefficient = packed[r] - V{};
#pragma GCC unroll 4
        for (int g = 0; g < kCount; ++g) sum[r][g] = fma(coefficient, first[g * slots + kStep * j], sum[r][g]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kLuRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < r; ++s) {
        const V coefficient = packed[s * kLuRows + r] - V{};
#pragma GCC unroll 4
        for (int g = 0; g < kCount; ++g) sum[r][g] = fma(coefficient, sum[s][g], sum[r][g]);
      }
      const T reciprocal = packed[kLuRows * kLuRows + r];
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) first[g * slots + kStep * (k + r)] = sum[r][g] = sum[r][g] * reciprocal;
    }
    packed += kLuRows * kLuRows + kLuRows;
  }
}

template <typename V, typename T>
inline void load_group(const LuSolve<T>& task, std::int64_t group, V* slots, V* columns) {
  const std::int64_t channels = task.channels, positions = task.positions;
  if (positions == 1) {
    const std::int64_t n = group * kWidth, left = task.samples - n;
    load_columns(task.given + n * channels, left < kWidth ? left : kWidth, channels, channels, columns);
    for (std::int64_t j = 0; j < channels; ++j) slots[j] = columns[task.from[j]];
  } else {
    const std::int64_t each = lu_groups_of_sample(positions, kWidth), p = group % each * kWidth;
    const T* sample = task.given + group / each * channels * positions + p;
    if (positions - p >= kWidth) {
      for (std::int64_t j = 0; j < channels; ++j) slots[j] = load_vector<V>(sample + task.from[j] * positions);
    } else {
      for (std::int64_t j = 0; j < channels; ++j) slots[j] = load_first<V>(sample + task.from[j] * positions, positions - p);
    }
  }
  for (std::int64_t j = channels; j < task.slots; ++j) slots[j] = V{};
}

// Slot j goes to channel to(j) of the result, changed by change(value, j).
template <typename V, typename T, typename To, typename Change>
inline void store_group(const LuSolve<T>& task, T* result, std::int64_t group, const V* slots, V* columns, To to, Change change) {
  const std::int64_t channels = task.channels, positions = task.positions;
  if (positions == 1) {
    const std::int64_t n = group * kWidth, left = task.samples - n;
    for (std::int64_t j = 0; j < channels; ++j) columns[to(j)] = change(slots[j], j);
    store_columns(result + n * channels, left < kWidth ? left : kWidth, channels, channels, columns);
  } else {
    const std::int64_t each = lu_groups_of_sample(positions, kWidth), p = group % each * kWidth;
    T* sample = result + group / each * channels * positions + p;
    if (positions - p >= kWidth) {
      for (std::int64_t j = 0; j < channels; ++j) store_vector(sample + to(j) * positions, change(slots[j], j));
    } else {
      for (std::int64_t j = 0; j < channels; ++j) store_first(sample + to(j) * positions, change(slots[j], j), positions - p);
    }
  }
}

template <int kCount, typename V, typename T>
inline void solve_groups(const LuSolve<T>& task, std::int64_t group, V* slots, V* columns) {
  for (int g = 0; g < kCount; ++g) load_group(task, group + g, slots + g * task.slots, columns);
  substitute<1, kCount>(task.slots, task.downwards, slots);
  for (int g = 0; task.between && g < kCount; ++g) {
    const auto same = [](std::int64_t j) { return j; };
    const auto unchanged = [](V value, std::int64_t) { return value; };
    store_group(task, task.between, group + g, slots + g * task.slots, columns, same, unchanged);
  }
  substitute<-1, kCount>(task.slots, task.upwards, slots + task.slots - 1);
  for (int g = 0; g < kCount; ++g) {
    const auto to = [&](std::int64_t j) { return task.to[j]; };
    const auto less_bias = [&](V value, std::int64_t j) { return value - task.bias[j]; };
    store_group(task, task.solved, group + g, slots + g * task.slots, columns, to, less_bias);
  }
}

template <typename T>
void solve(const LuSolve<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  V *slots = reinterpret_cast<V*>(scratch), *columns = slots + kGroups * task.slots;
  std::int64_t group = begin;
  for (; group + kGroups <= end; group += kGroups) solve_groups<kGroups>(task, group, slots, columns);
  for (; group < end; ++group) solve_groups<1>(task, group, slots, columns);
}

}  // namespace

const LuConv1x1Kernels& FASTGEN_OF_ISA(lu_conv1x1_kernels)() {
  static const LuConv1x1Kernels kernels = {kWidth, kGroups, solve<float>, solve<double>};
  return kernels;
}

}  // namespace fastgen
