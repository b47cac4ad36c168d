"""``Sampler.explain``: causality, receptive field, work and memory of a compiled network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fastgen.generate.compile.pipeline import Analysis
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.heads import Composite, Head
from fastgen.generate.heads.composite import among
from fastgen.generate.inspect.keys_seen import keys_seen
from fastgen.generate.inspect.receptive_field import ReceptiveField, receptive_field
from fastgen.generate.inspect.units import counted, sized
from fastgen.generate.ir.instructions import CONSTANT, DENSE, PIXEL, PROLOGUE, ROW, STATE, Instruction
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.key_format import key_bytes

_EXAMPLES = 4
_WHEN = {"prologue": "before the first step", "row": "at the start of a row", "pixel": "at a step"}


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one sample: of the prologue, and the average over the steps of an event."""

    prologue: int
    row: float
    """A step's share of what is computed for a whole row at once."""
    pixel: float
    """What is computed at the step itself."""
    ahead: float
    """The part of ``pixel`` that is summed for several steps at once: taps of a sequence some steps back."""
    parallel: float | None
    """One parallel forward of the module, masked taps and padding included; None for a sampler without its module."""
    steps: int

    @property
    def per_step(self) -> float:
        return self.row + self.pixel

    @property
    def total(self) -> float:
        return self.prologue + self.steps * self.per_step

    @property
    def textbook(self) -> float | None:
        """A whole forward for every step."""
        return None if self.parallel is None else self.parallel * self.steps


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    state: int
    """Of a sample: activations that later steps read."""
    keys: int
    """The part of ``state`` that holds keys and values which only attention reads, in the format that ``kv`` names."""
    contexts: int
    """Of a sample."""
    weights: int
    """The program's float32 weights."""
    packed: int
    """The machine's copy of the weights."""
    constants: int
    """Biases and tables: the program's and the machine's."""

    @property
    def per_sample(self) -> int:
        return self.state + self.contexts

    @property
    def shared(self) -> int:
        return self.weights + self.packed + self.constants


@dataclass(frozen=True)
class Explanation:
    """``Sampler.explain()``: print it, or read its parts."""

    title: str
    input: str
    """How a level becomes the network's input."""
    causality: str
    field: ReceptiveField | None
    """Of the output at the middle of the last row, or at the last step of the length that was analysed."""
    work: Work
    chain: dict[str, int]
    """Instructions that follow one another in each phase: "prologue", "row", "pixel"."""
    instructions: dict[str, int]
    memory: Memory
    rings: list[tuple[int, int]]
    """(positions, channels) of every buffer of the state."""
    context_network: str | None
    """What of the contexts runs in PyTorch at the start; None where nothing does."""
    analysis: Analysis | None = field(repr=False)
    shift: int = field(repr=False)

    @property
    def causal(self) -> bool:
        """True: a network that is not causal has no sampler."""
        return True

    def receptive_field(self, position: tuple[int, ...] | None = None, channel: int = 0) -> ReceptiveField:
        """Returns that of another output.

        Raises:
            ValueError: the position or the channel is outside the event, or the sampler was loaded from a file.
        """
        return receptive_field(self._analysis(), self.shift, position, channel)

    def save_ready_times(self, path: str | Path, position: tuple[int, ...] | None = None, channel: int = 0) -> None:
        """Draws the ready times behind the output that scores ``channel`` of ``position``, as a PNG.

        For an image: the step that draws every pixel of the receptive field, and for every layer the steps at which the
        cells that the output depends on are ready. For a sequence: the same cells, layer by layer, over the steps.

        Raises:
            ValueError: the position or the channel is outside the event, or the sampler was loaded from a file.
            ImportError: matplotlib is missing.
        """
        from fastgen.generate.inspect.ready_times import save_ready_times

        analysis = self._analysis()
        save_ready_times(Path(path), analysis, receptive_field(analysis, self.shift, position, channel))

    def _analysis(self) -> Analysis:
        if self.analysis is None:
            raise ValueError("this sampler was loaded from a file, which keeps the program but not the network's graph")
        return self.analysis

    def __str__(self) -> str:
        rows = [
            ("input", self.input),
            *([("at the start", self.context_network)] if self.context_network else []),
            ("causality", self.causality),
            ("receptive field", _field_text(self.field)),
            ("blind spots", _blind_text(self.field)),
            ("work", _work_text(self.work)),
            ("textbook loop", _textbook_text(self.work)),
            (
                "critical chain",
                ", ".join(f"{n} instructions {_WHEN[kind]}" for kind, n in self.chain.items()) or "none",
            ),
            ("program", ", ".join(f"{n} {name}" for name, n in self.instructions.items())),
            ("memory", _memory_text(self.memory)),
            ("rings", _rings_text(self.rings)),
        ]
        return "\n".join([self.title, *(f"  {name:<16} {text}" for name, text in rows)])


