"""A sampler checks itself: one teacher-forced pass of the program against the module."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.generate.compile.any_length import prime
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.errors import VerificationError
from fastgen.generate.frontend.untouched import untouched
from fastgen.generate.ir.program import STREAM, Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.noise import Noise
from fastgen.generate.options import SamplingOptions
from fastgen.generate.state import start_state
from fastgen.generate.verification.check_inputs import check_rows, random_contexts
from fastgen.generate.verification.first_layer import first_layer
from fastgen.generate.verification.precision import Precision

EPSILON = torch.finfo(torch.float32).eps
_PREFIX = 127
"""Steps of a sequence from which the module's rounding is estimated."""
_FIRST = 64
"""First steps that share one estimate of the module's rounding."""


@dataclass(frozen=True)
class Difference:
    """The first place at which program and module differ."""

    step: int
    position: tuple[int, ...]
    length: int | None
    program: float
    module: float
    bound: float
    levels: Tensor
    leaves: list[Tensor]
    """The event, of one row."""
    halved: bool
    """Whether the program is right and the module itself rounds more than float32 does."""
    trouble: str


def self_check(network: CompiledNetwork) -> None:
    """Compares the program with the module over random levels; returns where they agree.

    The program reads a whole event of known levels, which it has not drawn, and what the head reads of it at every
    position is compared with the module's output. The program may differ from the module's float64 result by twice what
    the module's own float32 does, and what the order of its longest sum may do. An endless program is compared at
    several lengths beyond the receptive field, a prime one among them, and at ``event_shape`` where that is of such a
    length; one that takes contexts of any number of positions, with three numbers of them.

    The module's float64 result is that of ``Precision``: the module is not copied. Levels and contexts come from a
    generator of their own.

    Rounded weights, keys and values are approximations: the program is run without, in float32.

    Raises:
        VerificationError: they differ, in two independent draws of the levels, by more than rounding. The message names
            the first position and the layer. (Once, it may be a comparison that rounding decides.)
    """
    network = network.in_float32()
    with untouched(network.module, network.request.adapter):
        found = None
        for positions in _numbers_of_positions(network):
            found = found or (_difference(network, 0, positions) and _difference(network, 1, positions))
    if found is not None:
        raise VerificationError(f"{_message(found)}. {_layer(network, found)}".removesuffix(". "))


@dataclass(frozen=True)
class Agreement:
    """The greatest error of the program, and where it is."""

    error: float
    """Of a parameter, against the module's float64 result."""
    bound: float
    """What float32 may be off there."""
    position: tuple[int, ...]
    step: int
    length: int | None
    """Of the sequence that was read; None for the whole event."""


def greatest_error(network: CompiledNetwork) -> Agreement:
    """Returns the greatest error of the program, teacher-forced over random levels as in ``self_check``.

    It is the error that is greatest relative to its bound. An endless program is compared at the greatest of its
    ``check_lengths``. Weights, keys and values are float32.
    """
    network = network.in_float32()
    generator = torch.Generator().manual_seed(0)
    length = check_lengths(network)[-1]
    shape = network.event_shape if length is None else (*network.event_shape[:-1], length)
    rows = check_rows(network, shape)
    levels = network.head.random_levels((rows, *shape), generator)
    leaves = random_contexts(network, rows, generator)
    with untouched(network.module, network.request.adapter), torch.no_grad():
        computed, trouble = _of_program(network, levels, leaves)
        forward = Forward(network, leaves)
        try:
            exact, single = forward.in_precision(network.head.to_input(levels))
        except (AssertionError, RuntimeError):  # as in _difference
            if length is None:
                raise
            length = network.compiled.analysed
            shape, levels, computed = (*shape[:-1], length), levels[..., :length], computed[:, :length]
            exact, single = forward.in_precision(network.head.to_input(levels))
    prefix = network.request.prefix
    computed = torch.cat([exact[:, :prefix], computed[:, prefix:].double()], 1)
    when = _steps(network, shape, exact.shape[2])
    bound = _bound(single, exact, when, _association(network.program, when))
    end = _end(network, exact, computed, when) if trouble else math.inf
    error = torch.where(when < end, _apart(computed.double(), exact), 0.0)
    relative = error / bound.clamp_min(torch.finfo(torch.float64).tiny)
    row, position, parameter = (int(i) for i in torch.unravel_index(relative.argmax(), relative.shape))
    return Agreement(
        float(error[row, position, parameter]), float(bound[0, position, parameter]),
        network.order.at(shape).coordinates(position), int(when[position, parameter]), length,
    )  # fmt: skip


