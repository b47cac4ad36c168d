#include "table_impl.h"

namespace fastgen {

const Kernels& kernels_avx2() { return table("avx2"); }

}  // namespace fastgen