def explain(network: CompiledNetwork) -> Explanation:
    """Explains a sampler from the analysis of its network and from its program.

    A sampler that was loaded from a file has no analysis: its receptive field and the textbook loop's work are unknown.
    """
    program, analysis = network.program, network.compiled.analysis
    shift = network.request.shift
    kinds = {"prologue": PROLOGUE, "row": ROW, "pixel": PIXEL}
    computes = program.computes
    counts = {f"{name} instructions": sum(i.when == when for i in computes) for name, when in kinds.items()}
    waiting = {
        name: {i.level for i in computes if i.when == when and i.body.block == 1} for name, when in kinds.items()
    }
    named = f"order {network.order.rule or repr(network.order.name)}"
    order = "a permutation" if network.order.name == "permutation" else named
    name = "a saved network" if network.module is None else type(network.module).__name__
    event = f"event {network.event_shape}, {order}, {network.steps} steps"
    return Explanation(
        title=f"Sampler of {name}, {event}, machine {network.machine_name!r}",
        input=_input(network.head),
        causality=_causality(network),
        field=None if analysis is None else receptive_field(analysis, shift),
        work=_work(network, program, analysis),
        chain={name: len(levels) for name, levels in waiting.items() if levels},
        instructions={name: count for name, count in counts.items() if count}
        | {"draws": len(program.draws), "operands": len(program.operands)},
        memory=_memory(network, program),
        rings=[(b.positions, b.channels) for b in program.buffers if b.where == STATE],
        context_network=_context_network(network),
        analysis=analysis,
        shift=shift,
    )


def _input(head: Head) -> str:
    if isinstance(head, Composite):
        told = []
        for part, channels, _ in head.runs():
            read = part.reading("float") if part.to_input_name in (None, "index") else part
            told.append(f"in {among(channels)} {_input(read)}")
        return "; ".join(told)
    most = head.levels - 1
    words = {
        "index": f"integers 0 .. {most}",
        "float": f"levels as floats 0 .. {most}",
        "unit": f"level / {most}",
        "symmetric": f"2 * level / {most} - 1",
        "table": f"a table of {head.levels} values",
    }
    return f"{words[head.to_input_name]} (to_input={head.to_input_name!r})" if head.levels else "values as they are"


def _context_network(network: CompiledNetwork) -> str | None:
    contexts, plan = network.compiled.context_network, network.compiled.plan
    if contexts is None:
        return None
    layers = plan.layers() if plan is not None else []
    shown = ", ".join(layers if len(layers) <= _EXAMPLES else [*layers[:_EXAMPLES], "..."])
    kept = ", ".join(f"{positions} x {channels}" for positions, channels in contexts.sizes)
    where = f" of {shown}" if shown else ""
    return (
        f"PyTorch runs {len(contexts.calls)} operators on the context{where}, once a sample; kept as {kept} numbers "
        "(positions x channels)"
    )


