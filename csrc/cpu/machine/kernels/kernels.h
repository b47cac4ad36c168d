// The inner loops of the machine, one set for each instruction set; common/isa.h picks one at run time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/isa.h"
#include "program/format.h"
#include "program/opcodes.h"

namespace fastgen {

constexpr int kTile = 16;  // outputs that are packed side by side, whatever the width of a vector

constexpr std::ptrdiff_t kPrefetch = 1024;  // bytes of the weights behind its own that `panel` asks for at one item's end

// Sums of consecutive tiles for a number of items. Tiles are packed in blocks of two; an odd last one is a block alone.
//
// The inputs of a block are cut into `chains` = 4 / tiles of the block: chain c sums the inputs k = c, c + chains, ... one after
// the other from zero, each with one fma. The result is ((start + scale chain 0) + scale chain 1) + ..., again by fma. This
// order is all that the value depends on: not the number of items, not the instruction set.
//
// A block is a run of steps. A step holds, chain by chain and in it tile by tile, 16 weights: 64 float32; or 32 words, each the
// bfloat16 weights of two neighbouring chains (the even one in the low half); or 64 int8.
struct PanelTask {
  const float* const* x;  // one pointer an item to `inputs` values, followed by zeros up to a multiple of 4
  int items;
  std::int64_t inputs;
  const void* weights;  // of the first block
  const float* scale;   // [tiles * 16]; read for int8 only
  std::int64_t tiles, parts;
  // tile parts * i + p of item m: start values in, sums out, at out + 16 i + p * part_stride + m * item_stride
  float* out;
  std::ptrdiff_t part_stride, item_stride;
};

// dst = f(a, b, c, x, y) for n lanes, n a multiple of 16.
using LaneKernel = void (*)(float* dst, const float* a, const float* b, const float* c, std::size_t n, float x, float y);

struct Kernels {
  const char* isa;
  void (*panel[kFormats])(const PanelTask& task);
  LaneKernel lanes[kOpcodes];  // null for load, store and the reductions
  // dst[i] = src[i * stride]; the lanes beyond n keep what they hold
  void (*gather)(float* dst, const float* src, std::ptrdiff_t stride, std::size_t n);
  void (*scatter)(float* dst, std::ptrdiff_t stride, const float* src, std::size_t n);
  // kSum, kAmax or kAmin over groups of `group` neighbours of n lanes, broadcast back
  void (*reduce)(std::int64_t opcode, float* dst, const float* a, std::size_t n, std::size_t group);
  // kSum, kAmax or kAmin of n values
  float (*fold)(std::int64_t opcode, const float* a, std::size_t n);
  // attention: out[i] = sum_d query[d] * key[i][d] for i < count; each sum in 16 columns, which are folded in halves. Keys and
  // values are of a format, those of int8 without their scales, `stride` bytes apart.
  void (*products[kFormats])(float* out, const float* query, std::size_t depth, const void* keys, std::ptrdiff_t stride,
                             std::size_t count);
  // out[c] += sum_i weights[i] * value[i][c] for c < width, one after the other
  void (*weigh[kFormats])(float* out, std::size_t width, const float* weights, const void* values, std::ptrdiff_t stride,
                          std::size_t count);
  // to nearest, ties to even
  void (*round_bfloat16)(std::uint16_t* out, const float* a, std::size_t n);
  // out[i] = a[i] / scale to the nearest integer, for the scale that it returns: the largest size of n values over 127
  float (*round_int8)(std::int8_t* out, const float* a, std::size_t n);
  // probes: reads n floats (a multiple of 256) once; runs `rounds` of independent fma and returns how many operations they were
  float (*read)(const float* data, std::size_t n);
  double (*fma_burst)(std::int64_t rounds, float* sink);
};

FASTGEN_ISA_TABLES(Kernels, kernels)

}  // namespace fastgen
