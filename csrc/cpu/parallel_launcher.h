// Loops over PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

namespace fastgen {

// function(begin, end) for the parts of the range that threads share. The first exception is thrown again here, as it is:
// torch::stable::parallel_for would keep nothing of it but that there was one.
template <typename Function>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, const Function& function) {
  std::mutex mutex;
  std::exception_ptr failure;
  torch::stable::parallel_for(begin, end, grain, [&](std::int64_t first, std::int64_t last) {
    try {
      function(first, last);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fastgen
