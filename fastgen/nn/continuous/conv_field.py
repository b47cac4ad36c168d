"""Vector fields of images for continuous flows, as convolutions that fastgen knows the derivatives of."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from fastgen.nn.continuous.mlp_field import FieldNet
from fastgen.ops.conv_field import ConvField
from fastgen.ops.precision import without_autocast


class ConvNetField(FieldNet):
    """Convolutions f(x, t, context) from [N, C, H, W] to the same shape, the field of a continuous normalizing flow.

    With W the layer's convolution (stride 1, zeros around the image), b its bias, t a number and sigma the logistic
    function, a layer is::

        "none":           W * h + b                                 t is not used
        "concat":         W * [t, h] + b                            t is one more channel of every layer
        "concat-squash":  (W * h + b) sigma(g t + c) + u t          FFJORD: gates and biases that depend on t

    and the activation follows every layer but the last. A context adds V context to b of the first layer.

    ``forward(x, t, context)`` is f; ``at(t, context)`` is the same field at one time as a ``ConvField``, whose trace
    ``fastgen.ops.hutchinson_trace`` finds fast.

    Args:
        sizes: the channels C, hidden ..., C, of at least one hidden layer.
        kernel: of the convolutions, odd.
        activation: "tanh", "softplus", "swish" or "elu".
        time: as above.
        context_features: F of a context [N, F] that f depends on; None for none.

    Raises:
        ValueError: fewer than three sizes, first and last unlike, an even kernel, an unknown activation or time; t
            missing where it is used, or not one number; a context missing, of another shape, or where there is none.

    Reference: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud, "FFJORD", ICLR 2019.

    Example:
        >>> field = ConvNetField((3, 16, 16, 3), activation="softplus", time="concat")
        >>> field(torch.randn(5, 3, 8, 8), 0.3).shape
        torch.Size([5, 3, 8, 8])
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        kernel: int = 3,
        activation: str = "tanh",
        time: str = "none",
        context_features: int | None = None,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, got {kernel}")
        super().__init__(sizes, activation, time, context_features)
        extra = int(time == "concat")
        self.kernel = kernel
        self.layers = nn.ModuleList(
            nn.Conv2d(width + extra, out, kernel, padding=kernel // 2) for width, out in itertools.pairwise(self.sizes)
        )
        if context_features is not None:
            self.context = nn.Linear(context_features, self.sizes[1], bias=False)

    def at(self, t: float | Tensor | None = None, context: Tensor | None = None) -> ConvField:
        """f(., t, context), both folded into the weights and biases."""
        self._check_context(context)
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        borders = None
        if self.time != "none":
            t = self._number(t, biases[0])
        with without_autocast(weights[0]):
            added = None if context is None else self.context(context.to(biases[0].dtype))
            if self.time == "concat":
                borders, weights = zip(*(weight.tensor_split([1], 1) for weight in weights), strict=True)
                borders = [border * t for border in borders]
            if self.time == "concat-squash":
                weights, biases = self._squash(t, weights, biases, added)
            elif added is not None:
                biases[0] = biases[0] + added
            if added is not None:
                biases[0] = biases[0][:, :, None, None]
            return ConvField(weights, biases, self.activation, borders)
