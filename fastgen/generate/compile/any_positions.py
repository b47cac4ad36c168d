"""Attention to contexts of any number of positions: what follows from two numbers of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastgen.generate.compile.any_length import Compiled
from fastgen.generate.compile.pipeline import Analysis, analyse
from fastgen.generate.context_network import Call, ContextNetwork, Extent
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.context_plan import ContextPlan, call_of
from fastgen.generate.frontend.export import export, state_of
from fastgen.generate.ir.instructions import CONTEXT, UNBOUNDED, Attend, KeyRun
from fastgen.generate.ir.program import Program
from fastgen.generate.request import CompileRequest

_FURTHER, _CHECKED = 3, 8
"""Positions of the second analysis beyond the example's, and those at which the calls that follow are compared."""


def with_any_positions(compiled: Compiled) -> Compiled:
    """Returns what was compiled for contexts of any number of positions, where its program attends to a context.

    The network is analysed a second time, with a few more positions. The programs must be the same but for the last key
    that is seen, and so must be what PyTorch runs of the context but for integers that grow with the positions. The
    request of its analysis has the free dimensions; where there are none, it says why.
    """
    analysis, program = compiled.analysis, compiled.program
    layout = None if analysis is None else analysis.request.layout
    if analysis is None or layout is None or not _attends(program):
        return compiled
    request, fixed = analysis.request, ""
    for free in layout.candidates():
        trial = ContextLayout(layout.module_context(layout.leaves), free)
        try:
            found = _freed(compiled, analysis, replace(request, layout=trial))
        except CompileError as error:
            found = str(error)
        if not isinstance(found, str):
            return found
        fixed = fixed or found
    known = ContextLayout(layout.module_context(layout.leaves), (), f"another number of positions is refused: {fixed}")
    return replace(compiled, analysis=replace(analysis, request=replace(request, layout=known)))


def _freed(compiled: Compiled, first: Analysis, request: CompileRequest) -> Compiled | str:
    """Returns the program for any number of positions, or why there is none."""
    layout = request.layout
    if compiled.analysed and layout.frames():
        return "the frames of the context go with the length of the event"
    positions = layout.positions()
    further = layout.resized(tree_leaves(layout.example(2)), positions + _FURTHER)
    if said := _refusal(request, further):
        return said
    second = analyse(request, layout.module_context(further))
    program = _of_any_positions(compiled, first, second)
    if isinstance(program, str):
        return program
    plan, network = compiled.plan, compiled.context_network
    if network is not None:
        checked = _plan_at(request, layout.resized(layout.leaves, positions + _CHECKED))
        plan = _followed(compiled, first, second, checked, positions)
        if isinstance(plan, str):
            return plan
        plan.free = layout.free[0]
        network = plan.network()
        for other in (1, positions + 1):
            try:
                network.dry_run(layout.resized(layout.leaves, other))
            except Exception as error:  # of the operators, which raise what they like
                return f"what reads the context does not run for {other} positions: {error}"
    analysis = replace(first, request=request)
    return replace(compiled, program=program, analysis=analysis, plan=plan, context_network=network)


def _refusal(request: CompileRequest, leaves: list[Tensor]) -> str:
    """Returns what the module raises for other contexts; "" where it takes them."""
    levels = torch.zeros((2, *request.event_shape), dtype=torch.int64 if request.head.levels else torch.float32)
    try:
        with torch.no_grad():
            request.forward(request.head.to_input(levels), leaves)
    except Exception as error:  # whatever a module raises
        return f"the network takes no other: {error}"
    return ""


# ---- the program


def _attends(program: Program) -> list[Attend]:
    """Returns the attention to contexts."""
    return [
        i.body
        for i in program.attends
        if any(program.buffers[program.operands[n].buffer].where == CONTEXT for n in (i.body.key, i.body.value))
    ]


def _of_any_positions(compiled: Compiled, first: Analysis, second: Analysis) -> Program | str:
    """Returns the compiled program with key runs that end where the context ends."""
    tables = [analysis.lowered.program.to_tensors() for analysis in (first, second)]
    for name, table in tables[0].items():
        if name != "key_runs" and not torch.equal(table, tables[1][name]):
            return f"the program is another one ({name}) for more positions of the context"
    programs = [first.lowered.program, second.lowered.program]
    if len(programs[0].key_runs) != len(programs[1].key_runs):
        return "the keys that are seen do not follow from the number of positions"
    open_runs = _runs_to_the_end(first) & _runs_to_the_end(second)
    runs = list(compiled.program.key_runs)
    for number, (a, b) in enumerate(zip(*(program.key_runs for program in programs), strict=True)):
        if number in open_runs:
            runs[number] = replace(a, end=replace(a.end, offset=UNBOUNDED), high=UNBOUNDED)
        elif a != b:
            return "the keys that are seen do not follow from the number of positions"
    for body in _attends(compiled.program):
        if not set(_runs_of(compiled.program, body)) <= open_runs:
            return "some positions of the context are not seen"
    return replace(compiled.program, key_runs=runs)


def _runs_of(program: Program, body: Attend) -> list[int]:
    """Returns the key runs of attention whose queries all see the same."""
    if body.keys.row_stride or body.keys.column_stride:
        return [-1]
    chosen = program.key_sets[body.keys.offset]
    return [*range(chosen.run0, chosen.run1)]


