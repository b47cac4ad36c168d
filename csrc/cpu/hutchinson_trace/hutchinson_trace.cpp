// Fields of dense layers: fastgen::dense_trace with its backward, and fastgen::dense_powers, on the CPU.
#include "cpu/hutchinson_trace/hutchinson_trace.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "cpu/parallel_launcher.h"

namespace fastgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr std::int64_t kGrain = 48;        // samples that a thread takes at least
constexpr std::int64_t kCache = 1 << 19;   // bytes that a tile takes at most, if it can
constexpr std::int64_t kMostRows = 48;     // of a tile
constexpr std::int64_t kTogether = 128;    // samples, about, whose gradients are summed in the dtype of x, then in float64
constexpr std::int64_t kKeptPadding = 16;
constexpr std::int64_t kRuns = 16;         // of samples, at most, whose gradients are summed apart: any number of threads

void check(const Tensor& x, const Tensor& left, const Tensor& right, const std::vector<Tensor>& parameters,
           std::int64_t activation) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  STD_TORCH_CHECK(x.dim() == 2, "x must be [N, D]");
  STD_TORCH_CHECK(activation >= 0 && activation <= 3, "activation must be from 0 to 3, got ", activation);
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
    const bool own = bias.dim() == 2 && bias.size(0) == x.size(0);
    STD_TORCH_CHECK(
        weight.dim() == 2 && weight.size(1) == width && (own || bias.dim() == 1) && bias.size(bias.dim() - 1) == weight.size(0),
        "parameters must be [out, in] and [out] or [N, out] of layers that follow one another");
    width = weight.size(0);
  }
  STD_TORCH_CHECK(width == x.size(1), "the last layer must give as many numbers as x has");
}

