"""The elementwise transform of Flow++ by a mixture of logistics, in plain PyTorch.

Ho, Chen, Srinivas, Duan, Abbeel, "Flow++: improving flow-based generative models with variational dequantization and
architecture design" (ICML 2019), section 3.3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 100
"""Steps of the inverse: enough to halve any bracket down to the last bits; Newton steps usually need fewer."""


def _transform(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """``(log cdf - log survival, log of its derivative)``.

    The derivative is pdf / (cdf survival). Of the quotient that is large in the tail where x is, the logarithm is taken
    component by component, so that no large logarithms are subtracted.
    """
    z = (x.unsqueeze(-1) - means) * (-log_scales).exp()
    up, down = F.logsigmoid(z), F.logsigmoid(-z)
    log_cdf, log_survival = (logits + up).logsumexp(-1), (logits + down).logsumexp(-1)
    whole, y = logits.logsumexp(-1), log_cdf - log_survival
    above = ((logits + down).log_softmax(-1) + up - log_scales).logsumexp(-1) - (log_cdf - whole)
    below = ((logits + up).log_softmax(-1) + down - log_scales).logsumexp(-1) - (log_survival - whole)
    return y, torch.where(y > 0, above, below)


def _solve(y: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Solves for x: Newton steps that stay in a bracket and shorten, halvings of the bracket otherwise.

    The components' own inverses ``mean + scale y`` lie on both sides of the mixture's.
    """
    ends = means + log_scales.exp() * y.unsqueeze(-1)
    low, high = ends.amin(-1), ends.amax(-1)
    x, last = (logits.softmax(-1) * ends).sum(-1).clamp(low, high), high - low
    for _ in range(STEPS):
        found, log_slope = _transform(x, logits, means, log_scales)
        over = found - y
        low, high = torch.where(over < 0, x, low), torch.where(over < 0, high, x)
        move = over * (-log_slope).exp()
        newton = (move.abs() <= last / 2) & (x - move >= low) & (x - move <= high)
        following = torch.where(newton, x - move, low + (high - low) / 2)
        following = torch.where(over == 0, x, following)
        x, last = following, (following - x).abs()
    return x


def logistic_mixture_cdf(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """``y = logit(F(x))`` with ``F(x) = sum_m softmax(logits)_m sigmoid((x - mean_m) / scale_m)``, and ``log dy/dx``.

    The inverse has derivatives to the third order: its root is a constant, followed by two Newton steps, which change
    its derivatives only.

    Args:
        x: [...].
        parameters: [..., 3 M]: M logits, M means, M logarithms of scales.
    """
    raw = parameters.chunk(3, -1)
    if not inverse:
        return _transform(x, *raw)
    root = _solve(x.detach(), *(p.detach() for p in raw))
    for _ in range(2):
        found, log_slope = _transform(root, *raw)
        over = found - x
        root = root - (over - over.detach()) * (-log_slope).exp()
    return root, -_transform(root, *raw)[1]


def _case(*shape: int, components: int = 4, inverse: bool = False, reach: float = 2.0, scale: float = 1.0):
    def make(generator: torch.Generator) -> dict:
        return {
            "x": reach * torch.randn(shape, generator=generator),
            "parameters": scale * torch.randn(*shape, 3 * components, generator=generator),
            "inverse": inverse,
        }

    return make


CASES = {
    "small": _case(5, components=3),
    "small inverse": _case(2, 2, components=2, inverse=True),
    "small, one component": _case(3, components=1),
    "none": _case(0, 3),
    "scalar": _case(),
    "scalar, inverse": _case(inverse=True),
    "one": _case(1, 1, components=1),
    "prime": _case(13, 7, components=5),
    "a vector and one": _case(17, components=8),
    "inverse": _case(127, 3, inverse=True),
    "inverse, one component": _case(33, components=1, inverse=True),
    "many components": _case(19, components=64),
    "many components, inverse": _case(19, components=64, inverse=True),
    "far away": _case(40, 2, reach=1000.0),
    "far away, inverse": _case(40, 2, reach=1000.0, inverse=True),
    "large parameters": _case(64, 3, scale=3.0, reach=5.0),
}
