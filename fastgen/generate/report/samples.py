"""Samples of the program beside those of the textbook loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.machines.batch import sample_indices
from fastgen.generate.noise import Noise
from fastgen.generate.options import SamplingOptions
from fastgen.generate.report.outputs import Element
from fastgen.generate.sampler import Sampler
from fastgen.generate.state import start_state
from fastgen.generate.textbook import sample_naive
from fastgen.generate.verification.self_check import Forward

_ERROR = 8
"""Times the module's own float32 error: program, loop and check each sum in another order."""
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class SampleComparison:
    """How the program's samples compare with the textbook loop's over the first ``steps`` steps."""

    samples: int
    equal: int
    """Samples that are the loop's in every element."""
    steps: int
    total: int
    """Steps of the event."""
    wrong: Element | None
    """The first element that the module does not draw, given the sample's elements before it and the same noise, from
    parameters within float32's error of the exact ones; None where there is none."""

    def __str__(self) -> str:
        reach = "" if self.steps == self.total else f", over the first {self.steps} of {self.total} steps"
        if self.wrong is not None:
            return f"NOT those of the textbook loop{reach}: element {self.wrong} is not what the module draws there"
        if self.equal == self.samples:
            return f"all {self.samples} are the textbook loop's, element by element{reach}"
        return (
            f"{self.equal} of {self.samples} are the textbook loop's, bit for bit{reach}; the others part from it by "
            "float32 rounding alone: every element is what the module draws there"
        )


@torch.no_grad()
def compare_with_loop(sampler: Sampler, samples: int, seed: int, steps: int) -> SampleComparison:
    """Draws with the program and by the textbook loop from the same noise, and checks every draw of the program.

    Where the two part, what follows differs rightly. So the first ``steps`` draws of the program are also made again,
    each from the module's float64 output for the sample itself. A draw that comes out otherwise must be one that some
    parameter, moved by float32's error, gives.

    Raises:
        ValueError: the network's output makes no distribution.
    """
    layout, order = sampler.request.layout, sampler.order
    steps = min(steps, order.length)
    context = None if layout is None else layout.example(samples)
    state = start_state(sampler, samples, seed, None, None, SamplingOptions(context))
    sampler.machine.advance(state.run, 0, steps)
    ours, loop = state.levels, sample_naive(sampler, samples, seed, steps=steps, context=context)
    drawn = torch.from_numpy(order.steps < steps).reshape(order.event_shape)
    equal = int(((ours == loop) | ~drawn).flatten(1).all(1).sum())
    leaves = [] if context is None else tree_flatten(context)[0]
    exact, single = Forward(sampler, leaves).in_precision(sampler.head.to_input(ours))
    size, rounding = (values.abs().nan_to_num(0.0, 0.0, 0.0).max() for values in (exact, exact - single))
    error = _ERROR * float(rounding) + _EPSILON * float(size)
    if sampler.head.feed_raw:  # the levels do not tell what the network read
        parted = ((ours != loop) & drawn).flatten(1).any(0)
        wrong = _first_of(sampler, parted) if bool(parted.any()) else None
    else:
        wrong = _first_wrong(sampler, ours, exact, error, seed, steps)
    return SampleComparison(samples, equal, steps, order.length, wrong)


def _first_of(network: CompiledNetwork, elements: Tensor) -> Element:
    """Returns the first in the order of some elements, booleans ``[C * P]``."""
    steps = torch.from_numpy(network.order.steps).flatten()
    at = int(torch.where(elements, steps, network.order.length).argmin())
    return Element.at(network.order, *divmod(at, network.order.positions))


def _first_wrong(
    network: CompiledNetwork, levels: Tensor, exact: Tensor, error: float, seed: int, steps: int
) -> Element | None:
    order, head, samples = network.order, network.head, sample_indices(0, len(levels))
    levels = levels.reshape(len(levels), order.channels, -1).float()
    groups = head.groups(network.event_shape)
    exact, coupled = exact.unflatten(2, (groups, -1)), order.channels // groups
    for channel0, channels, position in (draw for draws in order.draws[:steps] for draw in draws):
        parameters = exact[:, position, channel0 // coupled : (channel0 + channels) // coupled]
        given = levels[:, channel0 : channel0 + channels, position]
        again = head.draw(parameters, Noise(seed, samples, position, channel0)).levels
        for row in (again != given).any(1).nonzero().flatten().tolist():
            noise = Noise(seed, samples[row : row + 1], position, channel0)
            at = _unexplained(network, parameters[row : row + 1], given[row], noise, error)
            if at is not None:
                return Element.at(order, channel0 + at, position)
    return None


def _unexplained(network: CompiledNetwork, parameters: Tensor, given: Tensor, noise: Noise, error: float) -> int | None:
    """Returns which of the elements drawn at once is none that parameters within the error give; None: all are."""
    moves = error * torch.eye(parameters.numel(), dtype=torch.float64).reshape(-1, *parameters.shape[1:])
    moved = torch.cat([parameters, parameters + moves, parameters - moves])
    many = Noise(noise.seed, noise.samples.expand(len(moved)), noise.position, noise.channel0)
    drawn = network.head.draw(moved, many).levels
    for at, level in enumerate(given):
        values = drawn[(drawn[:, :at] == given[:at]).all(1), at]
        if network.head.levels:
            explained = bool((values == level).any())
        else:
            spread = 2 * (drawn[:, at] - drawn[0, at]).abs().max() + 4 * _EPSILON * level.abs()
            explained = bool((level - drawn[0, at]).abs() <= spread)
        if not explained:
            return at
    return None
