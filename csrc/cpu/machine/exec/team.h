// The threads of a machine, and what each works with.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/machine/exec/failure.h"
#include "cpu/machine/exec/interrupt.h"
#include "cpu/machine/plan/plan.h"
#include "cpu/machine/exec/pool.h"
#include "cpu/machine/exec/worker.h"

namespace fastgen {

// One call at a time has the threads. Like all threads they stay behind when a process forks: the child leaves its parent's team
// alone, lock and all, and makes its own.
class Team {
 public:
  Team() : forks_(forks()) {}

  bool is_here() const { return forks_ == forks(); }

  // Waits until no other call has the team; `held` is empty where the interrupt came first. Throws std::runtime_error where the
  // calling thread itself has it: a signal handler or a custom head in the middle of a call.
  class Turn {
   public:
    Turn(Team& team, Interrupt& interrupt);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    bool held() const { return lock_.owns_lock(); }

   private:
    Team& team_;
    std::unique_lock<std::timed_mutex> lock_;
  };

  // Sees to it that `threads` threads are there. Where that throws, the next call tries again.
  void gather(int threads, const Plan& plan, const std::function<std::unique_ptr<Worker>(Failure&)>& hire);

  // job(index, barrier) on every thread. The first exception is thrown again here, and the others do not wait for its thread.
  template <typename Job>
  void run(Job job) {
    Barrier barrier(pool_->threads());
    pool_->run([&](int index) {
      try {
        job(index, barrier);
      } catch (const Abandoned&) {
      } catch (...) {
        barrier.abandon();
        throw;
      }
    });
  }

  Worker& worker(int index) { return *workers_[static_cast<std::size_t>(index)]; }
  // The units of lanes of a Compute that a thread computes.
  Span share(int compute, int index) const { return shares_[static_cast<std::size_t>(compute)][static_cast<std::size_t>(index)]; }
  Failure& failure() { return failure_; }

 private:
  const std::uint64_t forks_;
  std::timed_mutex mutex_;
  std::atomic<std::thread::id> holder_{};
  Failure failure_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<std::vector<Span>> shares_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace fastgen
