// The launcher of philox_uniform: the one file of the op on CUDA that knows torch (its stable headers).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "cuda/philox_uniform/philox_uniform.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check_indices(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1, name, " must be a one-dimensional int64 tensor");
}

void check_uint16(std::int64_t value, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value < 65536, name, " must be at least 0 and less than 65536, got ", value);
}

Tensor philox_uniform_cuda(std::int64_t seed, Tensor samples, Tensor positions, std::int64_t channel, std::int64_t draw) {
  check_indices(samples, "samples");
  check_indices(positions, "positions");
  STD_TORCH_CHECK(samples.get_device_index() == positions.get_device_index(), "samples and positions must be on one device");
  check_uint16(channel, "channel");
  check_uint16(draw, "draw");
  samples = torch::stable::contiguous(samples);
  positions = torch::stable::contiguous(positions);
  const torch::stable::accelerator::DeviceGuard guard(samples.get_device_index());
  Tensor noise = torch::stable::new_empty(samples, {samples.size(0), positions.size(0)}, ScalarType::Double);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(samples.get_device_index(), &stream));
  const cudaError_t status = philox_uniform_fill(noise.mutable_data_ptr<double>(), samples.const_data_ptr<std::int64_t>(),
                                                 samples.size(0), positions.const_data_ptr<std::int64_t>(), positions.size(0),
                                                 static_cast<std::uint64_t>(seed), static_cast<std::uint32_t>(channel),
                                                 static_cast<std::uint32_t>(draw), static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(status == cudaSuccess, "philox_uniform: ", cudaGetErrorString(status));
  return noise;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) { m.impl("philox_uniform", TORCH_BOX(&fastgen::philox_uniform_cuda)); }
