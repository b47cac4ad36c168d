#include "table_impl.h"

namespace fastgen {

const Kernels& kernels_avx512() { return table("avx512"); }

}  // namespace fastgen
