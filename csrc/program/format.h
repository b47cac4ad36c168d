// The formats of weights and of the buffers that hold keys and values.
#pragma once

#include <cstdint>

namespace fastgen {

enum class Format : std::int64_t { float32, bfloat16, int8 };

constexpr int kFormats = 3;

}  // namespace fastgen