def check_lengths(network: CompiledNetwork) -> list[int | None]:
    """Returns the lengths at which an endless program is compared, in growing order; [None] for any other."""
    if network.program.steps < STREAM:
        return [None]
    steps, reach = network.steps, network.compiled.reach
    short, far = prime(network.compiled.analysed + 1), prime(max(network.compiled.analysed + 64, reach + 128))
    return sorted({short, far, *([steps] if steps <= 2 * far else [])})


def _numbers_of_positions(network: CompiledNetwork) -> list[int | None]:
    """Returns numbers of positions of the context to compare with; None is the example's."""
    layout = network.request.layout
    if layout is None or not layout.free:
        return [None]
    generator = torch.Generator().manual_seed(0)
    levels = network.head.random_levels((2, *network.event_shape), generator)
    try:
        with torch.no_grad():
            Forward(network, random_contexts(network, 2, generator, 1))(network.head.to_input(levels))
    except Exception:  # whatever a module raises that does not take a single position
        return [None, layout.positions() + 2]
    return [None, layout.positions() + 2, 1]


def _difference(network: CompiledNetwork, seed: int, positions: int | None) -> Difference | None:
    generator = torch.Generator().manual_seed(seed)
    lengths = check_lengths(network)
    shape = network.event_shape if lengths[-1] is None else (*network.event_shape[:-1], lengths[-1])
    rows = check_rows(network, shape)
    levels = network.head.random_levels((rows, *shape), generator)
    leaves = random_contexts(network, rows, generator, positions)
    forward = Forward(network, leaves)
    with torch.no_grad():
        computed, trouble = _of_program(network, levels, leaves)
        for length in lengths:
            part = levels if length is None else levels[..., :length]
            try:
                found = _compare(forward, computed, trouble, part, length)
            except (AssertionError, RuntimeError):  # a network of even lengths, say, takes no prime one
                if length is None:
                    raise
                length = network.compiled.analysed
                found = _compare(forward, computed, trouble, levels[..., :length], length)
            if found is not None:
                return found
    return None


def _of_program(network: CompiledNetwork, levels: Tensor, leaves: list[Tensor]) -> tuple[Tensor, str]:
    """Returns the parameters ``[N, P, n]`` that the program computes, NaN from where it stops, and why it stops."""
    run = _taught(network, levels, leaves)
    count = network.head.groups(network.event_shape) * network.head.parameters_per_group
    positions = run.levels.shape[2]
    run.parameters = torch.full((len(levels), positions, count), torch.nan, dtype=torch.float32)
    try:
        every = network.order.steps_per_position
        network.machine.absorb(run, 0, network.steps if network.program.steps < STREAM else positions * every)
    except ValueError as error:
        return run.parameters, str(error)
    return run.parameters, ""


def _taught(network: CompiledNetwork, levels: Tensor, leaves: list[Tensor]) -> GenerationBatch:
    """Starts a generation before its first step that knows all of its elements."""
    channels = network.order.steps.shape[0]
    known = levels.reshape(len(levels), channels, -1).float().contiguous()
    context = None if network.request.layout is None else network.request.layout.module_context(leaves)
    everything = torch.ones_like(known, dtype=torch.bool)
    return start_state(network, len(levels), 0, known, everything, SamplingOptions(context)).run


