#include "cpu/machine/bindings/machine_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/machine/probes/roofline.h"
#include "cpu/machine/bindings/heads_bindings.h"
#include "cpu/machine/exec/machine.h"
#include "cpu/machine/bindings/without_gil.h"

namespace py = pybind11;

namespace fastgen {
namespace {

// The rows of a table of int64 as records of the same fields.
template <typename Record>
std::vector<Record> records(const py::dict& tables, const char* name) {
  constexpr py::ssize_t fields = sizeof(Record) / sizeof(std::int64_t);
  const auto table = py::cast<py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>>(tables[name]);
  FASTGEN_CHECK(table.ndim() == 2 && table.shape(1) == fields, "tables['", name, "'] must have ", fields, " columns");
  std::vector<Record> rows(static_cast<std::size_t>(table.shape(0)));
  if (!rows.empty()) std::memcpy(rows.data(), table.data(), rows.size() * sizeof(Record));
  return rows;
}

std::vector<float> numbers(const py::object& values) {
  const auto array = py::cast<py::array_t<float, py::array::c_style | py::array::forcecast>>(values);
  return std::vector<float>(array.data(), array.data() + array.size());
}

Program program_of(const py::dict& tables) {
  Program program;
  const auto header = py::cast<py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>>(tables["header"]);
  FASTGEN_CHECK(header.size() == 4, "tables['header'] must have 4 numbers");
  program.steps = header.at(0);
  program.row_length = header.at(1);
  program.state_size = header.at(2);
  program.lookahead = header.at(3);
  program.buffers = records<Buffer>(tables, "buffers");
  program.operands = records<Operand>(tables, "operands");
  program.segments = records<Segment>(tables, "segments");
  program.weight_table = records<Weight>(tables, "weight_table");
  program.instructions = instructions_of(records<Header>(tables, "instructions"), records<Compute>(tables, "computes"),
                                         records<Draw>(tables, "draws"), records<Attend>(tables, "attends"));
  program.key_sets = records<KeySet>(tables, "key_sets");
  program.key_runs = records<KeyRun>(tables, "key_runs");
  program.score_operands = records<ScoreOperand>(tables, "score_operands");
  const std::vector<OperationRow> rows = records<OperationRow>(tables, "operations");
  const auto xy = py::cast<py::array_t<double, py::array::c_style | py::array::forcecast>>(tables["operation_numbers"]);
  FASTGEN_CHECK(xy.ndim() == 2 && xy.shape(0) == static_cast<py::ssize_t>(rows.size()) && xy.shape(1) == 2,
                "tables['operation_numbers'] must have 2 columns and a row for each operation");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const py::ssize_t row = static_cast<py::ssize_t>(i);
    program.operations.push_back({rows[i], static_cast<float>(xy.at(row, 0)), static_cast<float>(xy.at(row, 1))});
  }
  program.constants = numbers(tables["constants"]);
  program.weights_size = py::cast<py::array>(tables["weights"]).size();
  return program;
}

Format format_of(const std::string& name) {
  if (name == "float32") return Format::float32;
  if (name == "bfloat16") return Format::bfloat16;
  FASTGEN_CHECK(name == "int8", "weights must be one of float32, bfloat16, int8, got '", name, "'");
  return Format::int8;
}

// Checks an array that C++ reads or writes in place; a shape of -1 is free.
template <typename T>
T* in_place(const py::object& object, const char* name, const std::vector<py::ssize_t>& shape, bool written) {
  FASTGEN_CHECK(py::isinstance<py::array>(object), name, " must be an array");
  py::array array = py::reinterpret_borrow<py::array>(object);
  FASTGEN_CHECK(py::isinstance<py::array_t<T>>(array), name, " has dtype ", std::string(py::str(array.dtype())), "; needed is ",
                std::string(py::str(py::dtype::of<T>())));
  FASTGEN_CHECK(array.flags() & py::array::c_style, name, " must be contiguous");
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = shape[i] < 0 || array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  if (!fits) {
    std::string wanted;
    for (py::ssize_t size : shape)
      wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? std::string("any") : std::to_string(size));
    FASTGEN_CHECK(false, name, " has shape ", std::string(py::str(array.attr("shape"))), "; needed is (", wanted, ")");
  }
  FASTGEN_CHECK(!written || array.writeable(), name, " is read-only");
  return static_cast<T*>(const_cast<void*>(array.data()));
}

template <typename T>
T* in_place_or_null(const py::object& object, const char* name, const std::vector<py::ssize_t>& shape, bool written) {
  return object.is_none() ? nullptr : in_place<T>(object, name, shape, written);
}

