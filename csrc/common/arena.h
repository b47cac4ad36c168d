// Aligned memory for weights and scratch.
#pragma once

#include <cstddef>
#include <memory>

namespace fastgen {

// Zeroed memory, aligned to a cache line; on Linux in huge pages where it is large, since a step reads it from end to end.
class Arena {
 public:
  explicit Arena(std::size_t bytes = 0);
  unsigned char* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(unsigned char* p) const;
  };
  std::size_t size_ = 0;
  std::unique_ptr<unsigned char[], Free> data_;
};

}  // namespace fastgen
