"""A generation in progress, which can be forked, saved and resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgen.generate.arguments import as_tensor, check_integer
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.contexts import context_leaves, position_major, position_major_shape
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.known import check_prefix
from fastgen.generate.machines.batch import MOST_SAMPLES, GenerationBatch, check_batch, sample_indices
from fastgen.generate.machines.machine import check_threads
from fastgen.generate.on_cpu import on_cpu
from fastgen.generate.options import SamplingOptions

_NUMBERS = ("seed", "position0", "temperature", "top_k", "top_p", "threads", "ahead")
_TENSORS = ("state", "samples", "levels", "known", "log_prob", "proposal_log_prob")


@on_cpu
@dataclass
class State:
    """``batch`` generations after ``step`` steps. ``run.state`` is everything the network remembers.

    One thread at a time can advance, fork or save it. An interrupt leaves it after a whole step, from where it can go
    on, unless one step takes so long (a tenth of a second, in a large batch) that it is broken off: then ``advance``,
    ``fork`` and ``save`` raise RuntimeError.

    A deep copy, or one by ``pickle``, is another generation that goes on alike; a deep copy has the same sampler.
    """

    run: GenerationBatch
    sampler: CompiledNetwork

    @property
    def step(self) -> int:
        return self.run.step

    @step.setter
    def step(self, step: int) -> None:
        self.run.step, self.run.unfinished = step, False

    @property
    def batch(self) -> int:
        return self.run.state.shape[0]

    @property
    def levels(self) -> Tensor:
        """``[batch, *event_shape]``: what is drawn so far; later elements hold 0 (or their known values)."""
        return self.sampler.request.levels(self.run.levels)

    def fork(self, indices: Sequence[int], same_noise: bool = False, first_sample: int | None = None) -> State:
        """Returns new generations that continue from those at ``indices``.

        They take the sample indices ``first_sample, first_sample + 1, ...`` (by default those after the highest in
        use), so that forks of one state differ; ``same_noise=True`` keeps the indices of their origins.

        Raises:
            ValueError: an index is outside the batch, or ``first_sample`` is no sample index.
            RuntimeError: another thread is advancing the state, or an exception left it within a step.
        """
        self.run.check_between_steps()
        chosen = as_tensor("indices", indices)
        listed = chosen.dim() == 1 and len(chosen) and not chosen.is_floating_point() and chosen.dtype != torch.bool
        if not listed or chosen.min() < 0 or chosen.max() >= self.batch:
            raise ValueError(f"indices must be one or more of 0 .. {self.batch - 1}, got {indices!r}")
        chosen = chosen.long()
        run = self.run
        samples = run.samples[chosen]
        if not same_noise:
            samples = sample_indices(int(run.samples.max()) + 1 if first_sample is None else first_sample, len(chosen))
        tensors = {
            name: getattr(run, name) for name in _TENSORS if getattr(run, name) is not None and name != "samples"
        }
        taken = {name: tensor[chosen].clone() for name, tensor in tensors.items()}
        contexts = [c[chosen].contiguous() for c in run.contexts]
        return State(replace(run, samples=samples, contexts=contexts, **taken), self.sampler)

    def __deepcopy__(self, memo: dict) -> State:
        self.run.check_between_steps()
        return State(copy.deepcopy(self.run, memo), memo.get(id(self.sampler), self.sampler))

    def save(self, path) -> None:
        """Writes the state to a safetensors file; ``sampler.load_state(path)`` goes on from it, bitwise.

        Raises:
            RuntimeError: another thread is advancing the state, or an exception left it within a step.
        """
        self.run.check_between_steps()
        run = self.run
        tensors = {name: getattr(run, name) for name in _TENSORS if getattr(run, name) is not None}
        tensors |= {f"context.{i}": c for i, c in enumerate(run.contexts)}
        numbers = {name: getattr(run, name) for name in _NUMBERS} | {"step": self.step}
        write_tensor_file(path, "state", tensors, numbers | {"program": self.sampler.fingerprint})


def _give_prefix(network: CompiledNetwork, run: GenerationBatch) -> None:
    """Writes the inputs of the prefix, which the prologue reads, to where draws write the others."""
    prefix, program = network.request.prefix, network.program
    if not prefix:
        return
    shape = (*network.event_shape[:-1], prefix)
    levels = network.request.levels(run.levels[..., :prefix].contiguous(), shape)
    inputs = network.head.to_input(levels).reshape(len(levels), -1, prefix).float()
    for draw in (instruction.body for instruction in program.draws):
        for channel, number in enumerate(range(draw.input0, draw.input1), draw.channel0):
            operand = program.operands[number]
            buffer = program.buffers[operand.buffer]
            for element in range(prefix):
                position = operand.map.position(0, element - prefix) % buffer.positions
                place = buffer.offset + position * buffer.channels + operand.channel
                run.state[:, place] = inputs[:, channel, element]


def load_state(path, sampler: CompiledNetwork) -> State:
    """``Sampler.load_state``: everything is checked here, before a machine reads it."""
    tensors, numbers = read_tensor_file(path, "state")
    try:
        if numbers.pop("program", None) != sampler.fingerprint:
            raise ValueError("it is a state of another program")
        return _checked_state(sampler, tensors, numbers)
    except ValueError as error:
        raise ValueError(f"{path} holds a state that this sampler cannot go on from: {error}") from error


def _checked_state(sampler: CompiledNetwork, tensors: dict[str, Tensor], numbers: dict) -> State:
    if numbers.keys() != {*_NUMBERS, "step"}:
        odd = ", ".join(sorted(numbers.keys() ^ {*_NUMBERS, "step"}))
        raise ValueError(f"a state has {', '.join(_NUMBERS)}, step; missing or not known: {odd:.200}")
    step = check_integer("step", numbers.pop("step"), 0, sampler.steps)
    check_integer("position0", numbers["position0"], 0, 0)  # a state holds the whole event
    if type(numbers["ahead"]) is not bool:
        raise ValueError(f"ahead must be true or false, got {numbers['ahead']!r:.100}")
    check_threads(check_integer("threads", numbers["threads"], 1))
    scored = "log_prob" in tensors, "proposal_log_prob" in tensors
    sampler.head.check_sampling(numbers["temperature"], numbers["top_k"], numbers["top_p"], *scored)
    if "state" not in tensors or tensors["state"].dim() != 2:
        raise ValueError("the tensor state [batch, numbers] is missing")
    batch, order = len(tensors["state"]), sampler.order
    check_batch(batch, numbers["seed"])
    event = (torch.float32, [batch, order.channels, order.positions])
    contexts = _context_shapes(sampler, tensors, batch)
    shapes = {f"context.{i}": (torch.float32, shape) for i, shape in enumerate(contexts)}
    needed = {
        "state": (torch.float32, [batch, sampler.machine.state_stride]),
        "samples": (torch.int64, [batch]),
        "levels": event,
    }
    shapes |= needed | {"known": (torch.bool, event[1])}
    shapes |= {name: (torch.float64, [batch]) for name in ("log_prob", "proposal_log_prob")}
    if odd := (tensors.keys() - shapes.keys()) | ((needed.keys() | {*shapes} - {*_TENSORS}) - tensors.keys()):
        raise ValueError(f"tensors are missing or not known: {', '.join(sorted(odd)):.200}")
    for name, tensor in tensors.items():
        dtype, shape = shapes[name]
        if tensor.dtype != dtype or list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {dtype} {shape}, got {tensor.dtype} {list(tensor.shape)}")
    samples, levels = tensors["samples"], tensors["levels"]
    if samples.min() < 0 or samples.max() >= MOST_SAMPLES:
        raise ValueError(f"samples must be in 0 .. {MOST_SAMPLES - 1}, got {samples.min()} .. {samples.max()}")
    if not sampler.head.holds(levels).all():
        raise ValueError(f"levels must be {sampler.head.allowed()}")
    given = [tensors[f"context.{i}"] for i in range(len(contexts))]
    if not all(bool(context.isfinite().all()) for context in given):
        raise ValueError("a context holds NaN or infinite values")
    run = GenerationBatch(contexts=given, **{name: tensors.get(name) for name in _TENSORS}, **numbers, step=step)
    return State(run, sampler)


def _context_shapes(sampler: CompiledNetwork, tensors: dict[str, Tensor], batch: int) -> list[list[int]]:
    """Returns the shapes of a state's contexts; the number of positions is that of one that may have any."""
    layout, network = sampler.request.layout, sampler.compiled.context_network
    if layout is None:
        return []
    leaves = layout.leaves
    if layout.free:
        number, dim = layout.free[0]
        given = tensors.get(f"context.{number}")
        shape = [] if given is None else list(given.shape)
        if len(shape) != 3:
            raise ValueError(f"the tensor context.{number} [batch, positions, channels] is missing")
        rest = math.prod(n for d, n in enumerate(leaves[number].shape) if d > 1 and d != dim)
        leaves = layout.resized(leaves, check_integer("positions", shape[2] if dim == 1 else shape[1] // rest, 1))
    sizes = [] if network is None else network.dry_run(leaves) if layout.free else network.sizes
    return [*(position_major_shape([batch, *leaf.shape[1:]]) for leaf in leaves), *([batch, *size] for size in sizes)]


def check_state(state: State, sampler: CompiledNetwork) -> None:
    """Raises ValueError unless ``state`` is one of ``sampler``, or of one with the same program, event and head."""
    if not isinstance(state, State):
        raise ValueError(f"state must be what start, fork or load_state returned, got {type(state).__name__}")
    if state.sampler is not sampler and state.sampler.fingerprint != sampler.fingerprint:
        raise ValueError("state must be one of this sampler's, got one of another program; advance it with its own")


def start_state(
    network: CompiledNetwork,
    batch: int,
    seed: int,
    known: Tensor | None,
    known_mask: Tensor | None,
    options: SamplingOptions,
    window: int | None = None,
) -> State:
    """Starts a generation of levels and masks ``[batch, C, positions]``.

    Without known levels, those of ``window`` positions are kept (by default of all).
    """
    batch, seed = check_batch(batch, seed)
    altered = options.check(network.head)
    leaves = context_leaves(network.request.layout, options.context, batch)
    program, contexts = network.program, network.compiled.context_network
    channels, positions = network.order.channels, network.order.positions
    run = GenerationBatch(
        state=torch.zeros(batch, network.machine.state_stride, dtype=torch.float32),
        contexts=[position_major(leaf) for leaf in leaves] + (contexts.run(leaves) if contexts is not None else []),
        seed=seed,
        samples=sample_indices(options.first_sample, batch),
        levels=torch.zeros(batch, channels, window or positions, dtype=torch.float32) if known is None else known,
        known=known_mask,
        log_prob=torch.zeros(batch, dtype=torch.float64) if options.log_prob else None,
        proposal_log_prob=torch.zeros(batch, dtype=torch.float64) if options.proposal_log_prob else None,
        temperature=altered.temperature,
        top_k=altered.top_k,
        top_p=altered.top_p,
        threads=network.threads if options.threads is None else check_threads(options.threads),
        ahead=network.machine.runs_blocks(batch),
    )
    if network.request.predicts == "next":
        draw = program.draws[0].body
        buffer = program.buffers[program.operands[draw.input0].buffer]
        run.state[:, buffer.offset : buffer.offset + buffer.channels] = network.request.start
    check_prefix(network.request.prefix, known_mask)
    _give_prefix(network, run)
    network.machine.prologue(run)
    return State(run, network)
