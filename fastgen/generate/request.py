"""The request to compile: a network, its event, and how its outputs are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastgen.eval_mode import eval_mode
from fastgen.generate.arguments import check_integer, finite_number
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.adapted import Adapted, usable
from fastgen.generate.heads import Head
from fastgen.generate.orders import Order, make_order
from fastgen.generate.step_rules import StepRule

PREDICTS = ("same", "next")


@dataclass(frozen=True)
class CompileRequest:
    """A network with everything that says how events are generated from it; checked when it is made."""

    module: nn.Module | None
    """None: the program comes from a file."""
    order: Order
    head: Head
    predicts: str = "same"
    adapter: Callable | None = None
    layout: ContextLayout | None = None
    start: float = 0.0
    """The input before the first element, where ``predicts`` is "next"."""
    prefix: int = 0
    """How many first elements of a sequence are always known, so that the network may see all of them at any time."""

    @classmethod
    def checked(
        cls,
        module: nn.Module | None,
        event_shape: Sequence[int],
        head: Head,
        order: str | Sequence[int] | StepRule,
        predicts: str,
        adapter: Callable | None,
        layout: ContextLayout | None,
        start: float,
        prefix: int = 0,
    ) -> CompileRequest:
        """Returns the request.

        Raises:
            ValueError: an argument is out of range, or does not go with the others.
            CompileError: the module cannot be traced here, because of its kind or its tensors.
        """
        made = make_order(order, event_shape)
        if not isinstance(head, Head):
            raise ValueError(f"head must be one of fastgen.heads, got {head!r}")
        if predicts not in PREDICTS:
            raise ValueError(f"predicts must be 'same' or 'next', got {predicts!r:.100}")
        if predicts == "next" and made.name not in ("time", "raster"):
            raise ValueError(f"predicts='next' needs order 'time' or 'raster', got {made.name!r}")
        prefix = check_integer("prefix", prefix, 0)
        if prefix and (made.name != "time" or prefix >= made.length):
            raise ValueError(
                f"prefix must be 0, or less than the {made.length} steps of order 'time', got {prefix} in order "
                f"{made.name!r}"
            )
        module = None if module is None else usable(module)
        start = finite_number("start", start)
        return cls(module, made, head.resolve(made.event_shape), predicts, adapter, layout, start, prefix)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.order.event_shape

    @property
    def shift(self) -> int:
        """1 where an output scores the element after the last one that it reads, else 0."""
        return 1 if self.predicts == "next" else 0

    @property
    def network(self) -> Adapted:
        """The module with its adapter.

        Raises:
            CompileError: the program comes from a file, so there is no module.
        """
        if self.module is None:
            raise CompileError("this sampler was loaded from a file and has no module")
        return Adapted(self.module, self.adapter)

    def at(self, length: int) -> CompileRequest:
        """Returns the request for a sequence of another length."""
        return replace(self, order=self.order.at((*self.event_shape[:-1], length)))

    def levels(self, levels: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Returns a machine's levels ``[N, C, positions]`` as the user gets them, ``[N, *event_shape]``."""
        levels = levels.reshape(-1, *(shape or self.event_shape))
        return levels.long() if self.head.levels else levels.clone()

    def forward(self, inputs: Tensor, leaves: list[Tensor]) -> Tensor:
        """Runs the module; its inputs are shifted by one where ``predicts`` is "next"."""
        network = self.network
        if self.shift:
            flat = inputs.flatten(2) if self.order.name == "raster" else inputs
            first = torch.full_like(flat[..., :1], self.start)
            inputs = torch.cat([first, flat[..., :-1]], -1).reshape(inputs.shape)
        leaves = [leaf.clone() for leaf in leaves]  # a forward may write to what it is given
        with eval_mode(network), torch.autocast("cpu", enabled=False):
            return network(inputs.clone(), None if self.layout is None else self.layout.module_context(leaves))
