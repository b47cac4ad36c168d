// The trace of a dense field between pairs of vectors: fastgen::dense_trace on the CPU.
#include "cpu/hutchinson_trace.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "common/arena.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 8;  // tiles that a thread takes at least

void check(const Tensor& x, const Tensor& left, const Tensor& right, const std::vector<Tensor>& parameters,
           std::int64_t activation) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(x.dim() == 2, "x must be [N, D]");
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, "activation is ", activation, "; it must be 0, 1 or 2");
  for (const Tensor* vectors : {&left, &right}) {
    STD_TORCH_CHECK(vectors->scalar_type() == x.scalar_type() && vectors->dim() == 3 && vectors->size(0) == left.size(0) &&
                        (vectors->size(1) == x.size(0) || vectors->size(1) == 1) && vectors->size(2) == x.size(1),
                    "left and right must be [P, N or 1, D], of the dtype of x");
  }
  STD_TORCH_CHECK(parameters.size() >= 4 && parameters.size() % 2 == 0,
                  "parameters must be a weight and a bias for each of 2 layers or more");
  std::int64_t width = x.size(1);
  for (std::size_t i = 0; i < parameters.size(); i += 2) {
    const Tensor &weight = parameters[i], &bias = parameters[i + 1];
    STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() && bias.scalar_type() == x.scalar_type(),
                    "parameters must have the dtype of x");
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == width && bias.dim() == 1 && bias.size(0) == weight.size(0),
                    "parameters must be [out, in] and [out] of layers that follow one another");
    width = weight.size(0);
  }
  STD_TORCH_CHECK(width == x.size(1), "the last layer must give as many numbers as x has");
}

template <typename T>
void trace(const Tensor& x, const Tensor& left, const Tensor& right, const std::vector<Tensor>& parameters, int activation,
           const Tensor& y, const Tensor& out, std::int64_t width, TraceKernel<T> kernel) {
  const auto padded = [&](std::int64_t n) { return (n + width - 1) / width * width; };
  const std::int64_t layers = parameters.size() / 2, features = x.size(1), samples = x.size(0);
  std::int64_t widest = 0, numbers = features * padded(parameters[2 * layers - 4].size(0));
  for (std::int64_t i = 0; i < layers; ++i) {
    const std::int64_t columns = padded(parameters[2 * i].size(0));
    widest = std::max(widest, columns);
    numbers += (parameters[2 * i].size(1) + 1) * columns;
  }
  const Arena packed(numbers * sizeof(T));
  T* to = reinterpret_cast<T*>(packed.data());
  std::vector<TraceLayer<T>> packs;
  for (std::int64_t i = 0; i < layers; ++i) {
    const Tensor &weight = parameters[2 * i], &bias = parameters[2 * i + 1];
    const std::int64_t outputs = weight.size(0), inputs = weight.size(1), columns = padded(outputs);
    const T *from = weight.const_data_ptr<T>(), *added = bias.const_data_ptr<T>();
    packs.push_back({to, to + inputs * columns, inputs, columns});
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t k = 0; k < inputs; ++k) to[k * columns + o] = from[o * inputs + k];
    }
    std::copy(added, added + outputs, to + inputs * columns);
    to += (inputs + 1) * columns;
  }
  const Tensor& last = parameters[2 * layers - 2];
  const std::int64_t inputs = last.size(1), columns = padded(inputs);
  for (std::int64_t d = 0; d < features; ++d) {
    std::copy_n(last.const_data_ptr<T>() + d * inputs, inputs, to + d * columns);
  }
  const auto stride = [&](const Tensor& vectors) { return vectors.size(1) == samples ? features : 0; };
  const TraceData<T> data = {activation,
                             samples,
                             left.size(0),
                             features,
                             layers - 1,
                             packs.data(),
                             {to, nullptr, features, columns},
                             x.const_data_ptr<T>(),
                             left.const_data_ptr<T>(),
                             right.const_data_ptr<T>(),
                             left.size(1) * features,
                             stride(left),
                             right.size(1) * features,
                             stride(right),
                             y.mutable_data_ptr<T>(),
                             out.mutable_data_ptr<T>()};
  const std::int64_t tiles = (samples + kTraceSamples - 1) / kTraceSamples;
  torch::stable::parallel_for(0, tiles, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const Arena scratch(trace_scratch(layers - 1) * kTraceSamples * widest * sizeof(T));
    kernel(data, reinterpret_cast<T*>(scratch.data()), widest, begin * kTraceSamples, std::min(end * kTraceSamples, samples));
  });
}

std::tuple<Tensor, Tensor> dense_trace_cpu(std::int64_t activation, Tensor x, Tensor left, Tensor right,
                                           std::vector<Tensor> parameters) {
  check(x, left, right, parameters, activation);
  x = torch::stable::contiguous(x);
  left = torch::stable::contiguous(left);
  right = torch::stable::contiguous(right);
  for (Tensor& tensor : parameters) tensor = torch::stable::contiguous(tensor);
  const Tensor y = torch::stable::new_empty(x, x.sizes()), out = torch::stable::new_empty(x, {x.size(0)});
  const TraceKernels& kernels = trace_kernels();
  if (x.scalar_type() == ScalarType::Float) {
    trace<float>(x, left, right, parameters, activation, y, out, kernels.width, kernels.run_float);
  } else {
    trace<double>(x, left, right, parameters, activation, y, out, kernels.width, kernels.run_double);
  }
  return {y, out};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { m.impl("dense_trace", TORCH_BOX(&fastgen::dense_trace_cpu)); }
