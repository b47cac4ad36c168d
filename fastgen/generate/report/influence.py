"""The elements that change one output: what it sees, and which earlier ones it misses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastgen.generate.inspect.receptive_field import blind_elements
from fastgen.generate.orders import Order
from fastgen.generate.report.outputs import Element, Outputs, apart
from fastgen.generate.report.perturbation import KINDS, other_levels


@dataclass(frozen=True)
class Influence:
    """Which elements change the output that scores ``output``; all tensors are ``[C, P]``."""

    order: Order
    output: Element
    sizes: Tensor
    """By how much a parameter of the output changes with an element alone; 0 where it does not, in float64 either."""
    tested: Tensor
    """The elements that were changed: as many as are tried, nearest to the output in the order."""
    blind: Tensor
    """Earlier elements within the output's reach that do not change it."""

    @property
    def seen(self) -> Tensor:
        """The elements that change the output."""
        return self.sizes > 0

    @property
    def earlier(self) -> Tensor:
        """The changed elements that are drawn before the output's."""
        return self.tested & (torch.from_numpy(self.order.steps) < self.output.step)

    def blind_names(self) -> list[str]:
        """Returns the blind elements in words, the last drawn first; without channels where all have the same ones."""
        alike = bool((self.blind == self.blind[:1]).all())
        at = (self.blind[:1] if alike else self.blind).nonzero().tolist()
        elements = sorted((Element.at(self.order, *each) for each in at), key=lambda e: -e.step)
        return [replace(element, channels=1).name if alike else element.name for element in elements]

    def without(self, structural: Tensor) -> Influence:
        """Returns it without the blind elements that the output depends on by its structure, if too weakly to show."""
        return replace(self, blind=self.blind & ~structural)


def find_influence(
    outputs: Outputs, channel: int, position: int, later: bool, generator: torch.Generator, most: int
) -> Influence:
    """Changes elements one by one, and compares the output that scores ``channel`` of ``position``.

    The ``most`` earlier elements nearest in the order are changed, and as many of the others where ``later`` is True.
    An element that changes nothing is tried four times: from two events, twice to another level, to the lowest and the
    highest one, the last two in float64, where small changes show.
    """
    order = outputs.order
    steps = torch.from_numpy(order.steps).flatten()
    own = int(order.steps[channel, position])
    nearest = (steps - own).abs().argsort(stable=True)
    earlier = nearest[steps[nearest] < own][:most]
    others = nearest[steps[nearest] >= own][: most if later else 0]
    candidates = torch.cat([earlier, others])
    sizes = torch.zeros(len(steps), dtype=torch.float64)
    pair = outputs.head.random_levels((2, *order.event_shape), generator)
    for turn, kind in enumerate(KINDS):
        start = pair[turn % 2].repeat(outputs.batch, *[1] * len(order.event_shape))
        unseen = candidates[sizes[candidates] == 0]
        precision = torch.float64 if turn >= 2 else None
        if len(unseen):
            sizes[unseen] = _alone(outputs, start, unseen, (channel, position), kind, precision, generator)
    tested = torch.zeros(len(steps), dtype=torch.bool)
    tested[candidates] = True
    shape = (order.channels, order.positions)
    blind = blind_elements((sizes > 0).reshape(shape).numpy(), order, channel, position) & tested.reshape(shape).numpy()
    return Influence(
        order,
        Element.at(order, channel, position),
        sizes.reshape(shape),
        tested.reshape(shape),
        torch.from_numpy(blind),
    )


def _alone(
    outputs: Outputs,
    start: Tensor,
    elements: Tensor,
    scored: tuple[int, int],
    kind: str,
    precision: torch.dtype | None,
    generator: torch.Generator,
) -> Tensor:
    """Returns by how much each element alone, changed in an event of ``start``, changes the scored output."""
    channel, position = scored

    def computed(levels: Tensor) -> Tensor:
        made = outputs(levels) if precision is None else outputs.in_precision(levels, precision)
        return made[:, position, outputs.parameters_of(channel)]

    before, sizes = computed(start), []
    for part in elements.split(outputs.batch):
        changed = start.clone()
        rows = torch.arange(len(part))
        flat = changed.view(outputs.batch, -1)
        other = other_levels(outputs.head, start, kind, generator).view(outputs.batch, -1)
        flat[rows, part] = other[rows, part]
        sizes.append(apart(computed(changed), before)[: len(part)].amax(1))
    return torch.cat(sizes)