def _runs_to_the_end(analysis: Analysis) -> set[int]:
    """Returns the key runs that are used of contexts only, and see all of their positions."""
    program, plan, layout = analysis.lowered.program, analysis.plan, analysis.request.layout
    given = [shape[1] for shape in layout.position_major_shapes(1)]
    network = None if plan is None else plan.network()
    sizes = [*given, *(positions for positions, _ in (network.sizes if network is not None else []))]
    seen: dict[int, set[int]] = {}
    for instruction in program.attends:
        body = instruction.body
        buffers = [program.buffers[program.operands[number].buffer] for number in (body.key, body.value)]
        ends = {sizes[b.offset] if b.where == CONTEXT else -1 for b in buffers}
        for number in _runs_of(program, body):
            seen.setdefault(number, set()).update(ends)
    found = set()
    for number, ends in seen.items():
        run = program.key_runs[number] if number >= 0 else None
        if run is not None and len(ends) == 1 and _sees_all(run, *ends):
            found.add(number)
    return found


def _sees_all(run: KeyRun, positions: int) -> bool:
    maps = run.start, run.end
    still = all(not m.row_stride and not m.column_stride for m in maps)
    return still and (maps[0].offset, run.low, maps[1].offset, run.high, run.step) == (0, 0, positions, positions, 1)


# ---- what runs in PyTorch


def _plan_at(request: CompileRequest, leaves: list[Tensor]) -> ContextPlan:
    """Returns the plan of the exported network for other contexts, of which nothing is known but its calls."""
    leaves = [leaf[:1].expand(2, *leaf.shape[1:]).contiguous() for leaf in leaves]
    levels = torch.zeros((2, *request.event_shape), dtype=torch.int64 if request.head.levels else torch.float32)
    context = request.layout.module_context(leaves)
    exported = export(request.network, request.head.to_input(levels), context)
    return ContextPlan(exported, state_of(exported, request.network), context, ())


def _followed(
    compiled: Compiled, first: Analysis, second: Analysis, checked: ContextPlan, positions: int
) -> ContextPlan | str:
    """Returns the plan with the calls that follow the number of positions, or why they do not."""
    plan, other = compiled.plan, second.plan
    networks = [p.network() for p in (plan, first.plan, other)]
    if any(network is None for network in networks) or not plan.results == first.plan.results == other.results:
        return "PyTorch computes other values of the context for more positions"
    if networks[0].calls != networks[1].calls or not _same_tensors(networks[0], networks[1]):
        return "what reads the context depends on the length of the event"
    followed, moving = {}, set(plan.still)
    for name, node in plan.nodes.items():
        same = other.nodes.get(name)
        if node.op != "call_function" or same is None or same.op != "call_function" or same.target != node.target:
            continue
        a, b = call_of(node), call_of(same)
        merged = _merged([a.arguments, a.options], [b.arguments, b.options], positions)
        if merged is None:
            continue
        call = Call(name, a.operator, *merged)
        if call != a or (name not in plan.still and call.reads & followed.keys() - moving):
            followed[name] = call
    made = copy.copy(plan)
    made.followed = followed
    network = made.network()
    for call in network.calls:
        if not _is_at(call, other, positions + _FURTHER) or not _is_at(call, checked, positions + _CHECKED):
            return f"what reads the context, at {call.name}, does not follow from the number of positions"
    held = other.state | networks[2].tensors
    for name, tensor in network.tensors.items():
        if name not in held or not torch.equal(tensor, held[name]):
            return f"what reads the context has a constant, {name}, that depends on the number of positions"
    return made


def _is_at(call: Call, plan: ContextPlan, positions: int) -> bool:
    """Whether a call is that of a plan for so many positions."""
    node = plan.nodes.get(call.name)
    if node is None or node.op != "call_function":
        return False
    given = call_of(node)
    wanted = [_at(part, positions) for part in (call.arguments, call.options)]
    return given.operator is call.operator and [given.arguments, given.options] == wanted


def _same_tensors(a: ContextNetwork, b: ContextNetwork) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(t, b.tensors[name]) for name, t in a.tensors.items()
    )


def _merged(a, b, positions: int):
    """Returns arguments of which both are made, with extents where their integers differ; None where there are none."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        parts = [_merged(x, y, positions) for x, y in zip(a, b, strict=True)]
        return None if any(p is None and x is not None for p, x in zip(parts, a, strict=True)) else parts
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        parts = {name: _merged(a[name], b[name], positions) for name in a}
        return None if any(parts[name] is None and a[name] is not None for name in a) else parts
    if type(a) is int and type(b) is int and a != b:
        stride, rest = divmod(b - a, _FURTHER)
        return None if rest else Extent(a - stride * positions, stride)
    return a if a == b and type(a) is type(b) else None


def _at(part, positions: int):
    """Returns arguments with their extents at a number of positions."""
    if isinstance(part, list):
        return [_at(each, positions) for each in part]
    if isinstance(part, dict):
        return {name: _at(each, positions) for name, each in part.items()}
    return part.at(positions) if isinstance(part, Extent) else part
