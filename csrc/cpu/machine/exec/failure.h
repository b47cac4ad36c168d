// What goes wrong while threads compute.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <mutex>
#include <string>

namespace fastgen {

// The first thing that went wrong, by step. Instructions go on with harmless values until the threads look here together. In the
// same way they learn that they are to leave though nothing went wrong.
class Failure {
 public:
  static constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

  void report(std::int64_t step, const std::string& message);
  void leave_after(std::int64_t step) { report(step, ""); }
  std::int64_t step() const { return step_.load(std::memory_order_acquire); }
  void throw_if_any() const;
  void clear();

 private:
  std::atomic<std::int64_t> step_{kNever};
  mutable std::mutex mutex_;
  std::string message_;
};

}  // namespace fastgen
