#include "common/arena.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastgen {
namespace {

constexpr std::size_t kHugePage = std::size_t{1} << 21;

class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(std::size_t bytes) {
    std::snprintf(text_, sizeof text_, "there is no memory for %zu bytes of scratch", bytes);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[64];
};

}  // namespace

Arena::Arena(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded);
  if (!memory || rounded < bytes) {
    std::free(memory);
    throw NoMemory(bytes);
  }
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
  std::memset(memory, 0, rounded);
  data_.reset(static_cast<unsigned char*>(memory));
}

void Arena::Free::operator()(unsigned char* p) const { std::free(p); }

}  // namespace fastgen
