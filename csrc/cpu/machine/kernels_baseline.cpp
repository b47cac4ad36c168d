#include "table_impl.h"

namespace fastgen {

const Kernels& kernels_baseline() { return table("baseline"); }

}  // namespace fastgen
