#include "cpu/machine/probes/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "common/check.h"
#include "cpu/machine/kernels/kernels.h"
#include "cpu/machine/plan/pack.h"
#include "cpu/machine/exec/pool.h"

namespace fastgen {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point begin, Clock::time_point end) { return std::chrono::duration<double>(end - begin).count(); }

void check_threads(int threads) {
  FASTGEN_CHECK(threads >= 1 && threads <= 1024, "threads is ", threads, "; allowed are 1 .. 1024");
}

}  // namespace

double read_bandwidth(std::size_t bytes, int threads, int repeats) {
  constexpr std::size_t unit = 1024;
  check_threads(threads);
  FASTGEN_CHECK(repeats >= 1, "repeats is ", repeats, "; at least 1 is needed");
  FASTGEN_CHECK(bytes >= unit * static_cast<std::size_t>(threads), "bytes is ", bytes, "; at least ", unit,
                " a thread are needed");
  const std::size_t share = bytes / threads / unit * unit;
  const Kernels& kernel = kernels();
  const Arena data(share * threads);
  Pool pool(threads);
  Barrier barrier(threads);
  std::vector<double> rates;
  std::vector<float> sinks(static_cast<std::size_t>(threads) * kTile);
  pool.run([&](int index) {
    const float* mine = reinterpret_cast<const float*>(data.data() + share * index);
    for (int repeat = -1; repeat < repeats; ++repeat) {  // the first warms the caches
      barrier.wait();
      const auto begin = Clock::now();
      sinks[index * kTile] += kernel.read(mine, share / sizeof(float));
      barrier.wait();
      if (index == 0 && repeat >= 0) rates.push_back(static_cast<double>(share * threads) / seconds(begin, Clock::now()) * 1e-9);
    }
  });
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

double fma_peak(int threads) {
  constexpr int bursts = 20;
  constexpr std::int64_t rounds = 200000;
  check_threads(threads);
  const Kernels& kernel = kernels();
  Pool pool(threads);
  Barrier barrier(threads);
  double best = 0.0;
  pool.run([&](int index) {
    float sink[2 * kTile] = {};
    for (int burst = 0; burst < bursts; ++burst) {
      barrier.wait();
      const auto begin = Clock::now();
      const double operations = kernel.fma_burst(rounds, sink);
      barrier.wait();
      if (index == 0) best = std::max(best, operations * threads / seconds(begin, Clock::now()) * 1e-9);
    }
  });
  return best;
}

}  // namespace fastgen
