"""Fields of convolutions: PyTorch's convolutions, channels last in memory, of x and of the tangents of all probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastgen.ops.field import Field
from fastgen.reference.hutchinson_trace import CONV


@dataclass(frozen=True, eq=False)
class ConvField(Field):
    """A field that maps x [N, C, H, W] to the same shape by at least two convolutions with an activation between them.

    ``fastgen.ops.hutchinson_trace`` knows its derivatives: all probes go through a layer in one convolution, the
    activations' derivatives are computed once, and the gradients are written by hand. ``fastgen.nn.ConvNetField`` makes
    one of its layers, at a time. The convolutions have stride 1, and zeros around the image keep its size.

    Args:
        weights: [out, in, kh, kw] of each layer, kh and kw odd; the first takes C channels, the last gives C.
        biases: [out] of each layer, or four dimensions that broadcast to [N, out, H, W]: [N, out, 1, 1] where each
            sample has its own, as of a context.
        activation: "tanh", "softplus", "swish" (x sigmoid(x)) or "elu".
        borders: None, or [out, 1, kh, kw] of each layer: the weights of one more input channel, of ones (with zeros
            around it too), as of a time.

    Raises:
        ValueError: an unknown activation, fewer than two layers, shapes that do not follow one another, even kernels.

    Example:
        >>> weights = [torch.randn(8, 3, 3, 3), torch.randn(3, 8, 3, 3)]
        >>> field = ConvField(weights, [torch.zeros(8), torch.zeros(3)], "softplus")
        >>> field(torch.randn(5, 3, 4, 4)).shape
        torch.Size([5, 3, 4, 4])
    """

    borders: Sequence[Tensor] | None = None

    linear = CONV
    plane = ", H, W"

    def __post_init__(self) -> None:
        super().__post_init__()
        channels = features = self.weights[0].shape[1] if self.weights[0].dim() == 4 else -1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            odd = weight.dim() == 4 and weight.shape[1] == channels and weight.shape[2] % 2 and weight.shape[3] % 2
            fits = odd and bias.dim() in (1, 4) and bias.shape[bias.dim() == 4] == len(weight)
            if not fits:
                raise ValueError(
                    f"weights[{i}] and biases[{i}] must have shapes [out, {channels if channels > 0 else 'C'}, kh, kw] "
                    "with kh and kw odd, and [out] or [N, out, 1, 1], got "
                    f"{tuple(weight.shape)} and {tuple(bias.shape)}"
                )
            channels = len(weight)
        if channels != features:
            raise ValueError(f"the last of weights must have {features} outputs, as x has channels, got {channels}")
        if self.borders is None:
            return
        wanted = [(len(weight), 1, *weight.shape[2:]) for weight in self.weights]
        if [tuple(border.shape) for border in self.borders] != wanted:
            given = ", ".join(str(tuple(border.shape)) for border in self.borders)
            raise ValueError(f"borders must have shapes {', '.join(map(str, wanted))}, got {given}")

    def _parameters(self, x: Tensor) -> list[Tensor]:
        biases = [bias if bias.dim() == 4 else bias[:, None, None] for bias in self.biases]
        if self.borders is not None:
            ones = x.new_ones(1, 1, *x.shape[2:], dtype=self.borders[0].dtype)
            maps = [self.linear.push(ones, border) for border in self.borders]
            biases = [bias + border for bias, border in zip(biases, maps, strict=True)]
        return [tensor for layer in zip(self.weights, biases, strict=True) for tensor in layer]
