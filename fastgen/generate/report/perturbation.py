"""The leak test: elements that are not drawn yet are changed, and no output that is used before may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgen.generate.heads import Composite, Head
from fastgen.generate.orders import Order
from fastgen.generate.report.outputs import Element, Outputs, apart

KINDS = ("other", "other", "lowest", "highest")
"""The changes that are tried. They are made to two events in turn, a first and a second."""
FAR = 1e3
"""The lowest and the highest value of a continuous head."""
_ROUNDING = 2.0**-14
"""A change that is so much smaller in float64 than in float32, or more, is one of rounding: that shrinks by 2^-29."""
_ROWS = 8
"""Of an image, whose first and last steps are tried."""


@dataclass(frozen=True)
class Leak:
    """One output that sees an element which is drawn with it or later."""

    output: Element
    seen: Element
    change: float
    """Of a parameter of the output, in size."""

    def __str__(self) -> str:
        seen = "itself" if self.seen == self.output else f"element {self.seen}"
        return (
            f"the output that scores element {self.output} sees {seen}: a parameter of it changes by {self.change:.3g}"
        )


@dataclass(frozen=True)
class Leaks:
    """What the leak test found."""

    tested: tuple[int, ...]
    """Steps from which on elements were changed, while the outputs up to them were compared."""
    steps: int
    """Of the event."""
    sizes: Tensor
    """``[C, P]``: by how much a parameter that scores an element changes, at most; 0 where none does."""
    examples: tuple[Leak, ...]
    reached: int
    """Outputs that become NaN where elements that are not drawn yet are, and change by no number that was tried: what
    they read of them is multiplied by zero."""

    @property
    def count(self) -> int:
        """Elements whose output sees what is not drawn yet."""
        return int((self.sizes > 0).sum())


def mixes_samples(outputs: Outputs, generator: torch.Generator) -> bool:
    """Returns whether an output depends on other samples of the batch."""
    shape = (outputs.batch, *outputs.order.event_shape)
    one, other = (outputs.head.random_levels(shape, generator) for _ in range(2))
    before = outputs(one)
    for kept in (0, -1):
        changed = other.clone()
        changed[kept] = one[kept]
        compared = torch.zeros(outputs.batch, 1, 1, dtype=torch.bool)
        compared[kept] = True
        if bool(_changes(outputs, one, changed, before, compared).any()):
            return True
    return False


def is_repeatable(outputs: Outputs, generator: torch.Generator) -> bool:
    """Returns whether the module gives the same output for the same input, bit for bit."""
    levels = outputs.head.random_levels((outputs.batch, *outputs.order.event_shape), generator)
    return not bool(apart(outputs(levels), outputs(levels)).any())


def find_leaks(outputs: Outputs, generator: torch.Generator, rows: int) -> Leaks:
    """Changes the elements of step t and later, and compares the outputs of step t and before.

    All steps are tried where ``rows`` events are enough for that; else the first and last ones, those at the borders of
    an image, and random ones. The elements get other random levels, the lowest and the highest; where the network reads
    floats NaN too, which says what it reads at all.

    A change in float32 counts that does not vanish in float64.
    """
    order, head = outputs.order, outputs.head
    tested = chosen_steps(order, max(rows // len(KINDS), 1), generator)
    start = head.random_levels((2, *order.event_shape), generator)[torch.arange(outputs.batch) % 2]
    before = outputs(start)
    sizes = torch.zeros(before.shape[1:], dtype=torch.float64)
    first, greatest = None, None
    for steps, kinds in _batches(tested, outputs.batch):
        others = {kind: other_levels(head, start, kind, generator) for kind in dict.fromkeys(kinds)}
        other = torch.stack([others[kind][row] for row, kind in enumerate(kinds)])
        changed = torch.where(_later(order, steps), other, start)
        used = outputs.steps() <= steps[:, None, None]
        size = _changes(outputs, start, changed, before, used)
        if not bool(size.any()):
            continue
        if first is None:
            row = int(size.flatten(1).any(1).byte().argmax())
            first = start[row], changed[row], _first_used(outputs, size[row])
        if float(size.max()) > float(sizes.max()):
            row, at = divmod(int(size.argmax()), sizes.numel())
            greatest = start[row], changed[row], at
        sizes = torch.maximum(sizes, size.amax(0))
    shown = {(leak.output, leak.seen): leak for leak in (_localised(outputs, *c) for c in (greatest, first) if c)}
    reached = _reached(outputs, start, before, tested, sizes) if head.to_input(start).is_floating_point() else 0
    return Leaks(tuple(tested), order.length, outputs.per_element(sizes), tuple(shown.values())[::-1], reached)


def chosen_steps(order: Order, most: int, generator: torch.Generator) -> list[int]:
    """Returns at most ``most`` steps (the first two and last two at least), in order; all where they are no more."""
    last = order.length - 1
    if last < most:
        return list(range(order.length))
    ends: list[int] = []
    if len(order.grid) > 1:
        width = order.grid[-1]
        height = order.positions // width
        rows = torch.linspace(0, height - 1, min(height, _ROWS)).long().tolist()
        ends = order.steps[
            0, [position for row in rows for position in (row * width, row * width + width - 1)]
        ].tolist()
    chosen = {0, 1, last - 1, last}
    for step in ends + torch.randperm(order.length, generator=generator).tolist():
        if len(chosen) >= most:
            break
        chosen.add(step)
    return sorted(chosen)


def other_levels(head: Head, levels: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Returns levels ``[N, *event_shape]`` that differ from the given ones: "other", "lowest" or "highest" ones."""
    if head.levels and kind == "other":
        moves = torch.randint(1, head.levels, levels.shape, generator=generator)
        return (levels + moves) % head.levels
    if head.levels:
        return torch.full_like(levels, 0 if kind == "lowest" else head.levels - 1)
    other = head.random_levels(tuple(levels.shape), generator)
    if kind == "other":
        return other
    far = torch.full_like(levels, -FAR if kind == "lowest" else FAR)
    return torch.where(head.holds(far), far, other)  # a part of a composite head may be discrete