// Memory as it is found, aligned to a cache line.
template <typename T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) : data_(static_cast<T*>(::operator new(count * sizeof(T), kAlignment))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

// The layers as the kernels read them: columns padded with zeros to whole vectors.
template <typename T>
class Packed {
 public:
  Packed(const std::vector<Tensor>& parameters, std::int64_t width) : width_(width), memory_(numbers_of(parameters)) {
    T* to = memory_.data();
    for (std::size_t i = 0; i < parameters.size(); i += 2) {
      const Tensor &weight = parameters[i], &bias = parameters[i + 1];
      const std::int64_t outputs = weight.size(0), inputs = weight.size(1), columns = padded(outputs), across = padded(inputs);
      const T *from = weight.const_data_ptr<T>(), *added = bias.const_data_ptr<T>();
      T *row = to + inputs * columns, *copy = row + columns;
      transpose(from, outputs, inputs, to, columns);
      const bool own = bias.dim() == 2;
      if (!own) std::fill(std::copy_n(added, outputs, row), copy, T(0));
      for (std::int64_t o = 0; across > inputs && o < outputs; ++o) {
        std::fill(std::copy_n(from + o * inputs, inputs, copy + o * across), copy + (o + 1) * across, T(0));
      }
      layers.push_back({to, row, inputs, columns, own ? added : nullptr, nullptr});
      back.push_back({across > inputs ? copy : from, nullptr, outputs, across, nullptr, nullptr});
      to = copy + outputs * across;
      widest = std::max({widest, columns, across});
      gradients += outputs * across + columns;
    }
  }

  std::vector<TraceLayer<T>> layers, back;
  std::int64_t widest = 0, gradients = 0;  // gradients: how many numbers those of all layers take, laid out as `back`

 private:
  std::int64_t padded(std::int64_t n) const { return (n + width_ - 1) / width_ * width_; }
  std::int64_t numbers_of(const std::vector<Tensor>& parameters) const {
    std::int64_t numbers = 0;
    for (std::size_t i = 0; i < parameters.size(); i += 2) {
      const std::int64_t outputs = parameters[i].size(0), inputs = parameters[i].size(1);
      numbers += (inputs + 1) * padded(outputs) + outputs * padded(inputs);
    }
    return numbers;
  }

  // Some columns of `to` at a time: a cache line of each row is written once.
  void transpose(const T* from, std::int64_t outputs, std::int64_t inputs, T* to, std::int64_t columns) const {
    for (std::int64_t first = 0; first < columns; first += width_) {
      const std::int64_t count = std::min(width_, outputs - first);
      for (std::int64_t k = 0; k < inputs; ++k) {
        T* row = to + k * columns + first;
        for (std::int64_t o = 0; o < count; ++o) row[o] = from[(first + o) * inputs + k];
        std::fill(row + count, row + width_, T(0));
      }
    }
  }

  std::int64_t width_;
  Scratch<T> memory_;
};

template <typename T>
TraceData<T> data_of(const Tensor& x, const Tensor& left, const Tensor& right, const Packed<T>& packed, std::int64_t activation) {
  const std::int64_t samples = x.size(0), features = x.size(1), hidden = packed.layers.size() - 1;
  const auto stride = [&](const Tensor& vectors) { return vectors.size(1) == samples ? features : 0; };
  TraceData<T> data{};
  data.activation = static_cast<int>(activation);
  data.samples = samples;
  data.probes = left.size(0);
  data.features = features;
  data.hidden = hidden;
  data.layers = packed.layers.data();
  data.back = packed.back.data();
  data.x = x.const_data_ptr<T>();
  data.left = left.const_data_ptr<T>();
  data.right = right.const_data_ptr<T>();
  data.left_probe = left.size(1) * features;
  data.left_sample = stride(left);
  data.right_probe = right.size(1) * features;
  data.right_sample = stride(right);
  return data;
}

// The samples of a tile: enough that each load of a weight serves many rows, few enough that they stay in the cache.
template <typename T>
std::int64_t rows_of(const TraceData<T>& data, const Packed<T>& packed, std::int64_t matrices) {
  const std::int64_t held = std::max<std::int64_t>(1, trace_probes_held(data.probes));
  const std::int64_t row = matrices * packed.widest * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t rows = std::min({kMostRows, kTraceSamples * kTraceProbes / held, kCache / row});
  return std::max(kTraceSamples, rows / kTraceSamples * kTraceSamples);
}

template <typename T>
void trace(TraceData<T> data, const Packed<T>& packed, TraceKernel<T> kernel) {
  const std::int64_t matrices = trace_scratch(data.hidden, data.probes);
  data.rows = rows_of(data, packed, data.kept ? trace_backward_scratch(data.hidden, data.probes) : matrices);
  const std::int64_t tiles = (data.samples + data.rows - 1) / data.rows;
  parallel_for(0, tiles, std::max<std::int64_t>(1, kGrain / data.rows), [&](std::int64_t begin, std::int64_t end) {
    const Scratch<T> scratch(matrices * data.rows * packed.widest);
    const std::int64_t last = std::min(end * data.rows, data.samples);
    kernel(data, scratch.data(), packed.widest, begin * data.rows, last);
  });
}

// `grads`: of the weights and biases in turn, without padding.
template <typename T>
void trace_backward(TraceData<T> data, Packed<T>& packed, TraceBackwardKernel<T> kernel, T* grads) {
  T* place_of = grads;
  for (std::size_t k = 0; k < packed.layers.size(); ++k) {
    TraceLayer<T>& layer = packed.layers[k];
    const std::int64_t outputs = packed.back[k].inputs;
    place_of += layer.inputs * outputs;
    layer.grad_own = layer.own ? place_of : nullptr;
    place_of += layer.own ? data.samples * outputs : outputs;
  }
  const std::int64_t matrices = trace_backward_scratch(data.hidden, data.probes);
  data.rows = rows_of(data, packed, matrices);
  const std::int64_t tiles = (data.samples + data.rows - 1) / data.rows;
  const std::int64_t together = (kTogether + data.rows - 1) / data.rows;
  const std::int64_t most = (data.samples + kTogether - 1) / kTogether,
                     runs = std::max<std::int64_t>(1, std::min({kRuns, most, tiles}));
  const std::int64_t numbers = packed.gradients;
  const std::unique_ptr<double[]> sums(new double[runs * numbers]);
  parallel_for(0, runs, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t scratch = matrices * data.rows * packed.widest;
    const Scratch<T> own(scratch + numbers);
    T *memory = own.data(), *part = memory + scratch;
    for (std::int64_t run = begin; run < end; ++run) {
      const std::int64_t start = run * tiles / runs, last = (run + 1) * tiles / runs;
      double* sum = sums.get() + run * numbers;
      std::fill_n(sum, numbers, 0.0);
      for (std::int64_t tile = start; tile < last; tile += together) {
        const std::int64_t stop = std::min(std::min(tile + together, last) * data.rows, data.samples);
        std::fill_n(part, numbers, T(0));
        kernel(data, memory, packed.widest, tile * data.rows, stop, part);
        for (std::int64_t i = 0; i < numbers; ++i) sum[i] += part[i];
      }
    }
  });
  for (std::int64_t run = 1; run < runs; ++run) {
    for (std::int64_t i = 0; i < numbers; ++i) sums[i] += sums[run * numbers + i];
  }
  const double* place = sums.get();
  const auto take = [&](std::int64_t count, std::int64_t columns) {
    for (std::int64_t i = 0; i < count; ++i) grads[i] = static_cast<T>(place[i]);
    grads += count;
    place += columns;
  };
  for (std::size_t k = 0; k < packed.back.size(); ++k) {
    for (std::int64_t o = 0; o < packed.back[k].inputs; ++o) take(packed.layers[k].inputs, packed.back[k].columns);
    if (packed.layers[k].own) {
      grads += data.samples * packed.back[k].inputs;
      place += packed.layers[k].columns;
    } else {
      take(packed.back[k].inputs, packed.layers[k].columns);
    }
  }
}

