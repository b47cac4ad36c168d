"""Monotone rational-quadratic splines, in plain PyTorch.

Durkan, Bekasov, Murray, Papamakarios, "Neural spline flows" (2019): on each of K bins a quotient of two quadratics
through the bin's corners with given derivatives there (Gregory and Delbourgo, 1982).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TAILS = ("bounded", "linear", "circular")
"""Tails in the order in which the kernels number them."""


def parameters_of(bins: int, tails: int) -> int:
    """Returns the number of parameters of each element for a spline of ``bins`` bins."""
    return 3 * bins + (1, -1, 0)[tails]


def bins_of(parameters: int, tails: int) -> int:
    """Returns the number of bins for so many parameters; raises ValueError where there is none."""
    derivatives = parameters - (1, -1, 0)[tails]
    if derivatives % 3 or derivatives < 3:
        raise ValueError(
            f"parameters must have {('3 K + 1', '3 K - 1', '3 K')[tails]} numbers for each element of x, for K "
            f"bins with {TAILS[tails]!r} tails, got {parameters}"
        )
    return derivatives // 3


def rq_spline(
    x: Tensor,
    parameters: Tensor,
    inverse: bool,
    tails: int,
    left: float,
    right: float,
    bottom: float,
    top: float,
    min_width: float,
    min_height: float,
    min_derivative: float,
) -> tuple[Tensor, Tensor]:
    """``(y, log |dy/dx|)``, elementwise.

    With bin k of width w, height h, slope s = h / w, derivatives d0, d1 at its ends and t = (x - x_k) / w::

        y = y_k + h (s t^2 + d0 t (1 - t)) / (s + (d0 + d1 - 2 s) t (1 - t))
        dy/dx = s^2 (d1 t^2 + 2 s t (1 - t) + d0 (1 - t)^2) / (s + (d0 + d1 - 2 s) t (1 - t))^2

    Args:
        x: [...].
        parameters: [..., P]: K widths and K heights before their softmax, then derivatives before their softplus: K + 1
            for a bounded spline, K - 1 for linear tails (1 at both ends), K for a circular one (equal at both ends).
        tails: index in ``TAILS``.
    """
    bins = bins_of(parameters.shape[-1], tails)
    widths = (right - left) * (min_width + (1 - min_width * bins) * parameters[..., :bins].softmax(-1))
    heights = (top - bottom) * (min_height + (1 - min_height * bins) * parameters[..., bins : 2 * bins].softmax(-1))
    derivatives = min_derivative + F.softplus(parameters[..., 2 * bins :])
    if tails == TAILS.index("linear"):
        derivatives = F.pad(derivatives, (1, 1), value=1.0)
    elif tails == TAILS.index("circular"):
        derivatives = torch.cat([derivatives, derivatives[..., :1]], -1)
    low, high, sizes = (bottom, top, heights) if inverse else (left, right, widths)
    inside = (x >= low) & (x <= high)
    safe = torch.where(inside, x, low)
    knots = low + sizes.cumsum(-1)[..., :-1]
    bin = (safe.unsqueeze(-1) >= knots).sum(-1, keepdim=True)

    def of_bin(table: Tensor) -> Tensor:
        return table.gather(-1, bin).squeeze(-1)

    w, h, d0, d1 = of_bin(widths), of_bin(heights), of_bin(derivatives), of_bin(derivatives[..., 1:])
    x0, y0 = left + of_bin(widths.cumsum(-1) - widths), bottom + of_bin(heights.cumsum(-1) - heights)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        v = safe - y0
        a, b, c = v * bend + h * (s - d0), h * d0 - v * bend, -s * v
        square = b.square() - 4 * a * c
        root = torch.where(square > 0, square, 1).sqrt() * (square > 0)
        q = -(b + torch.where(b < 0, -root, root)) / 2  # the sum of equal signs: nothing cancels
        t = (torch.where(b < 0, q, c) / torch.where(b < 0, a, q)).clamp(0, 1)
    else:
        t = ((safe - x0) / w).clamp(0, 1)
    u = t * (1 - t)
    denominator = s + bend * u
    log_slope = (s.square() * (d1 * t.square() + 2 * s * u + d0 * (1 - t).square()) / denominator.square()).log()
    if inverse:
        y, log_det = x0 + t * w, -log_slope
    else:
        y, log_det = y0 + h * (s * t.square() + d0 * u) / denominator, log_slope
    return torch.where(inside, y, x), torch.where(inside, log_det, 0)


def case(
    count_of: Callable[[int, int], int],
    *shape: int,
    bins: int = 8,
    tails: str = "linear",
    inverse: bool = False,
    scale: float = 1.0,
) -> Callable[[torch.Generator], dict]:
    """Returns a function that makes arguments of a public spline function; without linear tails, x is inside.

    Args:
        count_of: the number of parameters of so many bins with the tails of that number.
    """

    def make(generator: torch.Generator) -> dict:
        x = 2 * torch.randn(shape, generator=generator)
        return {
            "x": x if tails == "linear" else x.clamp(-2.9, 2.9),
            "parameters": scale * torch.randn(*shape, count_of(bins, TAILS.index(tails)), generator=generator),
            "inverse": inverse,
            "tails": tails,
        }

    return make


_case = functools.partial(case, parameters_of)
CASES = {
    "small": _case(5, bins=3),
    "small inverse": _case(2, 2, bins=2, inverse=True),
    "small bounded": _case(3, bins=1, tails="bounded"),
    "small circular inverse": _case(3, bins=3, tails="circular", inverse=True),
    "none": _case(0, 3),
    "scalar": _case(),
    "one": _case(1, 1, bins=1, tails="circular"),
    "prime": _case(13, 7, bins=5),
    "a vector and one": _case(17, bins=16, tails="bounded"),
    "inverse": _case(127, 3, inverse=True),
    "circular": _case(65, tails="circular"),
    "large parameters": _case(64, 5, scale=10.0),
    "large parameters, inverse": _case(64, 5, scale=10.0, inverse=True, tails="bounded"),
    "two bins": _case(33, bins=2),
    "many bins": _case(19, bins=64),
    "many bins, inverse": _case(19, bins=64, inverse=True),
}
