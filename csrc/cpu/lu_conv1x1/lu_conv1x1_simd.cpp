// The inverse of the LU-parameterised 1x1 convolution: substitution in both triangles, for kWidth positions in a vector.
#include "common/lanes.h"
#include "cpu/lu_conv1x1/lu_conv1x1.h"

namespace fastgen {
namespace {

constexpr int kGroups = kWidth == 16 ? 4 : 2;  // as many as leave a register for every sum

// The slot solved k-th is slots - 1 - k where kUpwards, else k; of group g it is vectors[slot * kCount + g]. It comes from
// read(slot), and its solution goes to write(slot, value) too.
template <bool kUpwards, int kCount, typename V, typename T, typename Read, typename Write>
inline void substitute(std::int64_t slots, const T* packed, V* vectors, Read read, Write write) {
  const auto slot = [slots](std::int64_t k) { return kUpwards ? slots - 1 - k : k; };
  for (std::int64_t k = 0; k < slots; k += kLuRows) {
    V sum[kLuRows][kCount];
#pragma GCC unroll 4
    for (int r = 0; r < kLuRows; ++r) {
      read(slot(k + r), sum[r]);
      const T reciprocal = *packed++;
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) sum[r][g] = sum[r][g] * reciprocal;
    }
    for (std::int64_t j = 0; j < k; ++j, packed += kLuRows) {
      const V* solved = vectors + slot(j) * kCount;
#pragma GCC unroll 4
      for (int r = 0; r < kLuRows; ++r) {
        const V coefficient = packed[r] - V{};
#pragma GCC unroll 4
        for (int g = 0; g < kCount; ++g) sum[r][g] = fma(coefficient, solved[g], sum[r][g]);
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
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) vectors[slot(k + r) * kCount + g] = sum[r][g];
      write(slot(k + r), sum[r]);
    }
    packed += kLuRows * kLuRows;
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

// Group g's part of every channel, to rows[channel * kCount + g]; `columns` is room for one group.
template <int kCount, typename V, typename T>
inline void gather(const LuSolve<T>& task, const Place (&places)[kCount], V* rows, V* columns) {
  const std::int64_t channels = task.channels, positions = task.positions;
  for (int g = 0; g < kCount; ++g) {
    const T* first = task.given + start_of(task, places[g]);
    if (positions == 1) {
      const std::int64_t left = task.samples - places[g].sample;
      load_columns(first, left < kWidth ? left : kWidth, channels, channels, columns);
      for (std::int64_t c = 0; c < channels; ++c) rows[c * kCount + g] = columns[c];
    } else {
      const std::int64_t left = positions - places[g].position;
      for (std::int64_t c = 0; c < channels; ++c) rows[c * kCount + g] = load_first<V>(first + c * positions, left);
    }
  }
}

template <int kCount, typename V, typename T>
inline void scatter(const LuSolve<T>& task, const Place (&places)[kCount], const V* rows, V* columns, T* result) {
  const std::int64_t channels = task.channels, positions = task.positions;
  for (int g = 0; g < kCount; ++g) {
    T* first = result + start_of(task, places[g]);
    if (positions == 1) {
      const std::int64_t left = task.samples - places[g].sample;
      for (std::int64_t c = 0; c < channels; ++c) columns[c] = rows[c * kCount + g];
      store_columns(first, left < kWidth ? left : kWidth, channels, channels, columns);
    } else {
      const std::int64_t left = positions - places[g].position;
      for (std::int64_t c = 0; c < channels; ++c) store_first(first + c * positions, rows[c * kCount + g], left);
    }
  }
}

// Returns the place after the groups; kKeeps tells whether `between` is wanted. Memory is asked for what they write, and for what
// the next ones read, row by row: these are more places than a processor follows by itself, and all of them at once would be
// waited for.
template <bool kKeeps, int kCount, typename V, typename T>
inline Place solve_groups(const LuSolve<T>& task, Place at, V* vectors, V* rows, V* columns) {
  Place places[kCount];
  for (Place& place : places) place = at, at = next(task, at);
  const bool is_whole = task.positions > 1 && places[0].position + kCount * kWidth <= task.positions;
  if (!is_whole) gather(task, places, rows, columns);
  const std::int64_t channels = task.channels, stride = is_whole ? task.positions : kCount * kWidth;
  const std::int64_t start = start_of(task, places[0]);
  const T* given = is_whole ? task.given + start : reinterpret_cast<T*>(rows);
  const T* following = is_whole && at.sample < task.samples ? task.given + start_of(task, at) : given;
  T* solved = is_whole ? task.solved + start : reinterpret_cast<T*>(rows);
  const T* between = kKeeps && is_whole ? task.between + start : solved;

  const auto read = [=, from = task.from, to = task.to](std::int64_t j, V(&row)[kCount]) {
    const bool is_channel = j < channels;
    const T* source = given + (is_channel ? from[j] : 0) * stride;
    const T* target = solved + (is_channel ? to[j] : 0) * stride;
#pragma GCC unroll 4
    for (int g = 0; g < kCount; ++g) {
      __builtin_prefetch(target + g * kWidth, 1);
      if (kKeeps) __builtin_prefetch(between + (is_channel ? j : 0) * stride + g * kWidth, 1);
      row[g] = is_channel ? load_vector<V>(source + g * kWidth) : V{};
    }
  };
  substitute<false, kCount>(task.slots, task.downwards, vectors, read, [](std::int64_t, const V(&)[kCount]) {});
  if (kKeeps) scatter(task, places, vectors, columns, task.between);

  const auto read_again = [=, from = task.from, slots = task.slots](std::int64_t j, V(&row)[kCount]) {
    const T* source = following + from[j < channels ? channels - 1 - j : 0] * stride;  // in the order of reading
#pragma GCC unroll 4
    for (int g = 0; g < kCount; ++g) {
      __builtin_prefetch(source + g * kWidth);
      row[g] = vectors[j * kCount + g];
    }
  };
  const auto write = [=, to = task.to, bias = task.bias](std::int64_t j, const V(&row)[kCount]) {
    if (j >= channels) return;
    T* target = solved + to[j] * stride;
#pragma GCC unroll 4
    for (int g = 0; g < kCount; ++g) store_vector(target + g * kWidth, row[g] - bias[j]);
  };
  substitute<true, kCount>(task.slots, task.upwards, vectors, read_again, write);
  if (!is_whole) scatter(task, places, rows, columns, task.solved);
  return at;
}

template <bool kKeeps, typename T>
void solve_keeping(const LuSolve<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  using V = typename VectorOf<T>::type;
  V* vectors = reinterpret_cast<V*>(scratch);
  V *rows = vectors + kGroups * task.slots, *columns = rows + kGroups * task.slots;
  Place at = place_of(task, begin);
  for (; begin + kGroups <= end; begin += kGroups) at = solve_groups<kKeeps, kGroups>(task, at, vectors, rows, columns);
  for (; begin < end; ++begin) at = solve_groups<kKeeps, 1>(task, at, vectors, rows, columns);
}

template <typename T>
void solve(const LuSolve<T>& task, std::int64_t begin, std::int64_t end, T* scratch) {
  return (task.between ? solve_keeping<true, T> : solve_keeping<false, T>)(task, begin, end, scratch);
}

}  // namespace

const LuConv1x1Kernels& FASTGEN_OF_ISA(lu_conv1x1_kernels)() {
  static const LuConv1x1Kernels kernels = {kWidth, kGroups, solve<float>, solve<double>};
  return kernels;
}

}  // namespace fastgen