// The function by which a custom head draws a position, while its holder is there.
std::function<void(const PositionDraw&)> python_draw(py::handle function, std::int64_t batch) {
  return [function, batch](const PositionDraw& draw) {
    with_gil([&] {
      const py::array_t<float> parameters({batch, draw.count}, draw.parameters);
      const py::object drawn = function(parameters, draw.position, draw.channel0, draw.channels);
      const float* inputs = in_place<float>(drawn, "the drawn inputs", {batch, draw.channels}, false);
      std::copy_n(inputs, batch * draw.channels, draw.inputs);
    });
  };
}

// The fields of fastgen.generate.machines.batch.GenerationBatch, checked against the program. Arrays, not tensors.
GenerationBatch run_of(const Machine& machine, const py::object& fields) {
  const Program& program = machine.program();
  GenerationBatch run;
  const py::object state = fields.attr("state"), levels = fields.attr("levels");
  run.state = in_place<float>(state, "state", {-1, -1}, true);
  run.batch = py::cast<py::array>(state).shape(0);
  run.state_stride = py::cast<py::array>(state).shape(1);
  FASTGEN_CHECK(run.state_stride >= program.state_size, "state has ", run.state_stride, " floats a sample; the program needs ",
                program.state_size);
  run.levels = in_place<float>(levels, "levels", {run.batch, -1, -1}, true);
  run.channels = py::cast<py::array>(levels).shape(1);
  run.positions = py::cast<py::array>(levels).shape(2);
  each_of_kind<Draw>(program, [&](const Instruction&, const Draw& draw, std::size_t) {
    FASTGEN_CHECK(draw.channel0 + draw.channels <= run.channels, "levels has ", run.channels, " channels; the program draws ",
                  draw.channel0 + draw.channels);
  });
  run.samples = in_place<std::int64_t>(fields.attr("samples"), "samples", {run.batch}, false);
  run.known = reinterpret_cast<const std::uint8_t*>(
      in_place_or_null<bool>(fields.attr("known"), "known", {run.batch, run.channels, run.positions}, false));
  run.log_prob = in_place_or_null<double>(fields.attr("log_prob"), "log_prob", {run.batch}, true);
  run.proposal_log_prob = in_place_or_null<double>(fields.attr("proposal_log_prob"), "proposal_log_prob", {run.batch}, true);
  const py::object parameters = fields.attr("parameters");
  run.parameters = in_place_or_null<float>(parameters, "parameters", {run.batch, run.positions, -1}, true);
  if (run.parameters) {
    run.position_parameters = py::cast<py::array>(parameters).shape(2);
    each_of_kind<Draw>(program, [&](const Instruction&, const Draw& draw, std::size_t) {
      std::int64_t read = 0;
      for (std::int64_t i = draw.parameter0; i < draw.parameter1; ++i) read += program.operands[i].length;
      FASTGEN_CHECK(draw.channel0 * (read / draw.channels) + read <= run.position_parameters, "parameters has ",
                    run.position_parameters, " values a position; the program reads more");
    });
  }
  for (const py::handle& context : fields.attr("contexts")) {
    const std::string name = text("contexts[", run.contexts.size(), "]");
    const py::object array = py::reinterpret_borrow<py::object>(context);
    const float* data = in_place<float>(array, name.c_str(), {run.batch, -1, -1}, false);
    run.contexts.push_back({data, py::cast<py::array>(array).shape(1), py::cast<py::array>(array).shape(2)});
  }
  for (const Buffer& buffer : program.buffers) {
    if (buffer.where != kContext) continue;
    const std::size_t number = static_cast<std::size_t>(buffer.offset);
    FASTGEN_CHECK(number < run.contexts.size(), "contexts has ", run.contexts.size(), " tensors; the program reads number ",
                  number);
    FASTGEN_CHECK(run.contexts[number].channels == buffer.channels, "contexts[", number, "] has ", run.contexts[number].channels,
                  " channels; the program reads ", buffer.channels);
  }
  run.seed = py::cast<std::uint64_t>(fields.attr("seed"));
  run.position0 = py::cast<std::int64_t>(fields.attr("position0"));
  run.temperature = py::cast<double>(fields.attr("temperature"));
  run.top_k = py::cast<int>(fields.attr("top_k"));
  run.top_p = py::cast<double>(fields.attr("top_p"));
  run.threads = py::cast<int>(fields.attr("threads"));
  run.ahead = py::cast<bool>(fields.attr("ahead"));
  if (machine.head().kind == HeadKind::custom) run.draw_position = python_draw(fields.attr("draw_position").ptr(), run.batch);
  constexpr std::int64_t kFarther = std::int64_t{1} << 52;
  FASTGEN_CHECK(run.position0 >= 0 && run.position0 < kFarther, "position0 is ", run.position0, "; allowed are 0 .. ",
                kFarther - 1);
  FASTGEN_CHECK(run.temperature > 0.0 && std::isfinite(run.temperature), "temperature must be above 0, got ", run.temperature);
  FASTGEN_CHECK(run.top_k >= 0, "top_k must be 0 (off) or more, got ", run.top_k);
  FASTGEN_CHECK(run.top_p > 0.0 && run.top_p <= 1.0, "top_p must be above 0 and at most 1, got ", run.top_p);
  FASTGEN_CHECK(run.threads >= 1 && run.threads <= 1024, "threads is ", run.threads, "; allowed are 1 .. 1024");
  return run;
}

