#include "cpu/machine/exec/failure.h"

#include <stdexcept>

namespace fastgen {

void Failure::report(std::int64_t step, const std::string& message) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::int64_t before = step_.load(std::memory_order_relaxed);
  if (step < before || (step == before && message_.empty())) {
    message_ = message;
    step_.store(step, std::memory_order_release);
  }
}

void Failure::throw_if_any() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (step() != kNever && !message_.empty()) throw std::invalid_argument(message_);
}

void Failure::clear() {
  std::lock_guard<std::mutex> lock(mutex_);
  step_.store(kNever);
}

}  // namespace fastgen
