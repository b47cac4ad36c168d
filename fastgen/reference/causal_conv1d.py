"""Dilated causal convolution with a gate, residual and skip, in plain PyTorch.

van den Oord et al., "WaveNet: a generative model for raw audio" (2016); Dauphin, Fan, Auli, Grangier, "Language
modeling with gated convolutional networks" (2017); Shazeer, "GLU variants improve transformer" (2020).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GATES: dict[str | None, Callable[[Tensor, Tensor], Tensor] | None] = {
    None: None,
    "tanh_sigmoid": lambda a, g: torch.tanh(a) * torch.sigmoid(g),
    "glu": lambda a, g: a * torch.sigmoid(g),
    "reglu": lambda a, g: a * torch.relu(g),
    "geglu": lambda a, g: a * F.gelu(g),
    "swiglu": lambda a, g: a * F.silu(g),
}
"""Gates by name, as functions of the two halves of the channels."""


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int
) -> Tensor:
    """``y[t] = gate(bias + condition[t] + sum_k weight[k] x[t - (K - 1 - k) dilation])``.

    Args:
        x: [N, C, T].
        weight: [O, C, K].
        bias: [O].
        condition: [N, O, T], or [N, O, 1] for all t.
        state: [N, C, (K - 1) dilation], what comes before x.
        gate: the place of its name in ``GATES``; the halves of O are its arguments.
    """
    seen = torch.cat([state, x], 2)
    if x.shape[2]:
        sums = F.conv1d(seen, weight, bias, dilation=dilation) + condition
    else:  # conv1d refuses what is shorter than its kernel
        sums = seen.new_zeros(len(x), len(weight), 0) + condition[:, :, :0]
    function = list(GATES.values())[gate]
    return sums if function is None else function(*sums.chunk(2, 1))


def causal_conv1d_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    condition: Tensor,
    state: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    skip: Tensor,
    dilation: int,
    gate: int,
) -> tuple[Tensor, Tensor]:
    """With ``z = out_weight y + out_bias`` of the y above: ``x + z[:, :R]`` and ``skip + z[:, R:]``.

    Args:
        out_weight: [R + S, H] for y [N, H, T], R being C or 0.
        out_bias: [R + S].
        skip: [N, S, T], or [N, S, 1] for all t.
    """
    z = out_weight @ causal_conv1d(x, weight, bias, condition, state, dilation, gate) + out_bias[:, None]
    residuals = len(out_weight) - skip.shape[1]
    return x[:, :residuals] + z[:, :residuals], skip + z[:, residuals:]


def _case(n: int, c: int, o: int, t: int, k: int = 2, gate: str | None = "tanh_sigmoid", dilation: int = 1, **given):
    def make(generator: torch.Generator) -> dict:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        arguments = {"x": normal(n, c, t), "weight": normal(o, c, k) / max(c * k, 1) ** 0.5, "bias": normal(o)}
        arguments |= {"condition": normal(n, o, given["condition"])} if "condition" in given else {}
        arguments |= {"state": normal(n, c, (k - 1) * dilation)} if given.get("state") else {}
        hidden = o if gate is None else o // 2
        for name, rows in (("residual", c), ("skip", given.get("skips", 0))):
            if name in given.get("to", ()):
                weight = normal(rows, hidden) / max(hidden, 1) ** 0.5
                arguments |= {f"{name}_weight": weight, f"{name}_bias": normal(rows)}
        arguments |= {"skip": normal(n, given["skips"], t)} if given.get("skip") else {}
        return arguments | {"dilation": dilation, "gate": gate}

    return make


_BOTH = ("residual", "skip")

CASES = {
    "small": _case(2, 3, 4, 5),
    "small glu with everything": _case(2, 2, 4, 4, 3, "glu", 2, condition=4, state=True),
    "small without a gate": _case(1, 2, 3, 4, 2, None, 2, condition=1),
    "small geglu": _case(1, 2, 2, 3, 1, "geglu"),
    "small swiglu": _case(1, 2, 4, 3, 2, "swiglu"),
    "none": _case(0, 3, 4, 5, condition=5),
    "no time": _case(2, 3, 4, 0, state=True),
    "one": _case(1, 1, 2, 1),
    "prime": _case(3, 7, 10, 13, 3, dilation=5, condition=13),
    "reglu": _case(2, 5, 6, 33, 2, "reglu", condition=1),
    "geglu": _case(2, 5, 6, 33, 2, "geglu", 7, state=True),
    "longer than a block": _case(1, 4, 6, 40000, 2, "swiglu", 64, condition=1),
    "without a gate": _case(2, 6, 5, 65, 4, None, 3, state=True),
    "small without a gate, conditioned in time": _case(1, 2, 3, 4, 2, None, condition=4),
    "small residual and skip": _case(2, 2, 4, 4, to=_BOTH, skips=3, condition=4, skip=True, state=True),
    "small last block": _case(2, 2, 2, 3, 1, "glu", to=("skip",), skips=2, condition=1),
    "small residual without a gate": _case(1, 2, 3, 3, 2, None, 2, to=("residual",)),
    "residual and skip of none": _case(0, 3, 4, 5, to=_BOTH, skips=2, skip=True),
    "residual and skip of no time": _case(2, 3, 4, 0, to=_BOTH, skips=2),
    "residual and skip of one": _case(1, 1, 2, 1, to=_BOTH, skips=1, skip=True),
    "residual and skip of primes": _case(3, 7, 10, 613, 3, dilation=5, condition=613, to=_BOTH, skips=11, skip=True),
    "blocks of residual and skip": _case(1, 4, 6, 9000, 2, "swiglu", 64, condition=1, to=_BOTH, skips=5),
}
