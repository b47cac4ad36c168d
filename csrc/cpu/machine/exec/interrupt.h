// How a call is stopped before its end.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <utility>

namespace fastgen {

// Asks whoever made a call, from the calling thread, whether to stop. A call that is to stop leaves after the step that it is in;
// where that takes longer than kGrace, the step is broken off.
class Interrupt {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPatience{50}, kGrace{80};

  // `question` may be empty: then nobody stops the call.
  explicit Interrupt(std::function<bool()> question) : question_(std::move(question)) {}

  bool possible() const { return static_cast<bool>(question_); }
  // Whether to stop; the question is put no more often than every kPatience.
  bool ask() {
    if (!wanted_ && Clock::now() - last_ >= kPatience) {
      wanted_ = question_();
      last_ = Clock::now();
    }
    if (wanted_ && Clock::now() - last_ >= kGrace) broken_off_.store(true, std::memory_order_relaxed);
    return wanted_;
  }
  // For all threads.
  bool broken_off() const { return broken_off_.load(std::memory_order_relaxed); }

 private:
  const std::function<bool()> question_;
  Clock::time_point last_ = Clock::now();
  bool wanted_ = false;
  std::atomic<bool> broken_off_{false};
};

// How far a call has come, for whoever made it.
struct Progress {
  std::int64_t done = 0;  // all steps before it are
  bool within = false;    // something of what follows is done, too
};

}  // namespace fastgen
