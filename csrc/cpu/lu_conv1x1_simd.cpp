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

// The first of the positions, or of the samples, that a group has.
struct Place {
  std::int64_t sample, position;
};

template <typename T>
inline Place place_of(const LuSolve<T>& task, std::int64_t group) {
  if (task.positions == 1) return {group * kWidth, 0};
  const std::int64_t each = lu_groups_of_sample(task.positions, kWidth), sample = group / each;
  return {sample, (group - sample * each) * kWidth};
}

template <typename T>
inline Place next(const LuSolve<T>& task, Place at) {
  if (task.positions == 1) return {at.sample + kWidth, 0};
  return at.position + kWidth < task.positions ? Place{at.sample, at.position + kWidth} : Place{at.sample + 1, 0};
}

template <typename T>
inline std::int64_t start_of(const LuSolve<T>& task, Place at) {
  return at.sample * task.channels * task.positions + at.position;
}

template <typename V, typename T>
inline void load_group(const LuSolve<T>& task, Place at, V* slots, V* columns) {
  const std::int64_t channels = task.channels, positions = task.positions, *from = task.from;
  const T* first = task.given + start_of(task, at);
  if (positions == 1) {
    const std::int64_t left = task.samples - at.sample;
    load_columns(first, left < kWidth ? left : kWidth, channels, channels, columns);
    for (std::int64_t j = 0; j < channels; ++j) slots[j] = columns[from[j]];
  } else if (positions - at.position >= kWidth) {
    for (std::int64_t j = 0; j < channels; ++j) slots[j] = load_vector<V>(first + from[j] * positions);
  } else {
    for (std::int64_t j = 0; j < channels; ++j) slots[j] = load_first<V>(first + from[j] * positions, positions - at.position);
  }
  for (std::int64_t j = channels; j < task.slots; ++j) slots[j] = V{};
}

// Asks for what a group reads, or for where it writes: more places than a processor follows by itself. Samples of one position
// lie side by side.
template <bool kToWrite, typename T>
inline void prefetch_group(const LuSolve<T>& task, const T* memory, Place at) {
  if (task.positions == 1 || at.sample >= task.samples) return;
  const T* first = memory + start_of(task, at);
  for (std::int64_t j = 0; j < task.channels; ++j, first += task.positions) __builtin_prefetch(first, kToWrite);
}

// Slot j goes to channel to(j) of the result, changed by change(value, j).
template <typename V, typename T, typename To, typename Change>
inline void store_group(const LuSolve<T>& task, T* result, Place at, const V* slots, V* columns, To to, Change change) {
  const std::int64_t channels = task.channels, positions = task.positions;
  T* first = result + start_of(task, at);
  if (positions == 1) {
    const std::int64_t left = task.samples - at.sample;
    for (std::int64_t j = 0; j < channels; ++j) columns[to(j)] = change(slots[j], j);
    store_columns(first, left < kWidth ? left : kWidth, channels, channels, columns);
  } else if (positions - at.position >= kWidth) {
    for (std::int64_t j = 0; j < channels; ++j) store_vector(first + to(j) * positions, change(slots[j], j));
  } else {
    for (std::int64_t j = 0; j < channels; ++j) {
      store_first(first + to(j) * positions, change(slots[j], j), positions - at.position);
    }
  }
}

// Returns the place after the groups.
template <int kCount, typename V, typename T>
inline Place solve_groups(const LuSolve<T>& task, Place at, V* slots, V* columns) {
  Place places[kCount], ahead[kCount];
  for (Place& place : places) place = at, at = next(task, at);
  const Place after = at;
  for (Place& place : ahead) place = at, at = next(task, at);
  for (int g = 0; g < kCount; ++g) load_group(task, places[g], slots + g * task.slots, columns);
  for (Place place : ahead) prefetch_group<false>(task, task.given, place);
  substitute<1, kCount>(task.slots, task.downwards, slots);
  for (int g = 0; task.between && g < kCount; ++g) {
    const auto same = [](std::int64_t j) { return j; };
    const auto unchanged = [](V value, std::int64_t) { return value; };
    store_group(task, task.between, places[g], slots + g * task.slots, columns, same, unchanged);
  }
  for (Place place : places) prefetch_group<true>(task, static_cast<const T*>(task.solved), place);
  substitute<-1, kCount>(task.slots, task.upwards, slots + task.slots - 1);
  for (int g = 0; g < kCount; ++g) {
    const auto to = [map = task.to](std::int64_t j) { return map[j]; };
    const auto less_bias = [bias = task.bias](V value, std::int64_t j) { return value - bias[j]; };
    store_group(task, task.solved, places[g], slots + g * task.slots, columns, to, less_bias);
  }
  return after;
}

template <typename T>
void solve(const LuSolve<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  V *slots = reinterpret_cast<V*>(scratch), *columns = slots + kGroups * task.slots;
  Place at = place_of(task, begin);
  for (; begin + kGroups <= end; begin += kGroups) at = solve_groups<kGroups>(task, at, slots, columns);
  for (; begin < end; ++begin) at = solve_groups<1>(task, at, slots, columns);
}

}  // namespace

const LuConv1x1Kernels& FASTGEN_OF_ISA(lu_conv1x1_kernels)() {
  static const LuConv1x1Kernels kernels = {kWidth, kGroups, solve<float>, solve<double>};
  return kernels;
}

}  // namespace fastgen
