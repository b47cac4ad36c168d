"""The sequential direction of affine autoregressive flows: every hidden unit of the MADE is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from fastgen.ops.arguments import check_device, has_numbers
from fastgen.ops.autograd import backward_of, differentiable, loop
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.registry import Op
from fastgen.reference import sequential_affine as reference
from fastgen.reference.sequential_affine import ACTIVATIONS, PARAMETERISATIONS, layer_sizes, parameter_count

_ARGUMENTS = (
    "Tensor u, Tensor offset, Tensor parameters, Tensor degrees, int[] widths, int activation, int parameterisation, "
    "float min_scale, float bound"
)


def _fake(u: Tensor, *_) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape[:1])


def _fake_backward(
    grad_x: Tensor, grad_log_det: Tensor, u: Tensor, offset: Tensor, parameters: Tensor, *_
) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(offset.shape), u.new_empty(parameters.shape)


def _reference(*arguments) -> tuple[Tensor, Tensor]:
    with without_autocast(arguments[0]):
        return reference.sequential_affine(*arguments)


def _backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    with without_autocast(arguments[0]):
        return backward_of(reference.sequential_affine, 2)(*arguments)


def _vmap(function: Callable, size: int, in_dims: Sequence, arguments: Sequence) -> tuple:
    """vmap rule: ``loop``, without the lists of dimensions of lists of numbers."""
    return loop(function, size, [None if isinstance(dim, (list, tuple)) else dim for dim in in_dims], arguments)


OP = Op(f"sequential_affine({_ARGUMENTS}) -> (Tensor, Tensor)", _reference, _fake)
BACKWARD = Op(
    f"sequential_affine_backward(Tensor grad_x, Tensor grad_log_det, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    part_of="sequential_affine",
)
_call = differentiable(OP, BACKWARD, _vmap)


def sequential_affine(
    u: Tensor,
    parameters: Tensor | Iterable[Tensor],
    degrees: Sequence[Tensor],
    *,
    context: Tensor | None = None,
    activation: str = "relu",
    parameterisation: str = "exp",
    min_scale: float = 1e-3,
    bound: float = math.log(1e3),
) -> tuple[Tensor, Tensor]:
    """The inverse of a masked autoregressive flow's affine step, and the forward of an inverse one, unit by unit.

    A MADE (masked linear maps with an activation between them) gives shift t and raw scale a of every feature from the
    features of lower degree. This finds x from u, in the order of the degrees::

        "exp":       x = u exp(a) + t                                             u = (x - t) exp(-a), as in MAF
        "sigmoid":   x = (u - t) / s,  s = sigmoid(a + 2) + min_scale             u = s x + t
        "softplus":  x = (u - t) / s,  s = softplus(a) + min_scale                u = s x + t
        "bounded":   x = (u - t) / s,  s = exp(a / (1 + |a| / bound))             u = s x + t

    A unit sees the units before it of degree at most its own; shift and scale of a feature see the last hidden units of
    degree below the feature's. On the CPU every hidden unit is computed once, when its degree's turn comes, and masked
    weights cost nothing: all of it costs half of one dense pass, instead of D passes. Backward sweeps the degrees in
    reverse, at the cost of a few passes. Both are bitwise the same for any number of threads.

    Args:
        u: float [N, D]. float16 and bfloat16 are computed in float32 (autocast included).
        parameters: weight [outputs, inputs] and bias of every linear map, in turn, as ``parameters()`` of an
            ``nn.Sequential`` has them; or all of them flat, as ``torch.nn.utils.parameters_to_vector`` makes. The last
            map has 2 D outputs, all shifts and then all raw scales. Masked weights are not used and may be anything.
        degrees: int64 [D], every number from 1 to D once, of the features; then [H] for every hidden layer, one layer
            at least, with numbers from 0 to D.
        context: float [N, H], added to the first hidden layer before its activation; or None.
        activation: of the hidden layers: "relu", "tanh", "sigmoid" or "elu".
        parameterisation: "exp", "sigmoid", "softplus" or "bounded".
        min_scale: of "sigmoid" and "softplus", at least 0.
        bound: of "bounded", of the magnitude of log s, greater than 0.

    Returns:
        x [N, D] of u's dtype, and log |det dx/du| [N], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: a tensor that is not floating point; degrees that are not int64.
        ValueError: an unknown name, shapes or numbers that do not fit, tensors on two devices.

    References: Papamakarios, Pavlakou, Murray, "Masked autoregressive flow for density estimation", NeurIPS 2017;
    Germain, Gregor, Murray, Larochelle, "MADE", ICML 2015; Kingma et al., "Improved variational inference with inverse
    autoregressive flow", NeurIPS 2016.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6))
        >>> degrees = [torch.arange(3) + 1, torch.arange(8) % 2 + 1]
        >>> x, log_det = sequential_affine(torch.randn(5, 3), net.parameters(), degrees)
        >>> x.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    if parameterisation not in PARAMETERISATIONS:
        allowed = ", ".join(map(repr, PARAMETERISATIONS))
        raise ValueError(f"parameterisation must be one of {allowed}, got {parameterisation!r}")
    if not min_scale >= 0:
        raise ValueError(f"min_scale must be at least 0, got {min_scale}")
    if not bound > 0:
        raise ValueError(f"bound must be greater than 0, got {bound}")
    widths = _widths(u, degrees)
    vector = _vector(parameters, widths)
    if context is not None and tuple(context.shape) != (u.shape[0], widths[1]):
        raise ValueError(f"context must have shape {(u.shape[0], widths[1])}, got {tuple(context.shape)}")
    offset = vector.new_zeros(1, widths[1]) if context is None else context
    for name, tensor in (("u", u), ("parameters", vector), ("context", offset)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        check_device(name, tensor, "u", u.device)
    names = list(ACTIVATIONS).index(activation), PARAMETERISATIONS.index(parameterisation)
    x, log_det = _call(*in_float32(u, offset, vector), torch.cat(list(degrees)), widths, *names, min_scale, bound)
    return x.to(u.dtype), log_det


def _widths(u: Tensor, degrees: Sequence[Tensor]) -> list[int]:
    """Returns the number of features, and of the units of each hidden layer."""
    if u.dim() != 2 or not u.shape[1]:
        raise ValueError(f"u must have shape [N, D], D at least 1, got {tuple(u.shape)}")
    if len(degrees) < 2:
        raise ValueError(
            f"degrees must have a tensor for the features and one for each hidden layer, got {len(degrees)} tensors"
        )
    features = u.shape[1]
    for i, degree in enumerate(degrees):
        if degree.dtype != torch.int64:
            raise TypeError(f"degrees[{i}] must be int64, got {degree.dtype}")
        if degree.dim() != 1 or not len(degree) or (i == 0 and len(degree) != features):
            wanted = f"[{features}], as u has features" if i == 0 else "[H], H at least 1"
            raise ValueError(f"degrees[{i}] must have shape {wanted}, got {tuple(degree.shape)}")
        check_device(f"degrees[{i}]", degree, "u", u.device)
        if not has_numbers(degree):
            continue
        numbers = degree.tolist()
        if i == 0 and sorted(numbers) != list(range(1, features + 1)):
            raise ValueError(f"degrees[0] must have every number from 1 to {features} once, got {numbers}")
        if min(numbers) < 0 or max(numbers) > features:
            raise ValueError(f"degrees[{i}] must stay within 0 to {features}, got {min(numbers)} to {max(numbers)}")
    return [len(degree) for degree in degrees]


def _vector(parameters: Tensor | Iterable[Tensor], widths: list[int]) -> Tensor:
    """Returns all parameters in one vector; checks its size against the widths."""
    if not isinstance(parameters, Tensor):
        parameters = list(parameters)
        wanted = [shape for before, after in layer_sizes(widths) for shape in ((after, before), (after,))]
        given = [tuple(p.shape) for p in parameters]
        if given != wanted:
            raise ValueError(f"parameters must have shapes {wanted} for these degrees, got {given}")
        parameters = torch.cat([p.reshape(-1) for p in parameters])
    if tuple(parameters.shape) != (parameter_count(widths),):
        raise ValueError(
            f"parameters must have shape {(parameter_count(widths),)} for these degrees, got {tuple(parameters.shape)}"
        )
    return parameters
