"""From a module to the step program of any length."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from fastgen.generate.compile.inputs import with_input
from fastgen.generate.compile.lengths import calls_of, departure
from fastgen.generate.compile.pipeline import Analysis, analyse
from fastgen.generate.compile.tap_distances import distances_by_kind
from fastgen.generate.context_network import ContextNetwork
from fastgen.generate.errors import CompileError, NotCausalError
from fastgen.generate.frontend.adapted import Adapted
from fastgen.generate.frontend.context_plan import ContextPlan
from fastgen.generate.frontend.export import Exported, export, state_of
from fastgen.generate.heads import Head
from fastgen.generate.ir.instructions import UNBOUNDED, Compute, Draw
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import STREAM, Program
from fastgen.generate.request import CompileRequest

_GRAIN = 64
_GRAIN_OF_LOOPS = 8
"""Steps between the two lengths of a network that loops over positions, whose every step takes its time to export."""
_BEYOND, _BEYOND_LOOPS = 40, 16
"""Steps that the shorter length has at least, besides twice those that the operators reach back."""
_LONGEST = 1 << 16
_FAR = 1 << 16
"""Steps up to which, at least, a network must be seen to stay the same to have a program without an end."""
_MOST_STEPS = 1 << 40
"""Of a program without an end; several steps may draw one position."""
_LOOPED = 7
"""Periods beyond the longer analysis up to which a network with a loop over positions is followed."""


@dataclass
class Compiled:
    """A program, and what it takes to fill it with new weights."""

    program: Program
    folded: list[tuple[str, Callable]]
    exported: Exported | None
    analysis: Analysis | None
    context_network: ContextNetwork | None = None
    """What of the contexts runs in PyTorch at the start."""
    plan: ContextPlan | None = None
    """Where the context network is taken from: the plan at the full event shape."""
    analysed: int = 0
    """Steps of the longer analysis, for a program of any length."""
    reach: int = 0
    """Steps that the operators reach back, one after the other, for a program of any length."""
    ends: str = ""
    """Why the program of a sequence has an end, where it has one."""


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pauses the search for cyclic garbage, which costs 5-10 % where so many objects are made that live on."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@collection_paused()
def compile_module(request: CompileRequest) -> Compiled:
    """Analyses a network and returns the program of its event.

    Images, features and short sequences are analysed at their shape. A long sequence is analysed at two lengths past
    the reach of its operators (of all of them together, where one finds nothing but padding), and the program follows
    from the two; it has no end unless a context has frames, or channels are delayed and end one after the other.

    Raises:
        CompileError: the network has no program; the message says where and why.
    """
    ends = ""
    if (request.order.is_sequence or request.order.name == "delayed") and not request.prefix:
        compiled, ends = _of_two_lengths(request)
        if compiled is not None:
            return compiled
        steps = request.event_shape[-1]
        if steps > _LONGEST:
            raise CompileError(
                f"no program of any length was found below {_LONGEST} steps: {ends}. Give an event_shape of at most "
                f"{_LONGEST} steps"
            )
    analysis = analyse(request, None if request.layout is None else request.layout.example(2))
    return replace(_compiled(analysis, analysis.lowered.program, analysis.plan), ends=ends)


def _of_two_lengths(request: CompileRequest) -> tuple[Compiled | None, str]:
    """Returns the program that follows from two short lengths, or None and why there is none."""
    steps, layout = request.event_shape[-1], request.layout
    frames = layout.frames() if layout is not None else []
    loops, ending = not frames and _has_loops(request), _has_an_end(request)
    grain = math.lcm(_GRAIN_OF_LOOPS if loops else _GRAIN, *[steps // math.gcd(steps, count) for count in frames])
    rest = steps % grain if ending else 0
    beyond = _BEYOND_LOOPS if loops else _BEYOND

    def past(reach: int) -> int:
        return -(-(2 * reach + beyond) // grain) * grain + rest

    length, ends, tried = past(_reach(request.module)), "", False
    while length + grain < steps or not (ending or tried):
        ends, short, long = _departs(request, length + grain, grain, loops), None, None
        if not ends:
            try:
                short, long = _analysis_at(request, length), _analysis_at(request, length + grain)
            except CompileError as error:
                if isinstance(error, NotCausalError) and length < steps:
                    raise
                ends = f"at {length} steps, {error}"
        if short is not None and long is not None:
            by_kind = distances_by_kind(short.exported, long.exported, grain)
            bridged = [distance for listed in by_kind.values() for distance in listed]
            needed = past(sum(bridged) if short.traced.graph.padding_only else max(bridged, default=1))
            if needed > length:
                length = needed
                continue
            endless = min(STREAM, _MOST_STEPS // request.order.steps_per_position)
            times = ((steps if ending else endless) - length) // grain
            programs = short.lowered.program, long.lowered.program
            program = extrapolate(*programs, times)
            plan = _whole_plan(request, short, long, times)
            alike = program is not None and (plan is None or plan.results == long.plan.results)
            ends = f"analyses at {length} and {length + grain} steps do not agree"
            if alike and (ending or _free_of_the_end(*programs)):
                reach = max(map(sum, by_kind.values()), default=1)
                return replace(_compiled(long, program, plan), analysed=length + grain, reach=reach), ""
        tried = True
        length += (1 if loops else 3) * (length - rest)
    return None, ends


def _has_an_end(request: CompileRequest) -> bool:
    """Whether the program ends with the event: with a context's frames, or with the last of delayed channels."""
    framed = request.layout is not None and bool(request.layout.frames())
    return framed or request.order.rule is not None


