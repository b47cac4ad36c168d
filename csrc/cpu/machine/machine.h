// The machine that runs step programs on the CPU (fastgen/generate/program.py says what a program means).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "address.h"
#include "heads.h"
#include "kernels.h"
#include "pack.h"
#include "plan.h"
#include "pool.h"
#include "program.h"
#include "worker.h"

namespace fastgen {

class Machine {
 public:
  // Checks the program, packs its weights for this processor. Throws std::invalid_argument that names what does not fit.
  Machine(Program program, const std::vector<float>& weights, HeadSpec head, Format format);

  // Everything that depends on no drawn element; before the first step.
  void prologue(const Run& run);
  // The steps t0 .. t1 - 1.
  void advance(const Run& run, std::int64_t t0, std::int64_t t1);
  // The same for steps whose elements are all known, many steps at a time.
  void absorb(const Run& run, std::int64_t t0, std::int64_t t1);
  // New values of the same shapes. Throws std::invalid_argument where the sizes differ.
  void refresh(const std::vector<float>& weights, const std::vector<float>& constants);

  const Program& program() const { return program_; }
  const HeadSpec& head() const { return head_; }
  const char* isa() const { return kernels_.isa; }
  std::size_t packed_bytes() const { return packed_.bytes(); }

 private:
  class Crew;  // one thread's view of a parallel run

  void start(const Run& run);
  template <typename Job>
  void in_parallel(const Run& run, Job job);

  Program program_;
  HeadSpec head_;
  const Kernels& kernels_;
  PackedWeights packed_;
  Plan plan_;
  Failure failure_;
  std::unique_ptr<Pool> pool_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::vector<Span>> shares_;
  std::mutex mutex_;
};

}  // namespace fastgen
