// The machine's kernels of one instruction set.
#include "cpu/machine/kernels/lanes_impl.h"
#include "cpu/machine/kernels/panel_impl.h"

namespace fastgen {

const Kernels& FASTGEN_OF_ISA(kernels)() {
  static const Kernels kernels = {
      FASTGEN_ISA_NAME,
      {panel<Format::float32>, panel<Format::bfloat16>, panel<Format::int8>},
      {nullptr, nullptr, lanes_const,
       lanes_neg, lanes_abs, lanes_exp, lanes_log, lanes_log1p, lanes_expm1,
       lanes_sqrt, lanes_rsqrt, lanes_reciprocal, lanes_tanh, lanes_sigmoid,
       lanes_erf, lanes_sin, lanes_cos, lanes_floor, lanes_ceil, lanes_round,
       lanes_sign, lanes_relu, lanes_elu, lanes_leaky_relu, lanes_softplus, lanes_gelu,
       lanes_add, lanes_sub, lanes_mul, lanes_div, lanes_max, lanes_min, lanes_pow, lanes_lt, lanes_le, lanes_eq, lanes_ne,
       lanes_where, lanes_addc, lanes_mulc, lanes_clamp, nullptr, nullptr, nullptr,
       lanes_trunc, lanes_fmod, lanes_remainder, lanes_floor_divide, lanes_bitand, lanes_bitor, lanes_bitxor, lanes_mulmod},
      gather,
      scatter,
      reduce,
      read,
      fma_burst,
  };
  return kernels;
}

}  // namespace fastgen
