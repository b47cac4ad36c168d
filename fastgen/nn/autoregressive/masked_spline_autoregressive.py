"""The autoregressive spline layer of neural spline flows."""

from __future__ import annotations

from fastgen.nn.autoregressive.made import Order, ResMADE
from fastgen.nn.autoregressive.masked_autoregressive import MaskedAutoregressive
from fastgen.nn.elementwise.spline_transform import SplineTransform


class MaskedSplineAutoregressive(MaskedAutoregressive):
    """A monotone spline of every feature, its parameters a ``ResMADE``'s: ``forward(x, context=None)`` and ``inverse``
    return (u or x [N, D], log_det [N]).

    ``forward`` is one parallel pass; ``inverse`` goes feature by feature and computes every hidden unit once
    (``MaskedAutoregressive``). ``fastgen.ops.rq_spline`` and ``fastgen.ops.cubic_spline`` have the formulas.

    Args:
        features: D.
        width, blocks, activation, order, hidden_degrees, context_features, dropout: of the ``ResMADE``.
        bins, tails, bound, kind, least: of the ``SplineTransform``.

    Raises:
        ValueError: what ``ResMADE`` and ``SplineTransform`` refuse; a value outside the interval of a spline without
            tails; shapes that do not fit, when it is called.

    Reference: Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows", NeurIPS 2019.

    Example:
        >>> import torch
        >>> layer = MaskedSplineAutoregressive(5, width=32, bins=4)
        >>> x = torch.randn(8, 5)
        >>> u, log_det = layer(x)
        >>> torch.allclose(layer.inverse(u)[0], x, atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        *,
        bins: int = 8,
        tails: str = "linear",
        bound: float | tuple[float, float, float, float] = 3.0,
        kind: str = "rational-quadratic",
        width: int = 256,
        blocks: int = 2,
        activation: str = "relu",
        order: Order = "natural",
        hidden_degrees: str = "sequential",
        context_features: int | None = None,
        dropout: float = 0.0,
        **least: float,
    ) -> None:
        transform = SplineTransform(bins, tails, bound, kind=kind, **least)
        network = ResMADE(
            features,
            transform.parameters_per_element,
            width,
            blocks,
            activation=activation,
            order=order,
            hidden_degrees=hidden_degrees,
            context_features=context_features,
            dropout=dropout,
        )
        super().__init__(network, transform)
