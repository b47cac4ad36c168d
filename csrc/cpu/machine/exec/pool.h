// Threads that stay alive between calls, and where they meet.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastgen {

// How many forks lie between the first process and this one. Of the threads of a pool that was made before the last fork only
// the caller's may exist here.
std::uint64_t forks();

// Thrown by Barrier::wait.
struct Abandoned {};

// A meeting point of a fixed number of threads. Waiting spins for a bounded time, which adapts, and then yields: a thread that has
// lost its core does not cost more than its own time slice.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  // Throws Abandoned where a thread will not come.
  void wait();
  // From a thread that will not come any more.
  void abandon() { abandoned_.store(true, std::memory_order_release); }

 private:
  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
  std::atomic<bool> abandoned_{false};
};

// `threads` threads including the caller's. Between runs the others spin for a short while and then sleep.
class Pool {
 public:
  // Throws std::runtime_error where the system gives no more threads.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls job(0) on the caller's thread and job(1), ... on the others; returns when all are done. The first exception is
  // thrown again here. A job that waits at a barrier must abandon it before it throws.
  void run(const std::function<void(int)>& job);

 private:
  void work(int index);
  void call(int index);
  void stop();

  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<std::uint32_t> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr failure_;
};

}  // namespace fastgen
