"""The multi-scale architecture: after each scale half of the channels is done."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer, chosen, no_log_det, optional_arguments
from fastgen.ops.seeds import fold_in


class MultiScale(FlowLayer):
    """Flows at several scales: ``forward(x, context=None)`` and ``inverse`` return (z [N, D] or x, log_det [N]).

    x goes through the first scale; the second half of the channels that come out (without the odd one) is final, the
    rest goes through the next scale, and all of what leaves the last is final. z holds the final numbers in the order
    in which they became so. A learned prior of what is factored out is a layer at a scale's end:
    ``Inverse(AffineCoupling(net))`` standardises the second half by what the network says of the first.

    Args:
        scales: flow layers on [N, C, ...]; with a ``Squeeze2d`` where the resolution is halved.
        shapes: [C, ...] of what leaves each of them.

    Raises:
        ValueError: no scale; not one shape a scale, or fewer than 2 channels to be halved; a z of another shape.

    Reference: Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", ICLR 2017.

    Example:
        >>> from fastgen.nn import ActNorm, FlowSequential, Squeeze2d
        >>> scales = [FlowSequential(Squeeze2d(), ActNorm(4)), FlowSequential(Squeeze2d(), ActNorm(8))]
        >>> flow = MultiScale(scales, [(4, 4, 4), (8, 2, 2)])
        >>> flow(torch.randn(5, 1, 8, 8))[0].shape
        torch.Size([5, 64])
    """

    takes_context = True
    takes_seed = True

    def __init__(self, scales: Sequence[nn.Module], shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        if not scales or len(scales) != len(shapes):
            raise ValueError(
                f"scales must be one or more, each with its shape, got {len(scales)} scales and {len(shapes)} shapes"
            )
        for shape in shapes[:-1]:
            if shape[0] < 2:
                raise ValueError(f"shapes must have 2 channels at least, to be halved, got {tuple(shape)}")
        self.scales, self.shapes = nn.ModuleList(scales), [tuple(shape) for shape in shapes]
        self._final = [(shape[0] // 2, *shape[1:]) for shape in self.shapes[:-1]] + [self.shapes[-1]]
        self._optional = [optional_arguments(scale) for scale in scales]

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x to (z, log_det [N])."""
        total, done = no_log_det(x), []
        for i, (scale, shape, final) in enumerate(zip(self.scales, self.shapes, self._final, strict=True)):
            x, log_det = scale(x, **chosen(self._optional[i], context, fold_in(seed, i)))
            if x.shape[1:] != shape:
                raise ValueError(
                    f"scale {i} must return shape [N, {', '.join(map(str, shape))}], as shapes says, got "
                    f"{tuple(x.shape)}"
                )
            total = total + log_det
            x, part = x.split((shape[0] - final[0], final[0]), 1)
            done.append(part.flatten(1))
        return torch.cat(done, 1), total

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z to (x, log_det [N] of that)."""
        sizes = [prod(shape) for shape in self._final]
        if z.dim() != 2 or z.shape[1] != sum(sizes):
            raise ValueError(f"z must have shape [N, {sum(sizes)}], got {tuple(z.shape)}")
        parts = [part.unflatten(1, shape) for part, shape in zip(z.split(sizes, 1), self._final, strict=True)]
        total, x = no_log_det(z), None
        for i in reversed(range(len(self.scales))):
            x = parts[i] if x is None else torch.cat((x, parts[i]), 1)
            x, log_det = self.scales[i].inverse(x, **chosen(self._optional[i], context, fold_in(seed, i)))
            total = total + log_det
        return x, total
