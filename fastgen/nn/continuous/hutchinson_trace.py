"""A field together with the trace of its Jacobian."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fastgen.ops.arguments import check_integers
from fastgen.ops.hutchinson_trace import KINDS, hutchinson_trace


class HutchinsonTrace(nn.Module):
    """The integrands of a continuous normalizing flow for an ODE solver: f(x, t) and tr(df/dx), estimated or exact.

    ``forward(x, t, context, seed=..., offset=..., noise=...)`` gives f [N, D...] and the trace [N];
    ``fastgen.ops.hutchinson_trace`` has the kinds and the errors raised. The same seed gives the same noise: keep it
    for a whole solve, as the adjoint needs, and take another for the next batch.

    Args:
        field: called as ``field(x)``, or ``field(x, t)`` where a time is given and ``field(x, t, context)`` where a
            context is; an ``MLPField`` or a ``ConvNetField`` is the fast case.
        probes: how many products estimate the trace.
        kind: "rademacher", "gaussian", "hutch++", "exact" or "closed-form".

    Raises:
        ValueError: an unknown kind, fewer than one probe.

    Example:
        >>> from fastgen.nn import MLPField
        >>> layer = HutchinsonTrace(MLPField((2, 64, 2), time="concat"), kind="exact")
        >>> y, trace = layer(torch.randn(5, 2), 0.5)
        >>> trace.shape
        torch.Size([5])
    """

    def __init__(self, field: Callable[..., Tensor], probes: int = 1, kind: str = "rademacher") -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        check_integers(probes=probes)
        super().__init__()
        self.field, self.probes, self.kind = field, probes, kind

    def forward(
        self,
        x: Tensor,
        t: float | Tensor | None = None,
        context: Tensor | None = None,
        *,
        seed: int = 0,
        offset: int = 0,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        field, given = self.field, (t,) if context is None else (t, context)
        if given != (None,):
            at = getattr(field, "at", None)
            field = at(*given) if callable(at) else lambda x: self.field(x, *given)
        return hutchinson_trace(field, x, probes=self.probes, kind=self.kind, seed=seed, offset=offset, noise=noise)

    def extra_repr(self) -> str:
        return f"probes={self.probes}, kind={self.kind!r}"
