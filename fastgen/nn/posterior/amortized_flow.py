"""The base of flows of approximate posteriors: all parameters of a layer in one vector, which an encoder may
give for every sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.ops.precision import in_float32, without_autocast


class AmortizedFlow(FlowLayer):
    """A map of vectors whose parameters are the layer's own or given for every sample: ``forward(x)`` or
    ``forward(x, parameters)``, and ``inverse`` alike, return (y or x [N, D], log_det [N]).

    x is float [N, D], parameters [N, parameter_size]; half precision is computed in float32, autocast included, and
    log_det is float32 or float64. A subclass has ``initial``, ``transform`` and ``inverse_transform``.

    Args:
        features: D.
        parameter_size: numbers that determine the map.
        amortized: the layer has no parameters; every call gives them.

    Raises:
        ValueError: features below 1; an x or parameters of another shape; parameters missing, or given to a layer with
            its own.
    """

    def __init__(self, features: int, parameter_size: int, amortized: bool) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.features, self.parameter_size, self.amortized = features, parameter_size, amortized

    def begin(self) -> None:
        """Makes the layer's own parameters, if it is to have any; the last thing of a subclass's constructor."""
        self.register_parameter("own", None if self.amortized else nn.Parameter(self.initial()))

    def initial(self) -> Tensor:
        """[parameter_size], to begin with: near the identity, drawn from PyTorch's generator."""
        raise NotImplementedError

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, D] to (y, log_det [N]) by parameters [N or 1, parameter_size], all of one dtype, 32 bits at least."""
        raise NotImplementedError

    def inverse_transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """y [N, D] to (x, log_det [N] of that)."""
        raise NotImplementedError

    def forward(self, x: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x to (y, log_det [N]), in closed form."""
        return self._run(self.transform, x, "x", parameters)

    def inverse(self, y: Tensor, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that)."""
        return self._run(self.inverse_transform, y, "y", parameters)

    def _run(self, function, x: Tensor, name: str, parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(f"{name} must have shape [N, {self.features}], got {tuple(x.shape)}")
        if (parameters is None) == self.amortized:
            needed, given = ("given", "None") if self.amortized else ("None", "a tensor")
            raise ValueError(f"parameters must be {needed} for a layer with amortized={self.amortized}, got {given}")
        if parameters is not None and parameters.shape != (x.shape[0], self.parameter_size):
            wanted = x.shape[0], self.parameter_size
            raise ValueError(f"parameters must have shape {wanted}, got {tuple(parameters.shape)}")
        wide, raw = in_float32(x, self.own[None] if parameters is None else parameters)
        with without_autocast(x):
            y, log_det = function(wide, raw)
        return y.to(x.dtype), log_det

    def extra_repr(self) -> str:
        return f"{self.features}, amortized={self.amortized}"


class LinearAmortization(FlowLayer):
    """Gives an ``AmortizedFlow`` the parameters that a linear map makes of the context: ``forward(x, context)`` and
    ``inverse`` return (y or x [N, D], log_det [N]).

    Args:
        layer: with ``amortized=True``.
        context_features: width of the context.

    Raises:
        ValueError: the layer has parameters of its own.

    Example:
        >>> from fastgen.nn import Planar
        >>> layer = LinearAmortization(Planar(4, amortized=True), context_features=3)
        >>> layer(torch.randn(5, 4), torch.randn(5, 3))[1].shape
        torch.Size([5])
    """

    takes_context = True

    def __init__(self, layer: AmortizedFlow, context_features: int) -> None:
        super().__init__()
        if not layer.amortized:
            raise ValueError(f"layer must be amortized, got a {type(layer).__name__} with parameters of its own")
        self.layer, self.net = layer, nn.Linear(context_features, layer.parameter_size)
        with torch.no_grad():
            self.net.bias.copy_(layer.initial())

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """x to (y, log_det [N])."""
        return self.layer(x, self.net(context))

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """y to (x, log_det [N] of that)."""
        return self.layer.inverse(y, self.net(context))


class DiagonalAffine(AmortizedFlow):
    """``y = shift + exp(log_scale) x``: of standard normal x, a Gaussian with a diagonal covariance.

    The parameters are the shift [D] and the log-scale [D]; the arguments, shapes and errors are ``AmortizedFlow``'s.

    Example:
        >>> layer = DiagonalAffine(2, amortized=True)
        >>> layer(torch.ones(1, 2), torch.tensor([[3.0, 4.0, 0.0, 0.0]]))[0]
        tensor([[4., 5.]])
    """

    def __init__(self, features: int, *, amortized: bool = False) -> None:
        super().__init__(features, 2 * features, amortized)
        self.begin()

    def initial(self) -> Tensor:
        return torch.zeros(self.parameter_size)

    def transform(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = parameters.chunk(2, 1)
        return shift + log_scale.exp() * x, log_scale.sum(1).expand(x.shape[0])

    def inverse_transform(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = parameters.chunk(2, 1)
        return (y - shift) * (-log_scale).exp(), -log_scale.sum(1).expand(y.shape[0])