// Columns of the widest hidden layer, padded for the vectors of every instruction set.
std::int64_t kept_columns(const std::vector<Tensor>& parameters) {
  std::int64_t widest = 0;
  for (std::size_t i = 0; i + 2 < parameters.size(); i += 2) widest = std::max(widest, parameters[i].size(0));
  return (widest + kKeptPadding - 1) / kKeptPadding * kKeptPadding;
}

std::tuple<Tensor, Tensor, Tensor> dense_trace_cpu(std::int64_t activation, bool keep, Tensor x, Tensor left, Tensor right,
                                                   std::vector<Tensor> parameters) {
  check(x, left, right, parameters, activation);
  x = torch::stable::contiguous(x);
  left = torch::stable::contiguous(left);
  right = torch::stable::contiguous(right);
  for (Tensor& tensor : parameters) tensor = torch::stable::contiguous(tensor);
  const Tensor y = torch::stable::new_empty(x, x.sizes()), out = torch::stable::new_empty(x, {x.size(0)});
  const std::int64_t columns = kept_columns(parameters), layers = static_cast<std::int64_t>(parameters.size() / 2);
  const Tensor kept = torch::stable::new_empty(x, {keep ? x.size(0) : 0, layers, left.size(0), columns});
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    const Packed<T> packed(parameters, trace_kernels().width);
    TraceData<T> data = data_of<T>(x, left, right, packed, activation);
    data.y = y.mutable_data_ptr<T>();
    data.trace = out.mutable_data_ptr<T>();
    data.kept = kept.numel() ? kept.mutable_data_ptr<T>() : nullptr;
    data.kept_columns = columns;
    trace<T>(data, packed, kernel);
  };
  const TraceKernels& kernels = trace_kernels();
  x.scalar_type() == ScalarType::Float ? run(kernels.run_float, 0.0f) : run(kernels.run_double, 0.0);
  return {y, out, kept};
}

