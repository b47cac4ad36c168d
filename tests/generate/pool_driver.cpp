// The pool of threads alone: what throws in one thread does not leave the others waiting; forks are counted.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <stdexcept>

#include "cpu/machine/exec/pool.h"

using namespace fastgen;

static int failures = 0;

static void expect(bool condition, const char* what) {
  if (!condition) std::printf("%s\n", what);
  failures += !condition;
}

// A round in which the thread `wrong` throws while the others meet; whether its exception came through.
static bool throws(Pool& pool, int wrong) {
  Barrier barrier(pool.threads());
  try {
    pool.run([&](int index) {
      try {
        for (int round = 0; round < 20; ++round) {
          if (index == wrong && round == 10) throw std::runtime_error("wrong");
          barrier.wait();
        }
      } catch (const Abandoned&) {
      } catch (...) {
        barrier.abandon();
        throw;
      }
    });
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

int main() {
  for (int threads = 1; threads <= 4; ++threads) {
    Pool pool(threads);
    for (int repeat = 0; repeat < 3; ++repeat) {
      for (int wrong = 0; wrong < threads; ++wrong) expect(throws(pool, wrong), "the exception was lost");
      std::atomic<int> done{0};
      pool.run([&](int) { done.fetch_add(1); });
      expect(done.load() == threads, "a thread did not run");
    }
  }
  const std::uint64_t before = forks();
  if (const pid_t child = fork(); child == 0) {
    _exit(forks() == before + 1 ? 0 : 1);
  } else {
    int status = 1;
    waitpid(child, &status, 0);
    expect(status == 0, "a fork was not counted");
  }
  expect(forks() == before, "the parent counted its child's fork");
  return failures != 0;
}
