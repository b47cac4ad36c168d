#include "cpu/machine/exec/pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <system_error>

#include "common/check.h"

namespace fastgen {
namespace {

constexpr int kLeastSpins = 32, kMostSpins = 2000;  // about one microsecond, some tens of them
constexpr auto kIdle = std::chrono::milliseconds(1);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that share a core wait in vain as long as they spin: a thread whose spinning did not help spins half as long next time.
template <typename Ready>
void wait_until(Ready ready) {
  static thread_local int spins = kMostSpins;
  for (int spin = 0; spin < spins; ++spin) {
    if (ready()) {
      spins = std::min(2 * spins, kMostSpins);
      return;
    }
    pause();
  }
  spins = std::max(spins / 2, kLeastSpins);
  while (!ready()) std::this_thread::yield();
}

std::atomic<std::uint64_t> fork_count{0};

}  // namespace

std::uint64_t forks() {
  static const bool counted = pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1); }) == 0;
  if (!counted) throw std::bad_alloc();
  return fork_count.load(std::memory_order_relaxed);
}

void Barrier::wait() {
  const std::uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else {
    wait_until([&] { return round_.load(std::memory_order_acquire) != round || abandoned_.load(std::memory_order_relaxed); });
  }
  if (abandoned_.load(std::memory_order_acquire)) throw Abandoned{};
}

Pool::Pool(int threads) {
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error(text("threads must be at most ", workers_.size() + 1, " here, got ", threads,
                                  ": the system refuses another thread (", error.code().message(), ")"));
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::call(int index) {
  try {
    (*job_)(index);
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void Pool::run(const std::function<void(int)>& job) {
  job_ = &job;
  failure_ = nullptr;
  busy_.store(static_cast<int>(workers_.size()));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    round_.fetch_add(1, std::memory_order_release);
  }
  if (!workers_.empty()) wake_.notify_all();
  call(0);
  wait_until([&] { return busy_.load(std::memory_order_acquire) == 0; });
  if (failure_) std::rethrow_exception(failure_);
}

void Pool::work(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return round_.load(std::memory_order_acquire) != seen; };
    const auto sleep_at = std::chrono::steady_clock::now() + kIdle;
    for (int spin = 0; !changed(); ++spin) {
      if (spin < kMostSpins) {
        pause();
      } else if (std::chrono::steady_clock::now() < sleep_at) {
        std::this_thread::yield();
      } else {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, changed);
      }
    }
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    call(index);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace fastgen
