"""Dilated causal convolution whose bias, condition and gate are computed while its sums are in the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import causal_conv1d as reference
from fastgen.reference.causal_conv1d import GATES

_ARGUMENTS = "Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state, int dilation, int gate"


def _fake(x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int):
    return x.new_empty(x.shape[0], weight.shape[0] // (2 if gate else 1), x.shape[2])


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, condition, state))


def _plain(x: Tensor, *arguments) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return reference.causal_conv1d(x, *arguments)


OP = Op(f"causal_conv1d({_ARGUMENTS}) -> Tensor", _plain, _fake)
BACKWARD = Op(
    f"causal_conv1d_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward_of(_plain, 1),
    _fake_backward,
    part_of="causal_conv1d",
)
_call = differentiable(OP, BACKWARD, loop)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    gate: str | None = None,
    condition: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal convolution with a gated unit: what it reads at t lies at t and before.

    ::

        s[t] = bias + condition[t] + sum_k weight[k] x[t - (K - 1 - k) dilation]
        y[t] = s[t], or with a gate a function of the two halves (a, g) of its channels

    "tanh_sigmoid" is tanh(a) sigmoid(g) (WaveNet), "glu" a sigmoid(g), "reglu" a relu(g), "geglu" a gelu(g), "swiglu"
    a g sigmoid(g). On the CPU the products are PyTorch's, block by block of time, and bias, condition and gate are
    applied while a block is in the cache; the backward computes the sums once more instead of keeping them. PyTorch's
    products may round differently with another number of threads.

    The state holds the last ``(K - 1) dilation`` inputs: passing the one returned along with the next piece of a
    sequence gives what the whole sequence would have given. ``nn.CausalConv1d.step`` computes one element at a time.

    Args:
        x: float [N, C, T]. float16 and bfloat16 are computed in float32 (autocast included).
        weight: [O, C, K]; O is even where there is a gate.
        bias: [O].
        dilation: 1 or more.
        gate: None, "tanh_sigmoid", "glu", "reglu", "geglu" or "swiglu".
        condition: [N, O, T], or [N, O, 1] or [N, O] for all t alike.
        state: [N, C, (K - 1) dilation], what comes before x; zeros if None.

    Returns:
        y [N, O or O / 2, T] of x's dtype, and the state after x.

    Raises:
        TypeError: x or weight are not floating point.
        ValueError: an unknown gate, an odd O with a gate, a dilation below 1, shapes that do not fit.

    References: van den Oord et al., "WaveNet", 2016; Dauphin et al., "Language modeling with gated convolutional
    networks", ICML 2017; Shazeer, "GLU variants improve transformer", 2020.

    Example:
        >>> x, weight = torch.randn(2, 3, 100), torch.randn(8, 3, 2)
        >>> y, _ = causal_conv1d(x, weight, dilation=4, gate="tanh_sigmoid")
        >>> first, state = causal_conv1d(x[..., :60], weight, dilation=4, gate="tanh_sigmoid")
        >>> second, _ = causal_conv1d(x[..., 60:], weight, dilation=4, gate="tanh_sigmoid", state=state)
        >>> torch.allclose(torch.cat([first, second], 2), y, atol=1e-6)
        True
    """
    if gate not in GATES:
        raise ValueError(f"gate is {gate!r}; it must be None or one of {', '.join(repr(g) for g in GATES if g)}")
    for name, tensor in (("x", x), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; it must be floating point")
    if x.dim() != 3 or weight.dim() != 3 or x.shape[1] != weight.shape[1] or weight.shape[2] < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; they must be [N, C, T] and [O, C, K]"
        )
    if dilation < 1:
        raise ValueError(f"dilation is {dilation}; it must be 1 or more")
    n, channels, length = x.shape
    outputs, _, taps = weight.shape
    if gate is not None and outputs % 2:
        raise ValueError(f"weight has {outputs} output channels; a gate needs an even number")
    bias = weight.new_zeros(outputs) if bias is None else bias
    condition = weight.new_zeros(n, outputs, 1) if condition is None else condition
    condition = condition.unsqueeze(2) if condition.dim() == 2 else condition
    state = x.new_zeros(n, channels, (taps - 1) * dilation) if state is None else state
    for name, tensor, wanted in (
        ("bias", bias, (outputs,)),
        ("condition", condition, (n, outputs, 1 if condition.dim() == 3 and condition.shape[2] == 1 else length)),
        ("state", state, (n, channels, (taps - 1) * dilation)),
    ):
        if tensor.shape != wanted:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {wanted}")
    history = torch.cat([state, x[:, :, max(0, length - state.shape[2]) :]], 2)
    history = history[:, :, history.shape[2] - state.shape[2] :]
    y = _call(*in_float32(x, weight, bias, condition, state), dilation, list(GATES).index(gate))
    return y.to(x.dtype), history.to(x.dtype)
