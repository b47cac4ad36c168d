#include "cpu/machine/bindings/heads_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fastgen {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

constexpr std::pair<const char*, HeadKind> kHeadKinds[] = {
    {"bernoulli", HeadKind::bernoulli},     {"bivariate_gaussian_mixture", HeadKind::bivariate_gaussian_mixture},
    {"categorical", HeadKind::categorical}, {"composite", HeadKind::composite},
    {"custom", HeadKind::custom},           {"discretized_logistic_mixture", HeadKind::discretized_logistic_mixture},
    {"gaussian", HeadKind::gaussian},       {"logistic_mixture", HeadKind::logistic_mixture},
};

HeadKind head_kind(const std::string& kind) {
  std::string names;
  for (const auto& [name, known] : kHeadKinds) {
    if (kind == name) return known;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw py::value_error("head kind must be one of " + names + ", got '" + kind + "'");
}

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

// One position's draw for a whole batch, as the machine does it.
py::tuple draw_batch(const py::dict& head, const Array<float>& parameters, std::uint64_t seed, const Array<std::int64_t>& samples,
                     std::uint64_t position, int channel0, const std::optional<Array<bool>>& known, const Array<float>& levels,
                     double temperature, int top_k, double top_p, bool scored) {
  const HeadSpec spec = head_spec(head);
  require(parameters.ndim() == 2 && levels.ndim() == 2 && samples.ndim() == 1,
          "parameters and levels must have 2 dimensions, samples 1");
  const py::ssize_t batch = parameters.shape(0), channels = levels.shape(1);
  require(levels.shape(0) == batch && samples.shape(0) == batch, "parameters, levels and samples differ in batch size");
  require(!known || (known->ndim() == 2 && known->shape(0) == batch && known->shape(1) == channels),
          "known must have the shape of levels");
  const int count = parameter_count(spec, static_cast<int>(channels));
  require(count > 0 && parameters.shape(1) == count, "the number of parameters does not fit the head and the channels");

  py::array_t<float> drawn({batch, channels}), inputs({batch, channels});
  py::array_t<double> log_prob(batch), proposal_log_prob(batch);
  std::copy_n(levels.data(), batch * channels, drawn.mutable_data());
  std::vector<double> scratch(draw_scratch_size(spec, static_cast<int>(channels)));
  for (py::ssize_t b = 0; b < batch; ++b) {
    log_prob.mutable_at(b) = proposal_log_prob.mutable_at(b) = 0;
    DrawArguments arguments;
    arguments.parameters = parameters.data(b, 0);
    arguments.seed = seed;
    arguments.sample = static_cast<std::uint64_t>(samples.at(b));
    arguments.position = position;
    arguments.channel0 = channel0;
    arguments.channels = static_cast<int>(channels);
    arguments.levels = drawn.mutable_data(b, 0);
    arguments.known = known ? reinterpret_cast<const std::uint8_t*>(known->data(b, 0)) : nullptr;
    arguments.inputs = inputs.mutable_data(b, 0);
    arguments.temperature = temperature;
    arguments.top_k = top_k;
    arguments.top_p = top_p;
    arguments.log_prob = scored ? log_prob.mutable_data(b) : nullptr;
    arguments.proposal_log_prob = scored ? proposal_log_prob.mutable_data(b) : nullptr;
    const DrawStatus status = draw(spec, arguments, scratch.data());
    if (status != DrawStatus::ok) {
      throw py::value_error(draw_status_text(status) + std::string(", at position ") + std::to_string(position));
    }
  }
  return py::make_tuple(drawn, inputs, log_prob, proposal_log_prob);
}

}  // namespace

HeadSpec head_spec(const py::dict& spec) {
  HeadSpec result;
  result.kind = head_kind(py::cast<std::string>(spec["kind"]));
  result.levels = py::cast<int>(spec["levels"]);
  result.mixtures = py::cast<int>(spec["mixtures"]);
  result.coupled_channels = py::cast<int>(spec["coupled_channels"]);
  result.feed_raw = py::cast<bool>(spec["feed_raw"]);
  result.min_log_scale = py::cast<double>(spec["min_log_scale"]);
  const auto inputs = py::cast<Array<float>>(spec["inputs"]);
  result.inputs.assign(inputs.data(), inputs.data() + inputs.size());
  if (spec.contains("parameters")) result.parameters = py::cast<int>(spec["parameters"]);
  if (spec.contains("parts")) {
    for (const py::handle& part : spec["parts"]) result.parts.push_back(head_spec(py::cast<py::dict>(part)));
  }
  const bool discrete = result.kind == HeadKind::bernoulli || result.kind == HeadKind::categorical ||
                        result.kind == HeadKind::discretized_logistic_mixture;
  const bool either = result.kind == HeadKind::custom;
  require(result.levels >= 2 ? discrete || either : result.levels == 0 && !discrete,
          "a head has 2 levels or more, a continuous one has 0");
  require(result.kind == HeadKind::custom ? result.parameters >= 1 : result.parameters == 0,
          "parameters must be 1 or more for a custom head, 0 for any other");
  require(result.mixtures >= 1, "mixtures must be 1 or more");
  require(result.inputs.size() == static_cast<std::size_t>(result.levels), "inputs must have one value for each level");
  int channels = 0;
  for (const HeadSpec& part : result.parts) {
    require(part.coupled_channels >= 1 && part.parts.empty() && part.kind != HeadKind::custom && !part.feed_raw,
            "parts must say how many channels they draw, and draw them in C++, without raw values");
    channels += part.coupled_channels;
  }
  switch (result.kind) {
    case HeadKind::composite:
      require(channels >= 2 && result.coupled_channels == channels, "coupled_channels must be the channels of all parts");
      break;
    case HeadKind::custom: require(result.coupled_channels >= 1, "coupled_channels must be 1 or more"); break;
    case HeadKind::bivariate_gaussian_mixture: require(result.coupled_channels == 2, "coupled_channels must be 2"); break;
    default:
      require(result.coupled_channels == 0 || result.coupled_channels == 1 || result.coupled_channels == 3,
              "coupled_channels must be 0, 1 or 3");
  }
  require(result.parts.empty() || result.kind == HeadKind::composite, "only a composite head has parts");
  return result;
}

void bind_heads(py::module_& module) {
  module.def("draw", &draw_batch, py::arg("head"), py::arg("parameters"), py::arg("seed"), py::arg("samples"),
             py::arg("position"), py::arg("channel0"), py::arg("known").none(true), py::arg("levels"),
             py::arg("temperature") = 1.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("scored") = true,
             "Draw one position of a batch: (levels [B, C], inputs [B, C], log_prob [B], proposal_log_prob [B]).");
}

}  // namespace fastgen
