// The operations of a lane program.
#pragma once

#include <cstdint>

namespace fastgen {

// The order of OPCODES in program.py.
enum Opcode : std::int64_t {
  kLoad, kStore, kConst,
  kNeg, kAbs, kExp, kLog, kLog1p, kExpm1,
  kSqrt, kRsqrt, kReciprocal, kTanh, kSigmoid,
  kErf, kSin, kCos, kFloor, kCeil, kRound,
  kSign, kRelu, kElu, kLeakyRelu, kSoftplus, kGelu,
  kAdd, kSub, kMul, kDiv, kMax, kMin, kPow, kLt, kLe, kEq, kNe,
  kWhere, kAddC, kMulC, kClamp,
  kSum, kAmax, kAmin,
  kTrunc, kFmod, kRemainder, kFloorDivide, kBitAnd, kBitOr, kBitXor, kMulMod,
  kOpcodes,
};

// How many register operands an operation reads: the first so many of a, b, c.
constexpr int register_arguments(std::int64_t opcode) {
  if (opcode == kLoad || opcode == kConst) return 0;
  if (opcode == kWhere || opcode == kMulMod) return 3;
  if ((opcode >= kAdd && opcode <= kNe) || (opcode >= kFmod && opcode <= kBitXor)) return 2;
  return 1;
}

}  // namespace fastgen
