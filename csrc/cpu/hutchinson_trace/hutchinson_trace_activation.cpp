// Activations with tangents beside them: fastgen::tangent_activation with its backward, and fastgen::tangent_contraction, on the CPU.
#include "cpu/hutchinson_trace/hutchinson_trace.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kActivationGrain = 32;  // pieces that a thread takes at least

// a [N, ...], tangents [P, N or 1, ...]. Where every sample has its own tangents, all are one row of numbers.
template <typename T>
ActivationData<T> activation_of(const Tensor& a, const Tensor& tangents, std::int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, "activation must be from 0 to 3, got ", activation);
  STD_TORCH_CHECK(a.scalar_type() == ScalarType::Float || a.scalar_type() == ScalarType::Double, "a must be float32 or float64");
  STD_TORCH_CHECK(a.dim() >= 1 && tangents.dim() == a.dim() + 1 && tangents.scalar_type() == a.scalar_type() &&
                      (tangents.size(1) == a.size(0) || tangents.size(1) == 1),
                  "tangents must be [P, N or 1, ...] for a [N, ...], of its dtype");
  for (std::int64_t d = 1; d < a.dim(); ++d) STD_TORCH_CHECK(tangents.size(d + 1) == a.size(d), "tangents does not fit a");
  const std::int64_t samples = a.size(0), whole = a.numel();
  const bool shared = tangents.size(1) != samples;
  ActivationData<T> data{};
  data.activation = static_cast<int>(activation);
  data.samples = shared ? samples : 1;
  data.numbers = shared && samples > 0 ? whole / samples : whole;
  data.probes = tangents.size(0);
  data.tangents_probe = data.numbers;  // tangents_sample stays 0: either there is one sample, or all share them
  data.a = a.const_data_ptr<T>();
  data.tangents = tangents.const_data_ptr<T>();
  return data;
}

template <typename T>
void run_pieces(const ActivationData<T>& data, ActivationKernel<T> kernel) {
  const std::int64_t pieces = (data.numbers + kActivationPiece - 1) / kActivationPiece;
  parallel_for(0, data.samples * pieces, kActivationGrain,
               [&](std::int64_t begin, std::int64_t end) { kernel(data, begin, end); });
}

Tensor like_all_probes(const Tensor& a, const Tensor& tangents) {
  std::vector<std::int64_t> sizes = {tangents.size(0)};
  for (std::int64_t d = 0; d < a.dim(); ++d) sizes.push_back(a.size(d));
  return torch::stable::new_empty(a, sizes);
}

std::tuple<Tensor, Tensor, Tensor> tangent_activation_cpu(std::int64_t activation, Tensor a, Tensor tangents) {
  a = torch::stable::contiguous(a);
  tangents = torch::stable::contiguous(tangents);
  const Tensor value = torch::stable::new_empty(a, a.sizes()), slope = torch::stable::new_empty(a, a.sizes());
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    ActivationData<T> data = activation_of<T>(a, tangents, activation);
    const Tensor scaled = like_all_probes(a, tangents);
    data.value = value.mutable_data_ptr<T>();
    data.slope = slope.mutable_data_ptr<T>();
    data.scaled = scaled.mutable_data_ptr<T>();
    run_pieces<T>(data, kernel);
    return scaled;
  };
  const TraceKernels& kernels = trace_kernels();
  const bool single = a.scalar_type() == ScalarType::Float;
  return {value, slope, single ? run(kernels.activation_float, 0.0f) : run(kernels.activation_double, 0.0)};
}

std::tuple<Tensor, Tensor, Tensor> tangent_activation_backward_cpu(std::int64_t activation, Tensor a, Tensor value, Tensor slope,
                                                                   Tensor tangents, Tensor gradient, Tensor carried) {
  for (Tensor* tensor : {&a, &value, &slope, &tangents, &gradient, &carried}) *tensor = torch::stable::contiguous(*tensor);
  const Tensor grad_a = torch::stable::new_empty(a, a.sizes());
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    ActivationData<T> data = activation_of<T>(a, tangents, activation);
    for (const Tensor* tensor : {&value, &slope, &gradient}) {
      STD_TORCH_CHECK(tensor->scalar_type() == a.scalar_type() && tensor->numel() == a.numel(),
                      "value, slope and gradient must be like a");
    }
    std::int64_t all_probes = 0;
    const bool too_large = __builtin_mul_overflow(data.probes, a.numel(), &all_probes);
    STD_TORCH_CHECK(carried.scalar_type() == a.scalar_type() && !too_large && carried.numel() == all_probes,
                    "carried must be [P, N, ...], of the dtype of a");
    const Tensor scaled_carried = like_all_probes(a, tangents), scaled = like_all_probes(a, tangents);
    data.value = const_cast<T*>(value.const_data_ptr<T>());
    data.slope = const_cast<T*>(slope.const_data_ptr<T>());
    data.gradient = gradient.const_data_ptr<T>();
    data.carried = carried.const_data_ptr<T>();
    data.grad_a = grad_a.mutable_data_ptr<T>();
    data.scaled_carried = scaled_carried.mutable_data_ptr<T>();
    data.scaled = scaled.mutable_data_ptr<T>();
    run_pieces<T>(data, kernel);
    return std::make_tuple(grad_a, scaled_carried, scaled);
  };
  const TraceKernels& kernels = trace_kernels();
  const bool single = a.scalar_type() == ScalarType::Float;
  return single ? run(kernels.activation_backward_float, 0.0f) : run(kernels.activation_backward_double, 0.0);
}

Tensor tangent_contraction_cpu(Tensor slope, Tensor tangents, Tensor met) {
  for (Tensor* tensor : {&slope, &tangents, &met}) *tensor = torch::stable::contiguous(*tensor);
  const Tensor out = torch::stable::new_empty(slope, slope.sizes());
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    ActivationData<T> data{};
    for (const Tensor* vectors : {&tangents, &met}) {
      const ActivationData<T> checked = activation_of<T>(slope, *vectors, 0);
      STD_TORCH_CHECK(checked.probes == tangents.size(0), "tangents and met must be of as many probes");
    }
    data.samples = slope.size(0);
    data.numbers = data.samples > 0 ? slope.numel() / data.samples : 0;
    data.probes = tangents.size(0);
    data.tangents_sample = tangents.size(1) == data.samples ? data.numbers : 0;
    data.carried_sample = met.size(1) == data.samples ? data.numbers : 0;
    data.tangents_probe = tangents.size(1) * data.numbers;
    data.carried_probe = met.size(1) * data.numbers;
    data.slope = const_cast<T*>(slope.const_data_ptr<T>());
    data.tangents = tangents.const_data_ptr<T>();
    data.carried = met.const_data_ptr<T>();
    data.value = out.mutable_data_ptr<T>();
    run_pieces<T>(data, kernel);
  };
  const TraceKernels& kernels = trace_kernels();
  slope.scalar_type() == ScalarType::Float ? run(kernels.contraction_float, 0.0f) : run(kernels.contraction_double, 0.0);
  return out;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("tangent_activation", TORCH_BOX(&fastgen::tangent_activation_cpu));
  m.impl("tangent_activation_backward", TORCH_BOX(&fastgen::tangent_activation_backward_cpu));
  m.impl("tangent_contraction", TORCH_BOX(&fastgen::tangent_contraction_cpu));
}