std::tuple<Tensor, Tensor> dense_trace_backward_cpu(std::int64_t activation, Tensor grad_y, Tensor grad_trace, Tensor kept,
                                                    Tensor x, Tensor left, Tensor right, std::vector<Tensor> parameters) {
  check(x, left, right, parameters, activation);
  const std::int64_t columns = kept_columns(parameters), layers = static_cast<std::int64_t>(parameters.size() / 2);
  STD_TORCH_CHECK(kept.scalar_type() == x.scalar_type() && kept.is_contiguous() &&
                      (kept.numel() == 0 || kept.numel() == x.size(0) * layers * left.size(0) * columns),
                  "kept must be what dense_trace gave, for the same arguments");
  STD_TORCH_CHECK(grad_y.scalar_type() == x.scalar_type() && grad_y.numel() == x.numel() && grad_y.dim() == 2 &&
                      grad_trace.scalar_type() == x.scalar_type() && grad_trace.numel() == x.size(0),
                  "grad_y must be like x, and grad_trace [N]");
  for (Tensor* tensor : {&grad_y, &grad_trace, &x, &left, &right}) *tensor = torch::stable::contiguous(*tensor);
  std::int64_t numbers = 0;
  for (Tensor& tensor : parameters) {
    tensor = torch::stable::contiguous(tensor);
    numbers += tensor.numel();
  }
  const Tensor grad_x = torch::stable::new_empty(x, x.sizes()), grads = torch::stable::new_empty(x, {numbers});
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    Packed<T> packed(parameters, trace_kernels().width);
    TraceData<T> data = data_of<T>(x, left, right, packed, activation);
    data.grad_y = grad_y.const_data_ptr<T>();
    data.grad_trace = grad_trace.const_data_ptr<T>();
    data.grad_x = grad_x.mutable_data_ptr<T>();
    data.kept = kept.numel() ? const_cast<T*>(kept.const_data_ptr<T>()) : nullptr;
    data.kept_columns = columns;
    trace_backward<T>(data, packed, kernel, grads.mutable_data_ptr<T>());
  };
  const TraceKernels& kernels = trace_kernels();
  x.scalar_type() == ScalarType::Float ? run(kernels.backward_float, 0.0f) : run(kernels.backward_double, 0.0);
  return {grad_x, grads};
}

std::tuple<Tensor, Tensor> dense_powers_cpu(std::int64_t activation, std::int64_t count, Tensor x, Tensor vectors,
                                            std::vector<Tensor> parameters) {
  STD_TORCH_CHECK(count >= 0, "count must be at least 0, got ", count);
  check(x, vectors, vectors, parameters, activation);
  x = torch::stable::contiguous(x);
  vectors = torch::stable::contiguous(vectors);
  for (Tensor& tensor : parameters) tensor = torch::stable::contiguous(tensor);
  const Tensor y = torch::stable::new_empty(x, x.sizes());
  const Tensor products = torch::stable::new_empty(x, {count, vectors.size(0), x.size(0), x.size(1)});
  const auto run = [&](auto kernel, auto zero) {
    using T = decltype(zero);
    const Packed<T> packed(parameters, trace_kernels().width);
    TraceData<T> data = data_of<T>(x, vectors, vectors, packed, activation);
    data.y = y.mutable_data_ptr<T>();
    data.powers = count;
    data.products = products.mutable_data_ptr<T>();
    trace<T>(data, packed, kernel);
  };
  const TraceKernels& kernels = trace_kernels();
  x.scalar_type() == ScalarType::Float ? run(kernels.powers_float, 0.0f) : run(kernels.powers_double, 0.0);
  return {y, products};
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) {
  m.impl("dense_trace", TORCH_BOX(&fastgen::dense_trace_cpu));
  m.impl("dense_trace_backward", TORCH_BOX(&fastgen::dense_trace_backward_cpu));
  m.impl("dense_powers", TORCH_BOX(&fastgen::dense_powers_cpu));
}
