// The choice of the instruction set at run time.
//
// setup.py compiles every file named *_simd.cpp once for each instruction set, with FASTGEN_KERNEL_ISA its name. Such a file
// defines `const Table& FASTGEN_OF_ISA(name)()`; FASTGEN_ISA_TABLES(Table, name) in a header declares them, and name(), which
// returns the one to use.
#pragma once

namespace fastgen {

enum class Isa { baseline, avx2, avx512 };
constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

// The widest that was compiled and that this processor runs, and with it all narrower ones.
Isa widest_isa();

// That, or a narrower one that the environment variable FASTGEN_ISA names; throws std::invalid_argument for any other name.
Isa isa();

}  // namespace fastgen

#define FASTGEN_JOIN_NAMES(name, isa) name##_##isa
#define FASTGEN_JOIN(name, isa) FASTGEN_JOIN_NAMES(name, isa)
#define FASTGEN_OF_ISA(name) FASTGEN_JOIN(name, FASTGEN_KERNEL_ISA)

#define FASTGEN_TEXT_OF(name) #name
#define FASTGEN_TEXT(name) FASTGEN_TEXT_OF(name)
#define FASTGEN_ISA_NAME FASTGEN_TEXT(FASTGEN_KERNEL_ISA)

#if defined(FASTGEN_X86)
#define FASTGEN_ISA_TABLES(Table, name)                                                                       \
  const Table& name##_baseline();                                                                             \
  const Table& name##_avx2();                                                                                 \
  const Table& name##_avx512();                                                                               \
  static inline const Table& name() {                                                                         \
    const Isa chosen = isa();                                                                                 \
    return chosen == Isa::avx512 ? name##_avx512() : chosen == Isa::avx2 ? name##_avx2() : name##_baseline(); \
  }
#else
#define FASTGEN_ISA_TABLES(Table, name) \
  const Table& name##_baseline();       \
  static inline const Table& name() { return name##_baseline(); }
#endif