// Runs a call in its turn. The Python run is told how far it came, and that nobody else may go on before that.
template <typename Call>
void take_turn(Machine& machine, const py::object& owner, std::int64_t step, Call call) {
  Interrupt interrupt(signals());
  if (py::cast<bool>(owner.attr("unfinished"))) owner.attr("check_between_steps")();
  Progress progress{step, false};
  const auto tell = [&] {
    owner.attr("step") = progress.done;
    owner.attr("unfinished") = progress.within;
  };
  owner.attr("unfinished") = true;
  try {
    without_gil([&] {
      const Team::Turn turn(machine.team(), interrupt);
      if (turn.held()) call(interrupt, progress);
    });
  } catch (...) {
    tell();
    throw;
  }
  tell();
}

using Steps = void (Machine::*)(const GenerationBatch&, std::int64_t, Interrupt&, Progress&);

void run_steps(Machine& machine, Steps steps, const py::object& fields, const py::object& owner, std::int64_t t0,
               std::int64_t t1) {
  const GenerationBatch run = run_of(machine, fields);
  FASTGEN_CHECK(0 <= t0 && t0 <= t1 && t1 <= machine.program().steps, "steps must be within 0 .. ", machine.program().steps,
                ", got ", t0, " .. ", t1);
  FASTGEN_CHECK(py::cast<std::int64_t>(owner.attr("step")) == t0, "steps are ", t0, " .. ", t1, "; the run stands before step ",
                py::cast<std::int64_t>(owner.attr("step")));
  take_turn(machine, owner, t0,
            [&](Interrupt& interrupt, Progress& progress) { (machine.*steps)(run, t1, interrupt, progress); });
}

}  // namespace

void bind_machine(py::module_& module) {
  py::class_<Machine>(module, "Machine", "Runs a step program; fastgen.generate.machines.cpu.CpuMachine is the way in.")
      .def(py::init([](const py::dict& tables, const py::dict& head, const std::string& weights) {
             return std::make_unique<Machine>(program_of(tables), numbers(tables["weights"]), head_spec(head),
                                              format_of(weights));
           }),
           py::arg("tables"), py::arg("head"), py::arg("weights"))
      .def(
          "prologue",
          [](Machine& machine, const py::object& arrays, const py::object& owner) {
            const GenerationBatch run = run_of(machine, arrays);
            take_turn(machine, owner, py::cast<std::int64_t>(owner.attr("step")),
                      [&](Interrupt& interrupt, Progress& progress) { machine.prologue(run, interrupt, progress); });
          },
          py::arg("arrays"), py::arg("run"))
      .def(
          "advance",
          [](Machine& machine, const py::object& arrays, const py::object& run, std::int64_t t0, std::int64_t t1) {
            run_steps(machine, &Machine::advance, arrays, run, t0, t1);
          },
          py::arg("arrays"), py::arg("run"), py::arg("t0"), py::arg("t1"))
      .def(
          "absorb",
          [](Machine& machine, const py::object& arrays, const py::object& run, std::int64_t t0, std::int64_t t1) {
            run_steps(machine, &Machine::absorb, arrays, run, t0, t1);
          },
          py::arg("arrays"), py::arg("run"), py::arg("t0"), py::arg("t1"))
      .def(
          "refresh",
          [](Machine& machine, const py::object& weights, const py::object& constants) {
            const std::vector<float> new_weights = numbers(weights), new_constants = numbers(constants);
            Interrupt interrupt(signals());
            std::optional<Team::Turn> turn;
            without_gil([&] { turn.emplace(machine.team(), interrupt); });
            machine.refresh(new_weights, new_constants);  // with the lock: a process that forks here finds all or nothing
          },
          py::arg("weights"), py::arg("constants"))
      .def_property_readonly("isa", &Machine::isa)
      .def_property_readonly("packed_bytes", &Machine::packed_bytes);

  module.def("isa", [] { return std::string(kernels().isa); }, "The instruction set in use (FASTGEN_ISA forces one).");
  module.def(
      "isas", [] { return std::vector<std::string>(kIsaNames, kIsaNames + static_cast<int>(widest_isa()) + 1); },
      "The instruction sets that this build and this processor run.");
  module.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("threads") = 1, py::arg("repeats") = 20,
             py::call_guard<py::gil_scoped_release>(),
             "Median rate, in GB/s, at which `threads` threads read `bytes` bytes, each its share, again and again.");
  module.def("fma_peak", &fma_peak, py::arg("threads") = 1, py::call_guard<py::gil_scoped_release>(),
             "GFLOP/s of float32 multiply-adds from registers on `threads` threads.");
}

}  // namespace fastgen
