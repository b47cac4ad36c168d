"""A module as a function from events to the head's parameters, whether it can be compiled or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from fastgen.generate.compile.inputs import advice
from fastgen.generate.errors import CompileError
from fastgen.generate.orders import Order
from fastgen.generate.request import CompileRequest
from fastgen.generate.verification.precision import Precision


@dataclass(frozen=True)
class Element:
    """One number of the event: its position, its channel, and the step that draws it."""

    position: tuple[int, ...]
    channel: int
    step: int
    channels: int
    """Of the event."""

    @classmethod
    def at(cls, order: Order, channel: int, position: int) -> Element:
        """Returns the element of a channel and a position in natural order."""
        return cls(order.coordinates(position), channel, int(order.steps[channel, position]), order.channels)

    @property
    def name(self) -> str:
        at = self.position[0] if len(self.position) == 1 else self.position
        return f"{at}" if self.channels == 1 else f"{at} channel {self.channel}"

    def __str__(self) -> str:
        return f"{self.name} (step {self.step})"


class Outputs:
    """The parameters ``[batch, P, n]`` of batches of one size, each in its place.

    PyTorch's kernels may sum in another order in another place of a batch, or in a batch of another size: only numbers
    of one place are compared.
    """

    def __init__(self, request: CompileRequest, batch: int) -> None:
        self.request, self.order, self.head = request, request.order, request.head
        self.batch = batch
        self.only_pairs = False
        """Whether the module takes no other batch than one of two, as an exported one does."""
        example = None if request.layout is None else request.layout.example(batch)
        self.leaves: list[Tensor] = tree_flatten(example)[0] if example is not None else []

    @classmethod
    def of(cls, request: CompileRequest, batch: int) -> Outputs:
        """Returns the outputs in batches of ``batch``, or of two where the module takes no other.

        Raises:
            CompileError: the module cannot be called.
            ValueError: the output has a layout that the head does not read.
        """
        for size in dict.fromkeys((batch, 2)):
            outputs = cls(request, size)
            levels = torch.zeros(size, *request.event_shape)
            inputs = request.head.to_input(levels.long() if request.head.levels else levels)
            try:
                with torch.no_grad():
                    output = request.forward(inputs, outputs.leaves)
            except Exception as error:  # whatever a module raises
                failed = error
                continue
            if not isinstance(output, Tensor):
                raise CompileError(
                    f"the network must return a tensor, got a {type(output).__name__}: pass an adapter that takes the "
                    "head's parameters from it, such as adapter=lambda output: output[0]"
                )
            request.head.arrange(output, request.event_shape)
            outputs.only_pairs = size != batch
            return outputs
        shape, context = (2, *request.event_shape), None if request.layout is None else request.layout.example(2)
        raise CompileError(
            f"the network does not take inputs {list(shape)} (a batch of two of event_shape {request.event_shape}): "
            f"{type(failed).__name__}: {failed}{advice(request.head, request.network, shape, context)}"
        ) from failed

    def __call__(self, levels: Tensor) -> Tensor:
        """Returns the parameters for levels ``[batch, *event_shape]``."""
        return self.of_inputs(self.head.to_input(levels))

    def of_inputs(self, inputs: Tensor) -> Tensor:
        """Returns the parameters for what the network reads, ``[batch, *event_shape]``."""
        with torch.no_grad():
            output = self.request.forward(inputs, self.leaves)
        return self.head.arrange(output, self.order.event_shape).flatten(2)

    def in_precision(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the parameters with every operator computed in ``dtype``."""
        with Precision(dtype):
            return self(levels)

    def per_element(self, values: Tensor) -> Tensor:
        """Returns the greatest of an output's values ``[P, n]`` for every element that it scores, ``[C, P]``."""
        groups = self.head.groups(self.order.event_shape)
        greatest = values.unflatten(1, (groups, -1)).amax(2).T
        return greatest.repeat_interleave(self.order.channels // groups, 0)

    def parameters_of(self, channel: int) -> slice:
        """Returns the parameters that score a channel."""
        groups, channels = self.head.groups(self.order.event_shape), self.order.channels
        count = self.head.resolve(self.order.event_shape).parameters_per_group
        group = channel // (channels // groups)
        return slice(group * count, (group + 1) * count)

    def steps(self) -> Tensor:
        """Returns the step ``[P, n]`` at which a parameter is used: the first of the channels that it scores."""
        groups, channels = self.head.groups(self.order.event_shape), self.order.channels
        count = self.head.resolve(self.order.event_shape).parameters_per_group
        return torch.from_numpy(self.order.steps[:: channels // groups]).repeat_interleave(count, 0).T


def apart(a: Tensor, b: Tensor) -> Tensor:
    """``|a - b|`` in float64; 0 where both are the same infinity or NaN, infinite where one is and the other is not."""
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=torch.inf))
