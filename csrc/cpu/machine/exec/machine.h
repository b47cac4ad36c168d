// The machine that runs step programs on the CPU (fastgen/generate/ir/program.py says what a program means).
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "program/access.h"
#include "program/heads.h"
#include "cpu/machine/exec/interrupt.h"
#include "cpu/machine/kernels/kernels.h"
#include "cpu/machine/plan/pack.h"
#include "cpu/machine/plan/plan.h"
#include "program/program.h"
#include "cpu/machine/exec/team.h"

namespace fastgen {

class Machine {
 public:
  // Checks the program, packs its weights for this processor. Throws std::invalid_argument that names what does not fit.
  Machine(Program program, const std::vector<float>& weights, HeadSpec head, Format format);
  ~Machine();

  // Whoever calls one of the following has the machine's turn. A call that throws, or that the interrupt stops, says in
  // `progress` how far it came: between steps where it could.
  Team& team();

  // Everything that depends on no drawn element; before the first step.
  void prologue(const GenerationBatch& run, Interrupt& interrupt, Progress& progress);
  // The steps progress.done .. end - 1.
  void advance(const GenerationBatch& run, std::int64_t end, Interrupt& interrupt, Progress& progress);
  // The same for steps whose elements are all known, many steps at a time.
  void absorb(const GenerationBatch& run, std::int64_t end, Interrupt& interrupt, Progress& progress);
  // New values of the same shapes. Throws std::invalid_argument where the sizes differ.
  void refresh(const std::vector<float>& weights, const std::vector<float>& constants);

  const Program& program() const { return program_; }
  const HeadSpec& head() const { return head_; }
  const char* isa() const { return kernels_.isa; }
  std::size_t packed_bytes() const { return packed_.bytes(); }

 private:
  class TeamMember;  // one thread's view of a parallel run

  // How many steps of calls that are alike take about as long as may pass between two questions whether to stop.
  struct Pace {
    std::int64_t batch, threads, steps;
  };

  template <typename Job>
  void in_parallel(const GenerationBatch& run, Interrupt& interrupt, Progress& progress, Job job);
  template <typename Job>
  void in_parts(const GenerationBatch& run, std::int64_t end, std::int64_t least, Interrupt& interrupt, Progress& progress,
                Pace& pace, Job job);

  Program program_;
  HeadSpec head_;
  const Kernels& kernels_;
  PackedWeights packed_;
  Plan plan_;
  Pace advancing_{}, absorbing_{};
  std::atomic<Team*> team_{nullptr};
};

}  // namespace fastgen
