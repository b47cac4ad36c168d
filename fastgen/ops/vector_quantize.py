"""Nearest code of a codebook, without the matrix of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.ops.precision import in_float32
from fastgen.ops.registry import Op
from fastgen.reference import vector_quantize as reference


def _fake(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape[:1], dtype=torch.int64),
        x.new_empty(x.shape),
        x.new_empty(codebook.shape[:1]),
        x.new_empty(codebook.shape),
    )


OP = Op(
    "vector_quantize(Tensor x, Tensor codebook) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference.vector_quantize,
    fake=_fake,
    not_differentiable="codes are integers; the straight-through estimator of nn.VectorQuantizer is not a derivative",
)


@torch.library.register_vmap("fastgen::vector_quantize")
def _vmap(info, in_dims, x: Tensor, codebook: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    rows = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
    books = codebook.movedim(in_dims[1], 0) if in_dims[1] is not None else codebook.expand(len(rows), *codebook.shape)
    found = [OP(row, book) for row, book in zip(rows, books, strict=True)]
    return tuple(torch.stack(column) for column in zip(*found, strict=True)), (0, 0, 0, 0)


def vector_quantize(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest code of every row, and the statistics for an exponential moving average of the codebook.

    ``codes[n] = argmin_k |x[n] - e[k]|^2``, found as the first largest ``x'[n] . e'[k] - |e'[k]|^2 / 2`` with
    ``x' = x - c`` and ``e' = e - c``. c is the mean of the codes in the coordinates where it is larger than their
    deviation from it, else 0: an offset that all data have costs no precision. The chosen code may be further away
    than the nearest by the rounding of these numbers, ``|x'| |e'|`` times the dtype's epsilon.

    Only the distances of some rows to some codes are in memory at a time. On the CPU the result is bitwise the same for
    any number of threads. It is not differentiable; ``nn.VectorQuantizer`` has the straight-through estimator.

    Args:
        x: float [N, D]. float16 and bfloat16 are computed in float32.
        codebook: float [K, D], the codes e.

    Returns:
        codes int64 [N]; the codes themselves, e[codes], [N, D] of x's dtype; how many rows chose each code [K]; the sum
        of those rows [K, D]. The last two are float32 for inputs of 32 bits or fewer, else float64. The code of a
        row with a NaN is not defined, nor where ``x[n] . e[k]`` or ``|e[k]|^2`` overflows, as
        float32 does with numbers of some 1e19.

    Raises:
        TypeError: x or codebook is not floating point.
        ValueError: shapes that do not fit, no codes; on a GPU, 2**31 rows.

    Reference: van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning", NeurIPS 2017.

    Example:
        >>> x, codebook = torch.randn(1000, 64), torch.randn(512, 64)
        >>> codes, quantized, counts, sums = vector_quantize(x, codebook)
        >>> bool((quantized == codebook[codes]).all())
        True
    """
    for name, tensor in (("x", x), ("codebook", codebook)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}")
        if tensor.dim() != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {tuple(tensor.shape)}")
    if x.shape[1] != codebook.shape[1]:
        raise ValueError(f"x and codebook must have rows of the same size, got {x.shape[1]} and {codebook.shape[1]}")
    if not codebook.shape[0]:
        raise ValueError("codebook must have at least one code, got none")
    dtype = x.dtype
    x, codebook = in_float32(x.detach(), codebook.detach())
    codes, quantized, counts, sums = OP(x, codebook)
    return codes, quantized.to(dtype), counts, sums