def _causality(network: CompiledNetwork) -> str:
    analysis = network.compiled.analysis
    if analysis is None:
        return "causal; checked when the sampler was compiled"
    shown = math.prod(analysis.event_shape)
    beyond = (
        "" if analysis.event_shape == network.event_shape else f", at the analysed length {analysis.event_shape[-1]}"
    )
    return f"causal: none of the {shown} elements' distributions depends on a later element{beyond}"


# ---- numbers


def _work(network: CompiledNetwork, program: Program, analysis: Analysis | None) -> Work:
    sums = {PROLOGUE: 0, ROW: 0, PIXEL: 0}
    ahead = 0
    for instruction in program.computes:
        count = _multiply_adds(program, instruction, network.steps)
        sums[instruction.when] += count
        ahead += count if instruction.body.block > 1 else 0
    contexts = _context_positions(network)
    for instruction in program.attends:
        sums[instruction.when] += _attended(program, instruction, network.steps, contexts)
    parallel = None
    if analysis is not None:
        parallel = _forward_multiply_adds(analysis) * network.order.positions / analysis.order.positions
    row, pixel, ahead = (count / network.steps for count in (sums[ROW], sums[PIXEL], ahead))
    return Work(sums[PROLOGUE], row, pixel, ahead, parallel, network.steps)


def _context_positions(network: CompiledNetwork) -> list[int]:
    """Returns the positions of every context that the program may read, for one like the example."""
    layout, contexts = network.request.layout, network.compiled.context_network
    given = [] if layout is None else [shape[1] for shape in layout.position_major_shapes(1)]
    return given + ([] if contexts is None else [positions for positions, _ in contexts.sizes])


