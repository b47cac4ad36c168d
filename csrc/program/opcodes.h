// The operations of a lane program; opcodes.def lists them.
#pragma once

#include <cstdint>

namespace fastgen {

enum Opcode : std::int64_t {
#define FASTGEN_OPCODE(form, enumerator, name, registers, parameters, meaning) k##enumerator,
#include "program/opcodes.def"
#undef FASTGEN_OPCODE
  kOpcodes,
};

enum class OpcodeForm : std::int8_t { MOVE, LANES, REDUCTION };
enum class OpcodeParameters : std::int8_t { NONE, X, XY, OPERAND, GROUP };

struct OpcodeInfo {
  OpcodeForm form;
  OpcodeParameters parameters;
  std::int8_t registers;
};

constexpr OpcodeInfo kOpcodeInfo[] = {
#define FASTGEN_OPCODE(form, enumerator, name, registers, parameters, meaning) \
  {OpcodeForm::form, OpcodeParameters::parameters, registers},
#include "program/opcodes.def"
#undef FASTGEN_OPCODE
};

// How many register operands an operation reads: the first so many of a, b, c.
constexpr int register_arguments(std::int64_t opcode) { return kOpcodeInfo[opcode].registers; }
constexpr bool is_reduction(std::int64_t opcode) { return kOpcodeInfo[opcode].form == OpcodeForm::REDUCTION; }

}  // namespace fastgen
