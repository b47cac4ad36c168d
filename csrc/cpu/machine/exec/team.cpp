#include "cpu/machine/exec/team.h"

#include <stdexcept>
#include <utility>

namespace fastgen {

Team::Turn::Turn(Team& team, Interrupt& interrupt) : team_(team), lock_(team.mutex_, std::defer_lock) {
  if (team.holder_.load() == std::this_thread::get_id()) {
    throw std::runtime_error("a sampler cannot be used from within its own work, by a signal handler or a custom head");
  }
  if (!interrupt.possible()) {
    lock_.lock();
  } else {
    while (!lock_.try_lock_for(Interrupt::kPatience)) {
      if (interrupt.ask()) return;
    }
  }
  team.holder_.store(std::this_thread::get_id());
}

Team::Turn::~Turn() {
  if (held()) team_.holder_.store(std::thread::id());
}

void Team::gather(int threads, const Plan& plan, const std::function<std::unique_ptr<Worker>(Failure&)>& hire) {
  failure_.clear();
  while (static_cast<int>(workers_.size()) < threads) workers_.push_back(hire(failure_));
  if (pool_ && pool_->threads() == threads) return;
  pool_.reset();
  shares_ = plan.shares(threads);
  pool_ = std::make_unique<Pool>(threads);
}

}  // namespace fastgen
