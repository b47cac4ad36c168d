// The machine's kernels of one instruction set.
#include "cpu/machine/kernels/attend_impl.h"
#include "cpu/machine/kernels/lanes_impl.h"
#include "cpu/machine/kernels/panel_impl.h"

// The lane kernel of an operation of each form.
#define FASTGEN_KERNEL_MOVE(name) nullptr,
#define FASTGEN_KERNEL_LANES(name) lanes_##name,
#define FASTGEN_KERNEL_REDUCTION(name) nullptr,

namespace fastgen {

const Kernels& FASTGEN_OF_ISA(kernels)() {
  static const Kernels kernels = {
      FASTGEN_ISA_NAME,
      {panel<Format::float32>, panel<Format::bfloat16>, panel<Format::int8>},
      {
#define FASTGEN_OPCODE(form, enumerator, name, registers, parameters, meaning) FASTGEN_KERNEL_##form(name)
#include "program/opcodes.def"
#undef FASTGEN_OPCODE
      },
      gather,
      scatter,
      reduce,
      reduce_group,
      {products<float>, products<std::uint16_t>, products<std::int8_t>},
      {weigh<float>, weigh<std::uint16_t>, weigh<std::int8_t>},
      round_bfloat16,
      round_int8,
      read,
      fma_burst,
  };
  return kernels;
}

}  // namespace fastgen