def _compare(forward: Forward, computed: Tensor, trouble: str, levels: Tensor, length: int | None) -> Difference | None:
    network, leaves = forward.network, forward.leaves
    shape = tuple(levels.shape[1:])
    inputs = network.head.to_input(levels)
    module = forward(inputs)
    prefix = network.request.prefix  # of elements that are not scored
    computed = torch.cat([module[:, :prefix], computed[:, prefix : module.shape[1]].double()], 1)
    beginning = _beginning(network, inputs, length)
    if beginning is not None:
        association = _association(network.program, _steps(network, shape, module.shape[2]))
        allowed = (4 * forward.rounding(beginning) + association) * _scale(module)
        if bool((_apart(computed, module) <= allowed).all()) and not forward.rounds_more:
            return None
    exact, single = forward.in_precision(inputs, module)
    when = _steps(network, shape, module.shape[2])
    bound = _bound(single, exact, when, _association(network.program, when))
    end = _end(network, exact, computed, when) if trouble else math.inf
    for values, halved in ((computed, False), (module, True)):
        wrong = (_apart(values, exact) > bound) & (when < end)
        if bool(wrong.any()):
            step = int(when.expand_as(wrong)[wrong].min())
            row, position, parameter = (wrong & (when == step)).nonzero()[0].tolist()
            place = network.order.at(shape).coordinates(position)
            at = row, position, parameter
            return Difference(
                step, place, length, float(values[at]), float(exact[at]), float(bound[0, position, parameter]),
                levels[row : row + 1], [leaf[row : row + 1] for leaf in leaves], halved, trouble,
            )  # fmt: skip
    return None


