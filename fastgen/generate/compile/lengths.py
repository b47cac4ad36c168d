"""Whether a network is the same at any length: the operators that it calls at several lengths, compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastgen.generate.frontend.untouched import borrowed

_MOST = 1 << 24
"""Elements of a constant that is still computed to be compared."""


@dataclass(frozen=True)
class Call:
    """An operator that took part in computing the output."""

    operator: object
    leaves: list
    """Its arguments: tensors that depend on the input as (number of the call, of its output), others as they are."""
    shapes: list[torch.Size]
    where: str


class _Departs(Exception):
    """The network is seen to be another; the message says where."""


class _Calls(TorchDispatchMode):
    """Lists the operators that see tensors without values; what depends on none of them is computed as it is."""

    def __init__(self, expected: list[Call] | None = None, periods: int = 0) -> None:
        super().__init__()
        self.expected, self.periods = expected, periods
        self.calls: list[Call] = []
        self._from: dict[int, tuple] = {}
        self._alive: list[Tensor] = []
        self._without_values: dict[int, Tensor] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
            if _elements(leaves) > _MOST:
                raise _Departs(f"a constant of more than {_MOST} elements, {_line()}")
            device = kwargs.get("device")
            return operator(
                *args, **(kwargs if device is None or device.type != "meta" else kwargs | {"device": "cpu"})
            )
        args, kwargs = tree_map(self._meta, (args, kwargs))
        result = operator(*args, **kwargs)
        outputs = [r for r in tree_leaves(result) if isinstance(r, Tensor)]
        told = [self._told(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for number, output in enumerate(outputs):
            self._from[id(output)] = (len(self.calls), number)
        self._alive += outputs
        call = Call(operator, told, [o.shape for o in outputs], _line())
        number = len(self.calls)
        self.calls.append(call)
        if self.expected is not None and not (
            number < len(self.expected) and _alike(self.expected[number], call, self.periods)
        ):
            raise _Departs(f"{operator}, {call.where}")
        return result

    def _told(self, tensor: Tensor) -> object:
        return self._from.get(id(tensor), "input") if tensor.is_meta else tensor

    def _meta(self, leaf):
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        if id(leaf) not in self._without_values:
            self._alive.append(leaf)
            self._without_values[id(leaf)] = leaf.to("meta")
        return self._without_values[id(leaf)]


def _elements(leaves: list) -> int:
    """Returns an upper bound on the elements of the result of an operator without an input."""
    shapes = [leaf.shape for leaf in leaves if isinstance(leaf, Tensor)]
    if shapes:
        try:
            return torch.broadcast_shapes(*shapes).numel()
        except RuntimeError:
            return 0
    product = 1
    for leaf in leaves:
        product *= max(1, abs(leaf)) if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf < 1 << 60 else 1
    return product


def _line() -> str:
    """Returns the line of the user's source that is being executed."""
    frame = sys._getframe(2)
    while frame is not None and ("/torch/" in (name := frame.f_code.co_filename) or "/fastgen/generate/" in name):
        frame = frame.f_back
    return "an unknown line" if frame is None else f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'


def departure(network: nn.Module, known: tuple, other: tuple, periods: int) -> str:
    """Returns why a network is not the same for the inputs ``other`` as for ``known``, so many periods shorter.

    It is the same where the same operators are called on the same results, where sizes and whole numbers grow by as
    much in every period, and where constants go on as they began. Returns "" where it is, or where that cannot be
    said.
    """
    known, other = _without_values(known), _without_values(other)
    with borrowed(network):
        try:
            with _Calls() as here:
                network(*known)
        except Exception:  # whatever a module raises that wants values: not every network can be followed
            return ""
        try:
            with _Calls(here.calls, periods) as there:
                network(*other)
        except _Departs as found:
            return str(found)
        except Exception as error:  # whatever a module raises at a length that it does not take
            return f"{type(error).__name__}: {error}"
    return "" if len(here.calls) == len(there.calls) else f"{here.calls[-1].operator}, {here.calls[-1].where}"


def _without_values(inputs: tuple):
    return tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, inputs)


def _alike(a: Call, b: Call, periods: int) -> bool:
    if a.operator is not b.operator or len(a.leaves) != len(b.leaves):
        return False
    sizes = [[n for shape in call.shapes for n in shape] for call in (a, b)]
    if len(sizes[0]) != len(sizes[1]):
        return False
    pairs = [*zip(*sizes, strict=True), *zip(a.leaves, b.leaves, strict=True)]
    return all(_goes_on(x, y, periods) for x, y in pairs)


def _goes_on(a, b, periods: int) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or _continues(a, b, periods)
    if type(a) is int and type(b) is int:
        return (b - a) % periods == 0
    return type(a) is type(b) and a == b


def _continues(a: Tensor, b: Tensor, periods: int) -> bool:
    """Whether a constant goes on as it began: between elements one period apart there is always the same difference."""
    grown = [d for d in range(a.dim()) if a.shape[d] != b.shape[d]] if a.dim() == b.dim() else [0, 1]
    if not grown:
        return torch.equal(a, b)
    if len(grown) > 1 or (b.shape[grown[0]] - a.shape[grown[0]]) % periods:
        return False
    a, b = (t.movedim(grown[0], 0) for t in (a, b))
    a, b = (torch.view_as_real(t.resolve_conj()).double() if t.is_complex() else t.double() for t in (a, b))
    period = (len(b) - len(a)) // periods
    if period <= 0 or not torch.equal(b[: len(a)], a):
        return False
    step = (b[period:] - b[:-period])[max(0, len(a) - period) :]
    return torch.equal(step[period:], step[:-period])
