"""The affine autoregressive layers of MAF and IAF: one direction is parallel, the other sequential and still fast."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fastgen.nn.autoregressive.made import MADE
from fastgen.nn.flow.flow_layer import FlowLayer
from fastgen.ops.precision import in_float32
from fastgen.ops.sequential_affine import sequential_affine
from fastgen.reference.sequential_affine import PARAMETERISATIONS, parallel


class MaskedAffineAutoregressive(FlowLayer):
    """An affine step of a masked autoregressive flow: ``forward(x, context=None)`` and ``inverse`` return
    (u or x [N, D], log_det [N]).

    ``forward`` shifts and scales every feature by what a ``MADE`` says of the features before it, in one parallel pass.
    ``inverse`` goes feature by feature with ``fastgen.ops.sequential_affine``, which has the formulas: it costs about
    one pass, too.

    Args:
        features: D.
        hidden, activation, order, hidden_degrees, context_features: of the ``MADE``.
        parameterisation: "exp" (MAF), "sigmoid", "softplus" (nflows) or "bounded" (zuko).
        min_scale: of "sigmoid" and "softplus".
        bound: of "bounded".

    Raises:
        ValueError: an unknown name; what ``MADE`` refuses; shapes that do not fit, when it is called.

    Reference: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017.

    Example:
        >>> import torch
        >>> layer = MaskedAffineAutoregressive(5, hidden=(32, 32))
        >>> x = torch.randn(8, 5)
        >>> u, log_det = layer(x)
        >>> torch.allclose(layer.inverse(u)[0], x, atol=1e-4)
        True
    """

    takes_context = True

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (512, 512),
        *,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
        parameterisation: str = "exp",
        min_scale: float = 1e-3,
        bound: float = math.log(1e3),
    ) -> None:
        super().__init__()
        if parameterisation not in PARAMETERISATIONS:
            allowed = ", ".join(map(repr, PARAMETERISATIONS))
            raise ValueError(f"parameterisation must be one of {allowed}, got {parameterisation!r}")
        self.made = MADE(
            features,
            hidden,
            activation=activation,
            order=order,
            hidden_degrees=hidden_degrees,
            context_features=context_features,
        )
        self.parameterisation, self.min_scale, self.bound = parameterisation, min_scale, bound

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [N, D] to (u, log_det [N]), all features at once."""
        shift, raw = self.made(x, context)
        number = PARAMETERISATIONS.index(self.parameterisation)
        u, log_det = parallel(*in_float32(x, shift, raw), number, self.min_scale, self.bound)
        return u.to(x.dtype), log_det

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u [N, D] to (x, log_det [N] of that), feature by feature."""
        return sequential_affine(
            u,
            [parameter for layer in self.made.layers for parameter in (layer.weight, layer.bias)],
            self.made.degrees,
            context=self.made.offset(context),
            activation=self.made.activation,
            parameterisation=self.parameterisation,
            min_scale=self.min_scale,
            bound=self.bound,
        )

    def extra_repr(self) -> str:
        return f"{self.parameterisation!r}"


class InverseAutoregressive(MaskedAffineAutoregressive):
    """An affine step of an inverse autoregressive flow: ``MaskedAffineAutoregressive`` turned round.

    Here ``inverse``, noise to data, is the parallel pass: sampling is the fast direction, and so is the density of what
    was sampled. ``forward``, data to noise, goes feature by feature, at about the cost of one pass.

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved variational inference with inverse
    autoregressive flow", NeurIPS 2016.

    Example:
        >>> import torch
        >>> layer = InverseAutoregressive(5, hidden=(32, 32), parameterisation="sigmoid")
        >>> x, log_det = layer.inverse(torch.randn(8, 5))
        >>> x.shape, log_det.shape
        (torch.Size([8, 5]), torch.Size([8]))
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [N, D] to (z, log_det [N]), feature by feature."""
        return super().inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z [N, D] to (x, log_det [N] of that), all features at once."""
        return super().forward(z, context)
