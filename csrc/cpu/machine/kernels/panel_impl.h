// The gather-multiply of kernels.h for the instruction set of the including file.
#pragma once

#include "common/simd.h"
#include "cpu/machine/kernels/kernels.h"
#include "cpu/machine/kernels/rounded_loads_impl.h"

namespace fastgen {
namespace {

constexpr int kVectors = kTile / kWidth;  // of a tile

// How many parts the vectors of a block are cut into to fit the registers: for one item, and for panels of kPanelItems.
#if defined(__AVX512F__)
constexpr int kSingleCuts = 1, kPanelCuts = 1, kPanelItems = 6;
#elif defined(__AVX2__)
constexpr int kSingleCuts = 1, kPanelCuts = 2, kPanelItems = 3;
#elif defined(__aarch64__)
constexpr int kSingleCuts = 1, kPanelCuts = 4, kPanelItems = 6;
#else
constexpr int kSingleCuts = 2, kPanelCuts = 4, kPanelItems = 3;
#endif

template <Format F>
constexpr int kStepBytes = F == Format::float32    ? 256
                           : F == Format::bfloat16 ? 128
                                                   : 64;

// The weights of every chain (C of them) for V vectors, from vector `first` of `all`.
template <Format F, int C, int V>
inline void load_weights(const unsigned char* step, int first, int all, Float (&w)[C][V]) {
  if constexpr (F == Format::float32) {
    for (int c = 0; c < C; ++c)
      for (int v = 0; v < V; ++v) w[c][v] = load(reinterpret_cast<const float*>(step) + (c * all + first + v) * kWidth);
  } else if constexpr (F == Format::bfloat16) {
    for (int pair = 0; pair < C / 2; ++pair)
      for (int v = 0; v < V; ++v) {
        const Int words = bits(load(reinterpret_cast<const float*>(step) + (pair * all + first + v) * kWidth));
        w[2 * pair][v] = from_bits(words << 16);
        w[2 * pair + 1][v] = from_bits(words & (Int)broadcast_int(-65536));
      }
  } else {
    for (int c = 0; c < C; ++c)
      for (int v = 0; v < V; ++v) {
        w[c][v] = load(reinterpret_cast<const std::int8_t*>(step) + (c * all + first + v) * kWidth);
      }
  }
}

// One block for all items.
struct Block {
  const unsigned char* weights;
  const float* scale;
  float* out[2];  // of its tiles, for the first item
};

// Weights of the next block that are asked for beside the sums: two lines of 64 bytes at every step.
struct Ahead {
  const unsigned char* from;
  std::ptrdiff_t step;  // bytes; 0 stays where it is
};

template <Format F, int M, int C, int V>
inline void sum_panel(const PanelTask& task, const Block& block, Ahead ahead, int item, int first) {
  constexpr int all = kVectors * 4 / C;
  const float* x[M];
  for (int m = 0; m < M; ++m) x[m] = task.x[item + m];
  Float sum[M][C][V] = {};
  const unsigned char* step = block.weights;
  for (std::int64_t k = 0; k < task.inputs; k += C, step += kStepBytes<F>) {
    Float w[C][V];
    load_weights<F, C, V>(step, first, all, w);
    if constexpr (M > 1) {
      __builtin_prefetch(ahead.from, 0, 2);
      __builtin_prefetch(ahead.from + 64, 0, 2);
      ahead.from += ahead.step;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const Float input = broadcast(x[m][k + c]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][c][v] = fma(input, w[c][v], sum[m][c][v]);
      }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int vector = first + v;
      float* out = block.out[vector / kVectors] + (item + m) * task.item_stride + vector % kVectors * kWidth;
      Float total = load(out);
      const Float scale = F == Format::int8 ? load(block.scale + vector * kWidth) : broadcast(1.0f);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) total = F == Format::int8 ? fma(sum[m][c][v], scale, total) : total + sum[m][c][v];
      store(out, total);
    }
}

template <Format F, int M, int C>
void sum_items(const PanelTask& task, const Block& block, Ahead ahead, int item) {
  constexpr int all = kVectors * 4 / C, wanted = M == 1 ? kSingleCuts : kPanelCuts;
  constexpr int cuts = wanted < all ? wanted : all;
  for (int first = 0; first < all; first += all / cuts) sum_panel<F, M, C, all / cuts>(task, block, ahead, item, first);
}

// The first panel streams the block's weights from afar, the others find them near: these ask for the next block meanwhile.
template <Format F, int C>
void sum_block(const PanelTask& task, const Block& block) {
  if (task.items == 1) return sum_items<F, 1, C>(task, block, {block.weights, 0}, 0);
  const std::int64_t bytes = (task.inputs + 1) / 2 * kStepBytes<F>, covered = (task.inputs + C - 1) / C * 128;
  Ahead ahead{block.weights, 0};
  int item = 0;
  for (int panels = (task.items + kPanelItems - 1) / kPanelItems; panels > 0; --panels) {
    const int size = (task.items - item + panels - 1) / panels;
    switch (size) {
      case 1: sum_items<F, 1, C>(task, block, ahead, item); break;
      case 2: sum_items<F, 2, C>(task, block, ahead, item); break;
      case 3: sum_items<F, 3, C>(task, block, ahead, item); break;
      case 4:
        if constexpr (kPanelItems > 3) sum_items<F, 4, C>(task, block, ahead, item);
        break;
      case 5:
        if constexpr (kPanelItems > 3) sum_items<F, 5, C>(task, block, ahead, item);
        break;
      case 6:
        if constexpr (kPanelItems > 3) sum_items<F, 6, C>(task, block, ahead, item);
        break;
    }
    ahead = item == 0 ? Ahead{block.weights + bytes, 128} : Ahead{ahead.from + covered, 128};
    if (ahead.from >= block.weights + 2 * bytes) ahead = {block.weights, 0};
    item += size;
  }
}

template <Format F>
void panel(const PanelTask& task) {
  Block block{static_cast<const unsigned char*>(task.weights), task.scale, {}};
  std::ptrdiff_t part = 0;
  float* column = task.out;  // of the lane tile
  for (std::int64_t tile = 0; tile < task.tiles; tile += 2) {
    const int tiles = tile + 1 < task.tiles ? 2 : 1;
    for (int i = 0; i < tiles; ++i) {
      block.out[i] = column + part * task.part_stride;
      if (++part == task.parts) {
        part = 0;
        column += kTile;
      }
    }
    if (tiles == 2) {
      sum_block<F, 2>(task, block);
    } else {
      sum_block<F, 4>(task, block);
    }
    block.weights += (task.inputs + 1) / 2 * kStepBytes<F>;
    if (F == Format::int8) block.scale += 2 * kTile;
  }
  // The weights of the next instruction follow; the processor's own prefetching follows a stream, but does not begin it early.
  if (task.items == 1) {
    for (std::ptrdiff_t line = 0; line < kPrefetch; line += 64) __builtin_prefetch(block.weights + line, 0, 2);
  }
}

}  // namespace
}  // namespace fastgen
