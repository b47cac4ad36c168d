#include "cpu/machine/exec/machine.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr std::int64_t kSamplesAlone = 4;    // from so many samples a thread on, threads work on their own samples
constexpr std::int64_t kItemsAlone = 12;      // from so many items a thread on, threads split the cells of an instruction
constexpr std::int64_t kMostTogether = 256;   // steps that are absorbed instruction by instruction
constexpr std::int64_t kCellsTogether = 1024;
constexpr auto kPart = Interrupt::kPatience;  // as long, about, as the steps take that are run without a question whether to stop

Span part_of(std::int64_t count, int index, int threads) { return {count * index / threads, count * (index + 1) / threads}; }

Program checked(Program program) {
  check(program);
  return program;
}

}  // namespace

// Threads either work alone, each on its own samples, or together on all samples. Together they meet before an instruction
// of another level, and split its lanes, or its samples, or its cells.
class Machine::TeamMember {
 public:
  TeamMember(const Machine& machine, Team& team, const GenerationBatch& run, Interrupt& interrupt, int index, Barrier& barrier)
      : machine_(machine), team_(team), worker_(team.worker(index)), run_(run), index_(index), threads_(run.threads),
        barrier_(barrier), whole_(run.draw_position != nullptr),
        alone_(run.threads == 1 || (!whole_ && run.batch >= kSamplesAlone * run.threads)),
        mine_(part_of(run.batch, index, run.threads)), drawn_(whole_ ? Span{0, index == 0 ? run.batch : 0} : mine_) {
    worker_.begin(interrupt, index == 0, threads_ == 1 || !alone_);
  }

  void run_prologue() {
    for (int number : machine_.plan_.prologue) {
      run_grid(number, Box::of(machine_.plan_.iterations[number]), 0);
    }
    barrier_wait();
  }

  void start_row(std::int64_t row, std::int64_t step) {
    for (int number : machine_.plan_.row) {
      const IterationDomain& domain = machine_.plan_.iterations[number];
      each_row_at(domain, row, [&](std::int64_t frame, std::int64_t row0, std::int64_t row1) {
        run_grid(number, {row0, row1, domain.column0, domain.column1, frame, frame + 1}, step);
      });
    }
    barrier_wait();
  }

  // Both return the step before which they stopped.
  std::int64_t advance(std::int64_t t0, std::int64_t t1) {
    std::int64_t t = t0;
    for (; t < t1 && !leaves_before(t); ++t) {
      if (t % machine_.program_.row_length == 0) start_row(t / machine_.program_.row_length, t);
      const std::vector<int>& active = worker_.collect(t, t + 1);
      for (std::size_t i = 0; i < active.size(); ++i) {
        worker_.expect_tables(active, i);
        if (alone_ && i + 1 < active.size()) worker_.prefetch(active[i + 1], mine_, run_);
        run_compute(active[i], worker_.cells_of(active[i]), t);
      }
      barrier_wait();
      worker_.draw_step(t, drawn_, run_, false);
      dirty_ = true;
      barrier_wait();
    }
    return t;
  }

