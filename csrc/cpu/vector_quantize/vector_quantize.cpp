// Nearest code of a codebook: fastgen::vector_quantize on the CPU.
#include "cpu/vector_quantize/vector_quantize.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "common/arena.h"
#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrainFlops = 1 << 16;

// The mean of the codes in the coordinates where it is larger than their deviation from it, else 0. Nearness is computed about
// it: an offset that all data have would cancel otherwise.
template <typename T>
std::vector<T> centre_of(const T* codebook, std::int64_t count, std::int64_t width) {
  std::vector<double> sums(width), squares(width);  // of differences from the first code
  for (std::int64_t k = 1; k < count; ++k) {
    for (std::int64_t d = 0; d < width; ++d) {
      const double value = static_cast<double>(codebook[k * width + d]) - static_cast<double>(codebook[d]);
      sums[d] += value;
      squares[d] += value * value;
    }
  }
  std::vector<T> centre(width);
  const double share = 1.0 / static_cast<double>(count);
  for (std::int64_t d = 0; d < width; ++d) {
    const double shift = sums[d] * share, mean = static_cast<double>(codebook[d]) + shift;
    if (mean * mean > squares[d] * share - shift * shift) centre[d] = static_cast<T>(mean);
  }
  return centre;
}

// Codes less the centre in blocks of `lanes`, and the offset of every lane.
template <typename T>
void pack(const T* codebook, const T* centre, std::int64_t count, std::int64_t width, std::int64_t lanes, T* packed, T* offsets) {
  const std::int64_t padded = (count + lanes - 1) / lanes * lanes;
  for (std::int64_t k = 0; k < padded; ++k) {
    double square = 0;
    for (std::int64_t d = 0; d < width; ++d) {
      const T value = k < count ? codebook[k * width + d] - centre[d] : T(0);
      packed[(k / lanes * width + d) * lanes + k % lanes] = value;
      square += static_cast<double>(value) * static_cast<double>(value);
    }
    offsets[k] = k < count ? static_cast<T>(-square / 2) : -std::numeric_limits<T>::infinity();
  }
}

template <typename T, typename Kernel>
void quantize(const Tensor& x, const Tensor& codebook, const Tensor& codes, const Tensor& quantized, const Tensor& counts,
              const Tensor& sums, std::int64_t lanes, Kernel nearest) {
  const std::int64_t rows = x.size(0), width = x.size(1), count = codebook.size(0), blocks = (count + lanes - 1) / lanes;
  const Arena packed(static_cast<std::size_t>(blocks * lanes * width) * sizeof(T)),
      offsets(static_cast<std::size_t>(blocks * lanes) * sizeof(T));
  const T *input = x.const_data_ptr<T>(), *book = codebook.const_data_ptr<T>();
  const std::vector<T> centre = centre_of(book, count, width);
  pack(book, centre.data(), count, width, lanes, reinterpret_cast<T*>(packed.data()), reinterpret_cast<T*>(offsets.data()));
  auto* chosen = codes.mutable_data_ptr<std::int64_t>();
  const NearestCode<T> task{
      input,  centre.data(), reinterpret_cast<const T*>(packed.data()), reinterpret_cast<const T*>(offsets.data()), width,
      blocks, chosen};
  T* out = quantized.mutable_data_ptr<T>();
  parallel_for(0, rows, std::max<std::int64_t>(1, kGrainFlops / (count * width + 1)), [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> scratch(kMostRows * width);
    nearest(task, begin, end, scratch.data());
    for (std::int64_t n = begin; n < end; ++n) {
      std::copy_n(book + chosen[n] * width, width, out + n * width);
    }
  });
  T *number = counts.mutable_data_ptr<T>(), *sum = sums.mutable_data_ptr<T>();
  std::fill_n(number, count, T(0));
  for (std::int64_t n = 0; n < rows; ++n) number[chosen[n]] += 1;
  // every thread adds all rows, in their order, to columns of its own: the sums do not depend on the number of threads
  parallel_for(0, width, std::max<std::int64_t>(16, kGrainFlops / (rows + 1)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = 0; k < count; ++k) std::fill(sum + k * width + begin, sum + k * width + end, T(0));
    for (std::int64_t n = 0; n < rows; ++n) {
      T* to = sum + chosen[n] * width;
      const T* from = input + n * width;
      for (std::int64_t d = begin; d < end; ++d) to[d] += from[d];
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> vector_quantize_cpu(Tensor x, Tensor codebook) {
  STD_TORCH_CHECK(x.dim() == 2 && codebook.dim() == 2 && x.size(1) == codebook.size(1), "x must be [N, D] and codebook [K, D]");
  STD_TORCH_CHECK(codebook.size(0) > 0, "codebook has no codes");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(codebook.scalar_type() == x.scalar_type(), "codebook must have the dtype of x");
  x = torch::stable::contiguous(x);
  codebook = torch::stable::contiguous(codebook);
  Tensor codes = torch::stable::new_empty(x, {x.size(0)}, ScalarType::Long), quantized = torch::stable::new_empty(x, x.sizes());
  Tensor counts = torch::stable::new_empty(x, {codebook.size(0)}), sums = torch::stable::new_empty(x, codebook.sizes());
  const VectorQuantizeKernels& kernels = vector_quantize_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    quantize<float>(x, codebook, codes, quantized, counts, sums, kernels.lanes, kernels.nearest_float);
  } else {
    quantize<double>(x, codebook, codes, quantized, counts, sums, kernels.lanes, kernels.nearest_double);
  }
  return {codes, quantized, counts, sums};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("vector_quantize", TORCH_BOX(&fastgen::vector_quantize_cpu)); }