def _context_at(request: CompileRequest, length: int):
    """Returns two rows of the example context for a length; None where its frames do not divide into it."""
    return request.layout.example(2, length, request.event_shape[-1])


def _analysis_at(request: CompileRequest, length: int) -> Analysis | None:
    context = None if request.layout is None else _context_at(request, length)
    return None if request.layout is not None and context is None else analyse(request.at(length), context)


def _shape_at(request: CompileRequest, length: int) -> tuple[int, ...]:
    return 2, *request.event_shape[:-1], length


def _inputs(request: CompileRequest, head: Head, length: int, context) -> tuple:
    levels = torch.zeros(_shape_at(request, length), dtype=torch.int64 if head.levels else torch.float32)
    return head.to_input(levels), context


def _has_loops(request: CompileRequest) -> bool:
    """Whether the network calls its operators again for every position: more often for more of them."""
    counts = []
    for length in (2 * _GRAIN_OF_LOOPS, 3 * _GRAIN_OF_LOOPS):
        context = None if request.layout is None else _context_at(request, length)
        try:
            head = with_input(request.head, request.network, _shape_at(request, length), context)
        except CompileError:
            return False
        calls = calls_of(request.network, _inputs(request, head, length, context))
        counts.append(0 if calls is None else len(calls.calls))
    return counts[0] < counts[1]


def _departs(request: CompileRequest, known: int, grain: int, loops: bool) -> str:
    """Returns why the network is not at the full length, and far beyond it, what it is at ``known`` steps; or ""."""
    steps, network = request.event_shape[-1], request.network
    ending = _has_an_end(request)
    periods = (steps - known) // grain if ending else prime((max(steps, _FAR) - known) // grain)
    contexts = []
    for n in (known, known + periods * grain):
        contexts.append(None if request.layout is None else _context_at(request, n))
        if request.layout is not None and contexts[-1] is None:
            return f"the frames of the context do not divide into {n} steps"
    try:
        head = with_input(request.head, network, _shape_at(request, known), contexts[0])
    except CompileError as error:
        return f"at {known} steps, {error}"
    calls = calls_of(network, _inputs(request, head, known, contexts[0]))
    if loops and periods > _LOOPED:
        periods = _LOOPED
        contexts[1] = None if request.layout is None else _context_at(request, known + periods * grain)
    found = departure(network, calls, _inputs(request, head, known + periods * grain, contexts[1]), periods)
    return found and f"at {known + periods * grain} steps the network is another than at {known}: {found}"


def _compiled(analysis: Analysis, program: Program, plan: ContextPlan | None) -> Compiled:
    network = None if plan is None else plan.network()
    return Compiled(program, analysis.traced.folded, analysis.exported, analysis, network, plan)


def _whole_plan(request: CompileRequest, short: Analysis, long: Analysis, times: int) -> ContextPlan | None:
    """Returns the plan of two lengths at the full event shape; it has no results where the three do not agree."""
    if short.plan is None or not (short.plan.results or long.plan.results):
        return short.plan
    context, head = request.layout.example(2), long.request.head
    levels = torch.zeros((2, *request.event_shape), dtype=torch.int64 if head.levels else torch.float32)
    exported = export(request.network, head.to_input(levels), context)
    plan = ContextPlan(exported, state_of(exported, request.network), context, ())
    results = short.plan.results
    if results == long.plan.results and all(_follows(r.name, short.plan, long.plan, plan, times) for r in results):
        plan.results = results
    return plan