  std::int64_t absorb(std::int64_t t0, std::int64_t t1) {
    for (std::int64_t t = t0; t < t1; ++t) worker_.check_known(t, mine_, run_);
    dirty_ = true;
    barrier_wait();
    if (leaves_before(t1)) return t0;
    const std::int64_t row_length = machine_.program_.row_length, most = std::min(machine_.program_.lookahead, kMostTogether);
    std::int64_t t = t0;
    while (t < t1 && !leaves_before(t)) {
      if (t % row_length == 0) start_row(t / row_length, t);
      const std::int64_t end = std::min({t1, t + most, (t / row_length + 1) * row_length});
      // No Compute of a step reads that step's own input, and in a ring it may take the place of the oldest that is still read.
      for (std::int64_t i = t; i < end - 1; ++i) worker_.write_known(i, mine_, run_);
      dirty_ = true;
      barrier_wait();
      const std::vector<int>& active = worker_.collect(t, end);
      for (std::size_t i = 0; i < active.size();) {
        const std::int64_t loop = machine_.plan_.computes[active[i]].loop;
        if (loop == 0) {
          run_compute(active[i], worker_.cells_of(active[i]), t);
          if (end - t > 1) barrier_wait();  // those of one level may depend on each other across steps
          ++i;
          continue;
        }
        std::size_t last = i;
        while (last < active.size() && machine_.plan_.computes[active[last]].loop == loop) ++last;
        for (std::int64_t step = t; step < end; ++step) {
          for (std::size_t j = i; j < last; ++j) run_compute(active[j], worker_.cells_at(active[j], step), step);
          barrier_wait();  // what one step computes the next one reads
        }
        i = last;
      }
      barrier_wait();
      if (run_.log_prob || run_.proposal_log_prob || run_.parameters) {
        for (std::int64_t i = t; i < end; ++i) worker_.draw_step(i, drawn_, run_, true);
        dirty_ = whole_;  // what it reads lies where the others write
        barrier_wait();
      }
      worker_.write_known(end - 1, mine_, run_);
      dirty_ = true;
      barrier_wait();
      t = end;
    }
    return t;
  }

 private:
  // All threads that meet answer alike: what happens at step t or later cannot have been seen by some of them only.
  bool leaves_before(std::int64_t t) const { return team_.failure().step() < t || (alone_ && worker_.stopped()); }

  void barrier_wait() {
    if (dirty_ && !alone_) barrier_.wait();
    dirty_ = false;
    level_ = -1;
  }

  void run_grid(int number, const Box& box, std::int64_t step) {
    cells_.clear();
    for (std::int64_t frame = box.frame0; frame < box.frame1; ++frame) {
      for (std::int64_t row = box.row0; row < box.row1; ++row) {
        for (std::int64_t column = box.column0; column < box.column1; ++column) {
          cells_.push_back({row, column, frame});
          if (static_cast<std::int64_t>(cells_.size()) == kCellsTogether) {
            run_compute(number, cells_, step);
            if (worker_.stopped()) return;
            cells_.clear();
          }
        }
      }
    }
    run_compute(number, cells_, step);
  }

  void run_compute(int number, const std::vector<Cell>& cells, std::int64_t step) {
    if (cells.empty()) return;
    const PlannedCompute& planned = machine_.plan_.computes[number];
    if (planned.in_blocks && !run_.ahead) return;
    const std::int64_t count = static_cast<std::int64_t>(cells.size());
    if (alone_) {
      worker_.execute(number, cells.data(), count, {mine_, {0, planned.units}}, run_, step);
      return;
    }
    if (planned.level != level_) barrier_wait();
    level_ = planned.level;
    dirty_ = true;
    const Span all_samples = {0, run_.batch}, all_units = {0, planned.units};
    if (count >= threads_ && count * run_.batch >= kItemsAlone * threads_) {
      const Span mine = part_of(count, index_, threads_);
      worker_.execute(number, cells.data() + mine.begin, mine.end - mine.begin, {all_samples, all_units}, run_, step);
    } else if ((planned.whole || planned.units < threads_) && run_.batch >= threads_) {
      worker_.execute(number, cells.data(), count, {mine_, all_units}, run_, step);
    } else {
      worker_.execute(number, cells.data(), count, {all_samples, team_.share(number, index_)}, run_, step);
    }
  }

  const Machine& machine_;
  Team& team_;
  Worker& worker_;
  const GenerationBatch& run_;
  const int index_, threads_;
  Barrier& barrier_;
  const bool whole_;  // the calling thread draws for the whole batch, by Python, which only it may call
  const bool alone_;
  const Span mine_, drawn_;  // samples
  bool dirty_ = false;
  std::int64_t level_ = -1;
  std::vector<Cell> cells_;
};

