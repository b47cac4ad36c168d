"""Dilated causal convolution; bias, condition, gate, residual and skip are applied while its sums are in the cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.ops.arguments import check_reach
from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import causal_conv1d as reference
from fastgen.reference.causal_conv1d import GATES

_TENSORS = "Tensor x, Tensor weight, Tensor bias, Tensor condition, Tensor state"
_ARGUMENTS = f"{_TENSORS}, int dilation, int gate"
_RESIDUAL_ARGUMENTS = f"{_TENSORS}, Tensor out_weight, Tensor out_bias, Tensor skip, int dilation, int gate"


def _fake(x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, dilation: int, gate: int):
    return x.new_empty(x.shape[0], weight.shape[0] // (2 if gate else 1), x.shape[2])


def _fake_residual(
    x: Tensor, weight: Tensor, bias: Tensor, condition: Tensor, state: Tensor, out_weight: Tensor, out_bias, skip, *_
) -> tuple[Tensor, Tensor]:
    n, skips, length = x.shape[0], skip.shape[1], x.shape[2]
    return x.new_empty(n, out_weight.shape[0] - skips, length), x.new_empty(n, skips, length)


def _fake_backward(grad: Tensor, *arguments) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in arguments if isinstance(t, Tensor))


def _fake_residual_backward(grad: Tensor, grad_skip: Tensor, *arguments) -> tuple[Tensor, ...]:
    return _fake_backward(grad, *arguments)


def _backward_of(plain: Callable, outputs: int) -> Callable:
    """Returns the backward with copies of gradients that are passed through, since an op may not return its input."""
    backward = backward_of(plain, outputs)
    return lambda *given: tuple(g.clone() if any(g is a for a in given) else g for g in backward(*given))


def _plain(x: Tensor, *arguments) -> Tensor:
    with without_autocast(x):
        return reference.causal_conv1d(x, *arguments)


def _plain_residual(x: Tensor, *arguments) -> tuple[Tensor, Tensor]:
    with without_autocast(x):
        return reference.causal_conv1d_residual(x, *arguments)


OP = Op(f"causal_conv1d({_ARGUMENTS}) -> Tensor", _plain, _fake)
BACKWARD = Op(
    f"causal_conv1d_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward_of(_plain, 1),
    _fake_backward,
    part_of="causal_conv1d",
)
RESIDUAL = Op(
    f"causal_conv1d_residual({_RESIDUAL_ARGUMENTS}) -> (Tensor, Tensor)",
    _plain_residual,
    _fake_residual,
    part_of="causal_conv1d",
)
RESIDUAL_BACKWARD = Op(
    f"causal_conv1d_residual_backward(Tensor grad, Tensor grad_skip, {_RESIDUAL_ARGUMENTS}) -> "
    f"({', '.join(8 * ['Tensor'])})",
    _backward_of(_plain_residual, 2),
    _fake_residual_backward,
    part_of="causal_conv1d",
)
_call = differentiable(OP, BACKWARD, loop)
_call_residual = differentiable(RESIDUAL, RESIDUAL_BACKWARD, loop)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    gate: str | None = None,
    condition: Tensor | None = None,
    state: Tensor | None = None,
    residual_weight: Tensor | None = None,
    residual_bias: Tensor | None = None,
    skip_weight: Tensor | None = None,
    skip_bias: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Causal convolution with a gated unit, residual and skip; the output at t depends on inputs up to t.

    ::

        s[t] = bias + condition[t] + sum_k weight[k] x[t - (K - 1 - k) dilation]
        y[t] = s[t], or with a gate a function of the two halves (a, g) of its channels
        residual[t] = x[t] + residual_bias + residual_weight y[t]
        skip[t] = skip[t] + skip_bias + skip_weight y[t]

    "tanh_sigmoid" is tanh(a) sigmoid(g) (WaveNet), "glu" a sigmoid(g), "reglu" a relu(g), "geglu" a gelu(g), "swiglu"
    a g sigmoid(g). On the CPU a few neighbouring times go through all of it while they are in the first-level cache;
    with a residual or a skip, y is never written to memory. The backward computes the sums once more instead of keeping
    them, and takes their gradients to x in the same pass. On the GPU the products are PyTorch's.

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
        residual_weight: [C, H], H being O, or O / 2 with a gate. Without it the residual is x: that of a last block,
            which nothing reads.
        residual_bias: [C].
        skip_weight: [S, H]. Without it S is 0.
        skip_bias: [S].
        skip: [N, S, T], the sum of the skips of the blocks before; zeros if None.

    Returns:
        y [N, H, T] and the state after x; or, where ``residual_weight`` or ``skip_weight`` is given, the residual
        [N, C, T], the skip [N, S, T] and the state after x. All are of x's dtype.

    Raises:
        TypeError: x or weight are not floating point.
        ValueError: an unknown gate, an odd O with a gate, a dilation below 1, shapes that do not fit, a bias or skip
            without its weight.

    References: van den Oord et al., "WaveNet", 2016; Dauphin et al., "Language modeling with gated convolutional
    networks", ICML 2017; Shazeer, "GLU variants improve transformer", 2020.

    Example:
        >>> x, weight = torch.randn(2, 3, 100), torch.randn(8, 3, 2)
        >>> y, _ = causal_conv1d(x, weight, dilation=4, gate="tanh_sigmoid")
        >>> first, state = causal_conv1d(x[..., :60], weight, dilation=4, gate="tanh_sigmoid")
        >>> second, _ = causal_conv1d(x[..., 60:], weight, dilation=4, gate="tanh_sigmoid", state=state)
        >>> torch.allclose(torch.cat([first, second], 2), y, atol=1e-6)
        True
        >>> out = {"residual_weight": torch.randn(3, 4), "skip_weight": torch.randn(5, 4)}
        >>> residual, skip, _ = causal_conv1d(x, weight, dilation=4, gate="tanh_sigmoid", **out)
        >>> torch.allclose(residual, x + out["residual_weight"] @ y, atol=1e-5)
        True
    """
    if gate not in GATES:
        raise ValueError(f"gate must be None or one of {', '.join(repr(g) for g in GATES if g)}, got {gate!r}")
    for name, tensor in (("x", x), ("weight", weight)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if x.dim() != 3 or weight.dim() != 3 or x.shape[1] != weight.shape[1] or weight.shape[2] < 1:
        raise ValueError(
            f"x and weight must have shapes [N, C, T] and [O, C, K], got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if dilation < 1:
        raise ValueError(f"dilation must be 1 or more, got {dilation}")
    check_reach(dilation, weight.shape[2])
    n, channels, length = x.shape
    outputs, _, taps = weight.shape
    if gate is not None and outputs % 2:
        raise ValueError(f"weight must have an even number of output channels with a gate, got {outputs}")
    bias = weight.new_zeros(outputs) if bias is None else bias
    condition = weight.new_zeros(n, outputs, 1) if condition is None else condition
    condition = condition.unsqueeze(2) if condition.dim() == 2 else condition
    state = x.new_zeros(n, channels, (taps - 1) * dilation) if state is None else state
    for name, tensor, wanted in (
        ("bias", bias, (outputs,)),
        ("condition", condition, (n, outputs, 1 if condition.dim() == 3 and condition.shape[2] == 1 else length)),
        ("state", state, (n, channels, (taps - 1) * dilation)),
    ):
        _check_shape(name, tensor, wanted)
    out = _out(x, outputs // (2 if gate else 1), residual_weight, residual_bias, skip_weight, skip_bias, skip)
    history = torch.cat([state, x[:, :, max(0, length - state.shape[2]) :]], 2)
    history = history[:, :, history.shape[2] - state.shape[2] :].to(x.dtype)
    arguments = in_float32(x, weight, bias, condition, state, *out)
    if not out:
        return _call(*arguments, dilation, list(GATES).index(gate)).to(x.dtype), history
    residual, skip = _call_residual(*arguments, dilation, list(GATES).index(gate))
    return x if residual_weight is None else residual.to(x.dtype), skip.to(x.dtype), history


def _out(
    x: Tensor,
    hidden: int,
    residual_weight: Tensor | None,
    residual_bias: Tensor | None,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
    skip: Tensor | None,
) -> tuple[Tensor, ...]:
    """Returns weight [R + S, H] and bias [R + S] of residual and skip, and the skip to add to; empty without them.

    R is the number of x's channels, or 0 without ``residual_weight``.
    """
    for name, tensor, weight_name, weight in (
        ("residual_bias", residual_bias, "residual_weight", residual_weight),
        ("skip_bias", skip_bias, "skip_weight", skip_weight),
        ("skip", skip, "skip_weight", skip_weight),
    ):
        if tensor is not None and weight is None:
            raise ValueError(f"{name} must be None without {weight_name}, got a tensor")
    if residual_weight is None and skip_weight is None:
        return ()
    if skip_weight is not None and (skip_weight.dim() != 2 or skip_weight.shape[1] != hidden):
        raise ValueError(f"skip_weight must have shape [S, {hidden}], got {tuple(skip_weight.shape)}")
    n, channels, length = x.shape
    skips = 0 if skip_weight is None else skip_weight.shape[0]
    for name, tensor, wanted in (
        ("residual_weight", residual_weight, (channels, hidden)),
        ("residual_bias", residual_bias, (channels,)),
        ("skip_bias", skip_bias, (skips,)),
        ("skip", skip, (n, skips, length)),
    ):
        if tensor is not None:
            _check_shape(name, tensor, wanted)
    weights = [weight for weight in (residual_weight, skip_weight) if weight is not None]
    biases = [
        weight.new_zeros(len(weight)) if bias is None else bias
        for weight, bias in ((residual_weight, residual_bias), (skip_weight, skip_bias))
        if weight is not None
    ]
    return torch.cat(weights), torch.cat(biases), x.new_zeros(n, skips, 1) if skip is None else skip


def _check_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tensor.shape != wanted:
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")