def _follows(name: str, short: ContextPlan, long: ContextPlan, whole: ContextPlan, times: int) -> bool:
    """Whether a value is computed alike at three lengths and its sizes follow from the shorter two."""
    nodes = [plan.still.get(name) for plan in (short, long, whole)]
    if None in nodes or len({node.target for node in nodes}) > 1:
        return False
    a, b, c = (list(node.meta["val"].shape) for node in nodes)
    return [m + (n - m) * times for m, n in zip(a, b, strict=True)] == c


def _reach(module: nn.Module) -> int:
    """Returns the longest distance between the taps of one layer, as its attributes say: the first guess."""
    reach = 1
    for layer in module.modules():
        size, dilation = getattr(layer, "kernel_size", None), getattr(layer, "dilation", None)
        if size is not None and dilation is not None:
            size, dilation = (v if isinstance(v, tuple) else (v,) for v in (size, dilation))
            reach = max(reach, *[d * (k - 1) for k, d in zip(size, dilation, strict=False) if isinstance(k, int)])
    return reach


def extrapolate(short: Program, long: Program, times: int) -> Program | None:
    """Returns the program ``times`` as far beyond ``short`` as ``long`` is; None where they differ otherwise."""
    first, second = short.to_tensors(), long.to_tensors()
    tensors = {}
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape or (a.dtype != torch.int64 and not torch.equal(a, b)):
            return None
        tensors[name] = a + (b - a) * times if a.dtype == torch.int64 else a
    program = Program.from_tensors(tensors)
    if program.state_size != long.state_size:
        return None
    for operand in program.operands:
        for end in fields(operand.box):
            setattr(operand.box, end.name, min(getattr(operand.box, end.name), UNBOUNDED))
    return program


def _free_of_the_end(short: Program, long: Program) -> bool:
    """Whether nothing in two programs of two lengths lies at a distance from the end: only last cells grow with it."""
    pairs = list(zip(short.instructions, long.instructions, strict=True))
    boxes = [(a.domain, b.domain) for a, b in pairs]
    boxes += [(a.box, b.box) for a, b in zip(short.operands, long.operands, strict=True)]
    if any((a.row0, a.column0) != (b.row0, b.column0) for a, b in boxes):
        return False
    for a, b in pairs:
        for number in _operands(short, a.body):
            ends = short.operands[number].box.column1, long.operands[number].box.column1
            if ends[0] != ends[1] and (ends[0] < a.domain.column1 or ends[1] < b.domain.column1):
                return False
    return True


def _operands(program: Program, body: Compute | Draw) -> list[int]:
    if isinstance(body, Draw):
        return [*range(body.parameter0, body.parameter1), *range(body.input0, body.input1)]
    read = [segment.operand for segment in program.segments[body.segment0 : body.segment1]]
    for operation in program.operations[body.operation0 : body.operation1]:
        read += [operation.a] * (operation.opcode == OPCODE["load"]) + [operation.b] * (
            operation.opcode == OPCODE["store"]
        )
    return read + [body.accumulator] * (body.accumulator >= 0)


def prime(least: int) -> int:
    """Returns the smallest prime that is not below ``least``."""
    least = max(least, 2)
    while any(least % n == 0 for n in range(2, math.isqrt(least) + 1)):
        least += 1
    return least


def refreshed(compiled: Compiled, network: Adapted) -> tuple[Tensor, Tensor]:
    """Returns the program's weights and constants from the network's parameters as they are now.

    Raises:
        CompileError: what the analysis relied on has changed: weights that were zero, or constants that are moved
            about.
    """
    graph = compiled.analysis.traced.graph
    constants = dict(state_of(compiled.exported, network))
    for name, evaluate in compiled.folded:
        constants[name] = evaluate(constants)
    for where, recipe, holds in graph.assumptions:
        if not holds(recipe.function(*[constants[s] for s in recipe.sources])):
            raise CompileError(
                f"weights that were zero are not any more, or a constant changed, at {where}; compile a new sampler"
            )
    if compiled.context_network is not None:
        plan = copy.copy(compiled.plan)  # which copies of the sampler share
        plan.state = state_of(plan.exported, network)
        compiled.context_network = plan.network()
    return compiled.analysis.lowered.fill(constants)
