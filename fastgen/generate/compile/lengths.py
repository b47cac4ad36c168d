"""Whether a network is the same at any length: the operators that it calls at several lengths, compared."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastgen.generate.compile.call_loops import Call, CalledLoops, departure_of_loops
from fastgen.generate.frontend.untouched import borrowed

_MOST = 1 << 24
"""Elements of a constant that is still computed to be compared."""


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
        self.note(operator, leaves, [r for r in tree_leaves(result) if isinstance(r, Tensor)])
        return result

    def note(self, operator, leaves: list, outputs: list[Tensor]) -> None:
        """Lists a call."""
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

    def _told(self, tensor: Tensor) -> object:
        return self._from.get(id(tensor), "input") if tensor.is_meta else tensor

    def _meta(self, leaf):
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        if id(leaf) not in self._without_values:
            self._alive.append(leaf)
            self._without_values[id(leaf)] = leaf.to("meta")
        return self._without_values[id(leaf)]


class _WholeRecurrences(TorchFunctionMode):
    """Lists a recurrence of PyTorch as one call, not as those of its positions."""

    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = sys.intern(getattr(function, "__name__", ""))
        if name not in ("lstm", "gru", "rnn_tanh", "rnn_relu") or not args[0].is_meta or len(args) != 9:
            return function(*args, **(kwargs or {}))
        x, states, *_, bidirectional, _ = args
        states = [states] if isinstance(states, Tensor) else [*states]
        output = x.new_empty(*x.shape[:-1], states[0].shape[-1] * (2 if bidirectional else 1))
        outputs = [output, *(state.to("meta", copy=True) for state in states)]
        self.calls.note(name, tree_leaves(args), outputs)
        return tuple(outputs)


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


def calls_of(network: nn.Module, inputs: tuple) -> CalledLoops | None:
    """Returns the operators that a network calls; None where it cannot be followed."""
    calls = _called(network, _without_values(inputs))
    return None if calls is None else CalledLoops(calls)


def departure(network: nn.Module, known: CalledLoops | None, other: tuple, periods: int) -> str:
    """Returns why a network is not the same for the inputs ``other`` as where it made the calls ``known``.

    The inputs are so many periods longer. The network is the same where the same operators are called on the same
    results, where sizes and whole numbers grow by as much in every period, and where constants go on as they began; a
    loop may go on longer, by as many iterations for every period. Returns "" where it is, or where that cannot be said.
    """
    if known is None:
        return ""
    try:
        there = _called(network, _without_values(other), None if known.any else known.calls, periods)
    except _Departs as found:
        return str(found)
    except Exception as error:  # whatever a module raises at a length that it does not take
        return f"{type(error).__name__}: {error}"
    if len(known.calls) == len(there):
        pairs = zip(known.calls, there, strict=True)
        found = next((call for before, call in pairs if not _alike(before, call, periods)), None)
    else:
        found = departure_of_loops(known, CalledLoops(there), periods, _goes_on)
    return "" if found is None else f"{found.operator}, {found.where}"


def _called(
    network: nn.Module, inputs: tuple, expected: list[Call] | None = None, periods: int = 0
) -> list[Call] | None:
    """Returns the calls of a network; None where it cannot be followed, unless it is compared with what is expected."""
    with borrowed(network):
        try:
            with _Calls(expected, periods) as found, _WholeRecurrences(found):
                network(*inputs)
        except Exception:  # whatever a module raises that wants values: not every network can be followed
            if periods:
                raise
            return None
    return found.calls


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