Machine::Machine(Program program, const std::vector<float>& weights, HeadSpec head, Format format)
    : program_(checked(std::move(program))), head_(std::move(head)), kernels_(kernels()), packed_(program_, format),
      plan_(program_, packed_, head_) {
  FASTGEN_CHECK(static_cast<std::int64_t>(weights.size()) == program_.weights_size, "weights has ", weights.size(),
                " values, the program needs ", program_.weights_size);
  packed_.fill(program_, weights.data());
}

Machine::~Machine() {
  Team* team = team_.load();
  if (team && team->is_here()) delete team;
}

Team& Machine::team() {
  Team* team = team_.load();
  if (team && team->is_here()) return *team;
  auto made = std::make_unique<Team>();
  return team_.compare_exchange_strong(team, made.get()) ? *made.release() : *team;  // unless another thread was faster
}

void Machine::refresh(const std::vector<float>& weights, const std::vector<float>& constants) {
  FASTGEN_CHECK(static_cast<std::int64_t>(weights.size()) == program_.weights_size, "weights has ", weights.size(),
                " values, the program has ", program_.weights_size);
  FASTGEN_CHECK(constants.size() == program_.constants.size(), "constants has ", constants.size(), " values, the program has ",
                program_.constants.size());
  packed_.fill(program_, weights.data());
  std::copy(constants.begin(), constants.end(), program_.constants.begin());
}

template <typename Job>
void Machine::in_parallel(const GenerationBatch& run, Interrupt& interrupt, Progress& progress, Job job) {
  Team& team = this->team();
  team.gather(run.threads, plan_,
              [this](Failure& failure) { return std::make_unique<Worker>(plan_, packed_, head_, kernels_, failure); });
  progress.within = true;
  team.run([&](int index, Barrier& barrier) {
    TeamMember member(*this, team, run, interrupt, index, barrier);
    job(member, index);
  });
  if (interrupt.broken_off()) return;
  team.failure().throw_if_any();
  progress.within = false;
}

// The steps up to `end`, `least` or more at a time: job(member, t0, t1) runs some and returns the step before which it stopped.
template <typename Job>
void Machine::in_parts(const GenerationBatch& run, std::int64_t end, std::int64_t least, Interrupt& interrupt, Progress& progress,
                       Pace& pace, Job job) {
  if (pace.batch != run.batch || pace.threads != run.threads) pace = {run.batch, run.threads, least};
  while (progress.done < end) {
    const std::int64_t t0 = progress.done, t1 = interrupt.possible() ? std::min(end, t0 + pace.steps) : end;
    const auto begin = Interrupt::Clock::now();
    std::int64_t reached = t1;
    in_parallel(run, interrupt, progress, [&](TeamMember& member, int index) {
      const std::int64_t stopped = job(member, t0, t1);
      if (index == 0) reached = stopped;
    });
    if (progress.within) return;
    progress.done = reached;
    if (!interrupt.possible() || reached == end) return;
    const auto passed = Interrupt::Clock::now() - begin;
    if (2 * passed < kPart) pace.steps *= 2;
    if (passed > 2 * kPart) pace.steps = std::max(least, pace.steps / 2);
    if (interrupt.ask()) return;
  }
}

void Machine::prologue(const GenerationBatch& run, Interrupt& interrupt, Progress& progress) {
  in_parallel(run, interrupt, progress, [](TeamMember& member, int) { member.run_prologue(); });
}

void Machine::advance(const GenerationBatch& run, std::int64_t end, Interrupt& interrupt, Progress& progress) {
  in_parts(run, end, 1, interrupt, progress, advancing_,
           [](TeamMember& member, std::int64_t t0, std::int64_t t1) { return member.advance(t0, t1); });
}

void Machine::absorb(const GenerationBatch& run, std::int64_t end, Interrupt& interrupt, Progress& progress) {
  in_parts(run, end, std::max<std::int64_t>(1, program_.lookahead), interrupt, progress, absorbing_,
           [](TeamMember& member, std::int64_t t0, std::int64_t t1) { return member.absorb(t0, t1); });
}

}  // namespace fastgen