def _attended(program: Program, instruction: Instruction, steps: int, contexts: list[int]) -> int:
    """Counts the multiply-adds of attention over an event: products of queries and keys, and weighed values."""
    body = instruction.body
    depth, width = (program.operands[n].length // body.heads for n in (body.query, body.out))
    return keys_seen(program, instruction, steps, contexts) * body.heads * (depth + width)


def _multiply_adds(program: Program, instruction: Instruction, steps: int) -> int:
    """Counts the multiply-adds of an instruction over an event: sums, without taps outside their boxes, and products
    with constants (depthwise taps)."""
    domain, body = instruction.domain, instruction.body
    loaded, total, end = set(), 0, domain.column1
    if instruction.when == PIXEL and program.steps > steps:  # an endless program
        end = min(end, -(-(steps - domain.delay) // domain.column_stride))
    for operation in program.operations[body.operation0 : body.operation1]:
        if operation.opcode == OPCODE["load"]:
            if program.buffers[program.operands[operation.a].buffer].where == CONSTANT:
                loaded.add(operation.dst)
        elif operation.opcode == OPCODE["mul"] and {operation.a, operation.b} & loaded:
            total += body.lanes * domain.frames * domain.rows * max(0, end - domain.column0)
    for segment in program.segments[body.segment0 : body.segment1]:
        box = program.operands[segment.operand].box
        rows = min(domain.row1, box.row1) - max(domain.row0, box.row0)
        columns = min(end, box.column1) - max(domain.column0, box.column0)
        frames = min(domain.frame1, box.frame1) - max(domain.frame0, box.frame0)
        inputs = segment.length if segment.kind == DENSE else 1
        total += body.parts * body.lanes * inputs * max(0, frames) * max(0, rows) * max(0, columns)
    return total


def _forward_multiply_adds(analysis: Analysis) -> float:
    """Counts those of one sample on the exported graph (which has a batch of two) without computing anything."""
    graph = analysis.exported.graph_module
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    counting = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with FakeTensorMode(allow_non_fake_inputs=True), counting as counter, torch.no_grad():
        graph(*(torch.empty(value.shape, dtype=value.dtype) for value in inputs))
    return counter.get_total_flops() / 4


def _attention_flops(query, key, value, *_, **__) -> int:
    """Counts the operations of attention, which PyTorch does for GPUs only; the arguments are shapes."""
    *lead, queries, depth = query
    return 2 * math.prod(lead) * queries * key[-2] * (depth + value[-1])


def _lstm_flops(x, inputs, states, *_, **__) -> int:
    """Counts the operations of a layer of an LSTM, which PyTorch does not; the arguments are shapes."""
    return 2 * math.prod(x[:-1]) * (math.prod(inputs) + math.prod(states))


_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_flops,
}


def _memory(network: CompiledNetwork, program: Program) -> Memory:
    layout, contexts = network.request.layout, network.compiled.context_network
    leaves, sizes = layout.leaves if layout is not None else [], contexts.sizes if contexts is not None else []
    return Memory(
        state=4 * network.machine.state_stride,
        keys=key_bytes(program),
        contexts=4 * (sum(leaf[0].numel() for leaf in leaves) + sum(p * c for p, c in sizes)),
        weights=program.weights.nbytes,
        packed=network.machine.memory(),
        constants=2 * program.constants.nbytes,
    )


# ---- words


def _field_text(found: ReceptiveField | None) -> str:
    if found is None:
        return "unknown: the sampler was loaded from a file"
    words = {"steps": "{} steps back", "frames": "{} frames back", "above": "{} rows above", "below": "{} rows below"}
    extents = ", ".join(words.get(where, "{} columns " + where).format(n) for where, n in found.extents.items())
    seen, earlier = int(found.seen.sum()), int(found.earlier.sum())
    return f"of the output at {_at(found.position)}: {extents or 'nothing'}; {seen} of the {earlier} earlier elements"


def _blind_text(found: ReceptiveField | None) -> str:
    if found is None:
        return "unknown: the sampler was loaded from a file"
    count = int(found.blind.sum())
    if not count:
        return "none"
    together = bool((found.blind == found.blind[:1]).all())
    indices = [tuple(int(i) for i in index) for index in np.argwhere(found.blind[:1] if together else found.blind)]
    at = [_at(i[1:]) + ("" if together else f" channel {i[0]}") for i in reversed(indices)]
    examples = ", ".join(at[:_EXAMPLES] + (["..."] if count > _EXAMPLES else []))
    return f"{count} earlier elements within its reach are not seen: {examples}"


def _at(position: tuple[int, ...]) -> str:
    return str(position[0]) if len(position) == 1 else str(tuple(position))


def _work_text(work: Work) -> str:
    parts = f"{counted(work.row)} for whole rows, {counted(work.pixel)} at the step" if work.row else "all at the step"
    if work.ahead:
        parts = f"{counted(work.ahead)} for several steps at once, {counted(work.pixel - work.ahead)} at the step"
    before = f"; {counted(work.prologue)} before the first step" if work.prologue else ""
    return f"{counted(work.per_step)} multiply-adds a step ({parts}){before}; {counted(work.total)} for a sample"


def _textbook_text(work: Work) -> str:
    if work.textbook is None:
        return "unknown: the sampler was loaded from a file"
    times = f", {work.textbook / work.total:.0f} times the work" if work.total else ""
    return f"{counted(work.parallel)} multiply-adds a step, {counted(work.textbook)} for a sample{times}"


def _memory_text(memory: Memory) -> str:
    contexts = f" and {sized(memory.contexts)} of contexts" if memory.contexts else ""
    keys = f" ({sized(memory.keys)} keys and values)" if memory.keys else ""
    return (
        f"{sized(memory.state)} of state{keys}{contexts} a sample; {sized(memory.shared)} once "
        f"(weights {sized(memory.weights)}, packed {sized(memory.packed)}, constants {sized(memory.constants)})"
    )


def _rings_text(rings: list[tuple[int, int]]) -> str:
    values, longest = sum(p * c for p, c in rings), max((positions for positions, _ in rings), default=0)
    return f"{len(rings)} buffers of {values} values a sample; the longest keeps {longest} positions"
