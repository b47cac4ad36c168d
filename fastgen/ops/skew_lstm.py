"""The recurrence of the Row LSTM and of the Diagonal BiLSTM: every step's convolution and cell in one pass."""

from __future__ import annotations

from torch import Tensor

from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import skew_lstm as reference

_ARGUMENTS = "Tensor gates, Tensor weight, Tensor h0, Tensor c0"


def _fake(gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
    n, hidden, positions = h0.shape
    return gates.new_empty(n, hidden, gates.shape[2], positions), c0.new_empty(c0.shape)


def _fake_backward(grad_h: Tensor, grad_c: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs)


def _backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    with without_autocast(arguments[0]):
        return backward_of(reference.skew_lstm, 2)(*arguments)


OP = Op(f"skew_lstm({_ARGUMENTS}) -> (Tensor, Tensor)", reference.skew_lstm, _fake)
BACKWARD = Op(
    f"skew_lstm_backward(Tensor grad_h, Tensor grad_c, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    part_of="skew_lstm",
)
_call = differentiable(OP, BACKWARD, loop)


def skew_lstm(
    gates: Tensor, weight: Tensor, h0: Tensor | None = None, c0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A convolutional LSTM along one axis, the steps; its state-to-state convolution is along the other, the positions.

    Step r, with * the convolution of k taps, zero beyond the ends::

        i, f, o, g = sigmoid, sigmoid, sigmoid, tanh of the quarters of  gates[:, :, r] + weight * h
        c = f c + i g
        h = o tanh(c)

    Position l has the taps l - k // 2, ..., l - k // 2 + k - 1 of the step before. With k = 3 and the rows of an image
    as steps it is the Row LSTM (``nn.RowLSTM``); with k = 2 and the diagonals as steps, rows as positions, it is one
    direction of the Diagonal BiLSTM (``nn.DiagonalLSTM``).

    The backward runs the steps again instead of storing gates and cells. On the CPU results and gradients are bitwise
    the same for any number of threads.

    Args:
        gates: float [N, 4 H, R, L], R at least 1: the input's part of i, f, o, g, bias included. float16 and bfloat16
            are computed in float32 (autocast included).
        weight: [4 H, H, k].
        h0, c0: [N, H, L], the state before the first step; None is 0.

    Returns:
        h of all steps [N, H, R, L] and c of the last [N, H, L], of the dtype of ``gates``. With ``h[:, :, -1]`` it is
        the state that further steps begin with.

    Raises:
        TypeError: a tensor that is not floating point.
        ValueError: shapes that do not fit.

    Reference: van den Oord, Kalchbrenner, Kavukcuoglu, "Pixel recurrent neural networks", ICML 2016.

    Example:
        >>> gates, weight = torch.randn(2, 4 * 5, 8, 8), torch.randn(4 * 5, 5, 3)
        >>> h, c = skew_lstm(gates, weight)
        >>> h.shape, c.shape
        (torch.Size([2, 5, 8, 8]), torch.Size([2, 5, 8]))
    """
    _check(gates, weight, h0, c0)
    n, wide, _, positions = gates.shape
    h0, c0 = (gates.new_zeros(n, wide // 4, positions) if t is None else t for t in (h0, c0))
    h, c = _call(*in_float32(gates, weight, h0, c0))
    return h.to(gates.dtype), c.to(gates.dtype)


def _check(gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None) -> None:
    for name, tensor in (("gates", gates), ("weight", weight), ("h0", h0), ("c0", c0)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
    if gates.dim() != 4 or gates.shape[1] % 4 or not gates.shape[1] or not gates.shape[2]:
        raise ValueError(f"gates must have shape [N, 4 H, R, L], H and R at least 1, got {tuple(gates.shape)}")
    n, wide, _, positions = gates.shape
    if weight.dim() != 3 or tuple(weight.shape[:2]) != (wide, wide // 4) or not weight.shape[2]:
        raise ValueError(
            f"weight must have shape ({wide}, {wide // 4}, k), k at least 1, for gates of shape "
            f"{tuple(gates.shape)}, got {tuple(weight.shape)}"
        )
    for name, tensor in (("h0", h0), ("c0", c0)):
        wanted = (n, wide // 4, positions)
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise ValueError(
                f"{name} must have shape {wanted} for gates of shape {tuple(gates.shape)}, got {tuple(tensor.shape)}"
            )
