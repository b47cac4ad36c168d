// Argument checks: FASTGEN_CHECK(condition, pieces...) throws std::invalid_argument (ValueError in Python) with the pieces
// written one after the other.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastgen {

template <typename... Pieces>
std::string text(const Pieces&... pieces) {
  std::ostringstream stream;
  (stream << ... << pieces);
  return stream.str();
}

}  // namespace fastgen

#define FASTGEN_CHECK(condition, ...)                                            \
  do {                                                                           \
    if (!(condition)) throw std::invalid_argument(::fastgen::text(__VA_ARGS__)); \
  } while (0)