class Forward:
    """The module's forward as the head's parameters ``[N, P, n]``, float64."""

    def __init__(self, network: CompiledNetwork, leaves: list[Tensor]) -> None:
        self.network, self.leaves = network, leaves
        self.rounds_more = False
        """Whether an operator takes or gives floats of less than 32 bits."""
        held = [*network.module.parameters(), *network.module.buffers()]
        self._rounding: float | None = None
        self._single = all(t.dtype == torch.float32 for t in held if t.is_floating_point())

    def __call__(self, inputs: Tensor) -> Tensor:
        head = self.network.head
        shape = tuple(inputs.shape[1:])
        try:
            output = self.network.request.forward(inputs, self.leaves)
        except (AssertionError, RuntimeError):  # an exported module takes a batch of two, as it was compiled
            pairs = torch.arange(len(inputs) + len(inputs) % 2).clamp_max(len(inputs) - 1).split(2)
            parts = [self.network.request.forward(inputs[i], [leaf[i] for leaf in self.leaves]) for i in pairs]
            output = torch.cat(parts)[: len(inputs)]
        return head.arrange(output, shape).flatten(2).double()

    def in_precision(self, inputs: Tensor, result: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the result in float64, and in float32; ``result`` is the module's own, if it is known."""
        with Precision(torch.float64) as exactly:
            exact = self(inputs)
        self.rounds_more |= exactly.saw_less
        if self._single and not self.rounds_more:
            return exact, self(inputs) if result is None else result
        with Precision(torch.float32):
            return exact, self(inputs)

    def rounding(self, inputs: Tensor) -> float:
        """Returns the largest error of the float32 result, relative to the parameter's scale; found once."""
        if self._rounding is None:
            try:
                exact, single = self.in_precision(inputs)
                self._rounding = float((_apart(single, exact) / _scale(exact)).max())
            except Exception:  # whatever a module raises that takes events of one shape only
                self._rounding = 0.0
        return self._rounding


def _beginning(network: CompiledNetwork, inputs: Tensor, length: int | None) -> Tensor | None:
    """Returns the part of large inputs that the module's rounding is estimated from: first steps, or upper rows."""
    if length is not None:
        return inputs[..., :_PREFIX] if length > 4 * _PREFIX else None
    if network.order.name.startswith("raster") and inputs.shape[-2] % 16 == 0:
        return inputs[..., : inputs.shape[-2] // 4, :].contiguous()
    return None


def _steps(network: CompiledNetwork, shape: tuple[int, ...], count: int) -> Tensor:
    """``[P, n]``: the step at which a parameter is used."""
    steps = torch.from_numpy(network.order.at(shape).steps)
    groups = network.head.groups(shape)
    first = steps[:: len(steps) // groups]
    return first.repeat_interleave(count // groups, 0).T


def _association(program: Program, when: Tensor) -> Tensor:
    """Returns the effect of the order of summation on the longest sum that each parameter depends on.

    It is sqrt(n) roundings of n terms; a loop may sum over the steps ``when`` so far.
    """
    segments = program.segments
    longest = max(
        (sum(s.length for s in segments[i.body.segment0 : i.body.segment1]) for i in program.computes), default=1
    )
    iterations = when + 1 if any(i.loop for i in program.instructions) else torch.ones_like(when)
    return EPSILON * torch.sqrt(max(longest, 1) * iterations.double())


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """``|a - b|``; 0 where both are the same infinity or NaN, infinite where only one is."""
    difference = (a - b).abs()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, difference.nan_to_num(nan=math.inf))


def _scale(values: Tensor) -> Tensor:
    """``[n]``: the largest size of each parameter, or that of the median parameter if it is larger."""
    finite = torch.where(values.isfinite(), values.abs(), 0.0).amax((0, 1))
    return torch.maximum(finite, finite.median()).clamp_min(torch.finfo(torch.float32).tiny)


def _bound(single: Tensor, exact: Tensor, when: Tensor, association: Tensor) -> Tensor:
    """``[1, P, n]``: twice the error of the module's own float32, relative to the parameter's scale, and its sums'.

    Of the steps up to this one and a number of first ones: where errors grow on their way along a sequence, the early
    steps are still compared closely.
    """
    scale = _scale(exact)
    error = (_apart(single, exact) / scale).amax(0)
    steps = int(when.max()) + 1
    by_step = torch.zeros(steps, dtype=torch.float64).scatter_reduce(0, when.flatten(), error.flatten(), "amax")
    first = max(_FIRST, steps // 10)
    by_step[:first] = by_step[:first].max()
    return ((2 * by_step.cummax(0).values[when] + association) * scale)[None]


def _end(network: CompiledNetwork, exact: Tensor, computed: Tensor, when: Tensor) -> float:
    """Returns the step after which a stopped program is not compared: where the module has no distribution."""
    filled = ~computed.isnan().all(0)
    last = int(when[filled].max()) if bool(filled.any()) else -1
    for step in (last, last + 1):
        at = when == step
        if not bool(at.any()):
            continue
        try:
            for position in at.any(1).nonzero().flatten().tolist():
                values = exact[:, position, at[position]].reshape(len(exact), -1, network.head.parameters_per_group)
                network.head.draw(values, Noise(0, torch.arange(len(exact)), 0, 0))
        except ValueError:
            return step + 1
    return math.inf


def _message(found: Difference) -> str:
    at = f"position {found.position[0] if len(found.position) == 1 else found.position} (step {found.step})"
    length = "" if found.length is None else f" of {found.length}"
    if found.halved:
        return (
            f"the module computes with less than float32: at {at}{length} it gives {found.program:.6g}, and with "
            f"float32 throughout {found.module:.6g}. A sampler computes with float32: pass module.float(), no autocast"
        )
    told = f"; it stops: {found.trouble}" if found.trouble else ""
    return (
        f"the compiled program is not the module: at {at}{length} it gives the head {found.program:.6g} where the "
        f"module gives {found.module:.6g} (float32 may be {found.bound:.2g} off){told}"
    )


def _layer(network: CompiledNetwork, found: Difference) -> str:
    """Finds where in the network they part first, as far as that can be told at the analysed length."""
    analysed = network.compiled.analysis.event_shape
    if found.halved:
        return ""
    if found.step >= network.order.at(analysed).length if found.length is not None else found.trouble:
        return ""
    levels = found.levels[..., : analysed[-1]]
    if levels.shape[1:] != analysed:
        levels = torch.nn.functional.pad(levels, (0, analysed[-1] - levels.shape[-1]))
    inputs = network.head.to_input(levels)
    error = found.bound / max(abs(found.module), EPSILON)
    try:
        run = _taught(network, levels, found.leaves)
        network.machine.absorb(run, 0, found.step)
        network.machine.advance(run, found.step, found.step + 1)
        with untouched(network.module, network.request.adapter):
            return first_layer(network, inputs, found.leaves, run, found.step, error)
    except Exception as problem:  # the difference is to be told, whatever this network does to the search
        return f"(The layer was not found: {type(problem).__name__}: {problem})"