def _changes(outputs: Outputs, levels: Tensor, changed: Tensor, before: Tensor, compared: Tensor) -> Tensor:
    """``[batch, P, n]``: by how much compared parameters ``before`` change with the levels; 0 where only by rounding.

    Numbers that a continuous head's farthest values make infinite or NaN are left out.
    """
    after = outputs(changed)
    size = torch.where(compared, apart(after, before), 0.0)
    if not outputs.head.levels:
        size = torch.where(after.isfinite() | ~before.isfinite(), size, 0.0)
    if not bool(size.any()):
        return size
    single, double = (
        apart(outputs.in_precision(changed, dtype), outputs.in_precision(levels, dtype))
        for dtype in (torch.float32, torch.float64)
    )
    return torch.where(double > single * _ROUNDING, size, 0.0)


def _batches(tested: list[int], batch: int, kinds: tuple[str, ...] = KINDS) -> Iterator[tuple[Tensor, list[str]]]:
    """Yields (the step of every row, the kind of its change)."""
    tests = [(step, kind) for step in tested for kind in kinds]
    for first in range(0, len(tests), batch):
        part = tests[first : first + batch]
        part += [part[-1]] * (batch - len(part))
        yield torch.tensor([step for step, _ in part]), [kind for _, kind in part]


def _later(order: Order, steps: Tensor) -> Tensor:
    """Booleans ``[len(steps), *event_shape]``: the elements of these steps and later."""
    of_elements = torch.from_numpy(order.steps).reshape(order.event_shape)
    return of_elements >= steps.reshape(-1, *[1] * len(order.event_shape))


def _first_used(outputs: Outputs, size: Tensor) -> int:
    """Returns the number in ``[P, n]`` of a parameter that changes: the greatest change of the first step."""
    steps = torch.where(size > 0, outputs.steps(), outputs.order.length)
    return int(torch.where(steps == steps.min(), size, -1.0).argmax())


def _localised(outputs: Outputs, before: Tensor, after: Tensor, at: int) -> Leak:
    """Finds one element whose change alone changes a parameter (its number in ``[P, n]``) of two events' outputs.

    Between the two lie events in which the first, the first two, ... of the differing elements are changed, in the
    order in which they are drawn. The search keeps an event where the parameter is as before and a later one where it
    is not, until they are neighbours.
    """
    order = outputs.order
    steps = torch.from_numpy(order.steps).flatten()
    differing = (before != after).flatten().nonzero().flatten()
    drawn = differing[steps[differing].argsort(stable=True)]

    def events(counts: list[int]) -> Tensor:
        rows = before.flatten().repeat(outputs.batch, 1)
        for row, count in enumerate(counts):
            rows[row, drawn[:count]] = after.flatten()[drawn[:count]]
        return rows.reshape(-1, *order.event_shape)

    start = outputs(events([]))
    position, parameter = divmod(at, start.shape[2])
    whole = float(apart(outputs(events([len(drawn)] * outputs.batch)), start)[0, position, parameter])
    low, high = 0, len(drawn)
    while high - low > 1:
        counts = torch.linspace(low, high, min(outputs.batch, high - low - 1) + 2)[1:-1].long().unique().tolist()
        size = apart(outputs(events(counts)), start)[: len(counts), position, parameter]
        for count, change in zip(counts, size.tolist(), strict=True):
            if change > whole * 1e-3:
                high = count
                break
            low = max(low, count)
    groups = outputs.head.groups(order.event_shape)
    count = start.shape[2] // groups
    channel = parameter // count * (order.channels // groups)
    scored = outputs.parameters_of(channel)
    change = apart(outputs(events([high] * outputs.batch)), outputs(events([low] * outputs.batch)))
    return Leak(
        Element.at(order, channel, position),
        Element.at(order, *divmod(int(drawn[high - 1]), order.positions)),
        float(change[0, position, scored].max()),
    )


def reads_numbers(head: Head, inputs: Tensor) -> Tensor:
    """Returns where the network is fed numbers that may be NaN: not where it may look levels up in a table."""
    free = torch.ones_like(inputs, dtype=torch.bool)
    if isinstance(head, Composite):
        for part, channels, _ in head.runs():
            free[:, channels] = not part.levels
    return free


def _reached(outputs: Outputs, start: Tensor, before: Tensor, tested: list[int], sizes: Tensor) -> int:
    """Counts the elements whose outputs become NaN with elements that are not drawn yet, and do not change else."""
    reached = torch.zeros_like(sizes)
    for steps, _ in _batches(tested, outputs.batch, kinds=("NaN",)):
        inputs = outputs.head.to_input(start).clone()
        inputs[_later(outputs.order, steps) & reads_numbers(outputs.head, inputs)] = torch.nan
        found = outputs.of_inputs(inputs).isnan() & ~before.isnan() & (outputs.steps() <= steps[:, None, None])
        reached = torch.maximum(reached, found.any(0).double())
    return int((outputs.per_element(reached) > outputs.per_element((sizes > 0).double())).sum())
