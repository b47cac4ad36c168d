"""The sequential direction of affine autoregressive flows on the GPU: a program takes a block of samples, unit by unit.

All values lie in one panel [rows, N]: the features, every hidden layer, then shift and raw scale of each feature, each
group in the order of degrees, so that what a unit sees is a run of rows. Degrees are taken ``TOGETHER``: what is known
before them enters their rows in large products, and within them a degree's rows take the rest when its turn comes. The
backward goes the same way back, with the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._math import sigmoid, softplus, tanh

SAMPLES, ROWS, DEPTH, TOGETHER, REGISTERS = 16, 16, 32, 16, 255
"""Of a program; of a product; summed in one step of it; degrees; all, for ptxas spills to get by with fewer."""


@triton.jit
def _expm1(x):
    """Of what is not positive."""
    near = 1.0 + x * (1.0 / 6) * (1.0 + x * (1.0 / 7) * (1.0 + x * (1.0 / 8)))
    near = x * (1.0 + x * 0.5 * (1.0 + x * (1.0 / 3) * (1.0 + x * 0.25 * (1.0 + x * 0.2 * near))))
    return tl.where(x > -0.5, near, tl.exp(x) - 1.0)


@triton.jit
def _activation(x, kind: tl.constexpr):
    if kind == 0:
        return tl.where(x < 0, 0.0, x)
    elif kind == 1:
        return tanh(x)
    elif kind == 2:
        return sigmoid(x)
    else:
        return tl.where(x < 0, _expm1(tl.minimum(x, 0.0)), x)


@triton.jit
def _derivative(value, kind: tl.constexpr):
    """Of the activation, from its value."""
    if kind == 0:
        return tl.where(value > 0, 1.0, 0.0)
    elif kind == 1:
        return (1.0 - value) * (1.0 + value)
    elif kind == 2:
        return value * (1.0 - value)
    else:
        return tl.where(value > 0, 1.0, 1.0 + value)


@triton.jit
def _scale(raw, min_scale, bound, kind: tl.constexpr):
    """s of u = s x + t, its logarithm, and the derivative of that by raw."""
    if kind == 1:
        p = sigmoid(raw + 2.0)
        s = p + min_scale
        log_s, slope = tl.log(s), p * sigmoid(-2.0 - raw) / s
    elif kind == 2:
        s = softplus(raw) + min_scale
        log_s, slope = tl.log(s), sigmoid(raw) / s
    else:
        denominator = 1.0 + tl.abs(raw) / bound
        log_s, slope = raw / denominator, 1.0 / (denominator * denominator)
        s = tl.exp(log_s)
    return s, log_s, slope


@triton.jit
def _tile(
    panel, weight, r, end, first, last, n, inside, samples, row_stride, column_stride,
    rows: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    """The panel's rows from r on, plus their weights' product with the rows first .. last: where, which, and it."""
    row = r + tl.arange(0, rows)
    where = row[:, None] * samples + n[None, :]
    here = (row < end)[:, None] & inside[None, :]
    total = tl.load(panel + where, mask=here, other=0.0).to(tl.float32)
    for k in range(first, last, depth):
        source = k + tl.arange(0, depth)
        known = source < last
        at = panel + source[:, None] * samples + n[None, :]
        value = tl.load(at, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
        at = weight + row[:, None] * row_stride + source[None, :] * column_stride
        factor = tl.load(at, mask=(row < end)[:, None] & known[None, :], other=0.0).to(tl.float32)
        total += tl.dot(factor, value, input_precision="ieee")
    tl.debug_barrier()  # everybody has read what will be written
    return where, here, total


@triton.jit
def _row(panel, weight, r, first, last, n, inside, samples, row_stride, column_stride, depth: tl.constexpr):
    """As ``_tile``, of one row."""
    total = tl.load(panel + r * samples + n, mask=inside, other=0.0).to(tl.float32)
    for k in range(first, last, depth):
        source = k + tl.arange(0, depth)
        known = source < last
        at = panel + source[:, None] * samples + n[None, :]
        value = tl.load(at, mask=known[:, None] & inside[None, :], other=0.0).to(tl.float32)
        at = weight + r * row_stride + source * column_stride
        total += tl.sum(tl.load(at, mask=known, other=0.0).to(tl.float32)[:, None] * value, 0)
    return total


@triton.jit(do_not_specialize=["samples", "features", "groups", "widest"])
def sequential_affine_kernel(
    values, log_det, u, weights, begins, samples, features, groups, widest, min_scale, bound,
    activation: tl.constexpr, parameterisation: tl.constexpr,
    block: tl.constexpr, rows: tl.constexpr, depth: tl.constexpr, together: tl.constexpr,
):  # fmt: skip
    """Fills ``values``, which has the biases in it. Row r of the panel has row r - D of ``weights``.

    ``begins`` has for each group and each degree the first row of the group with that degree or a higher one.
    """
    n = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = n < samples
    total_log = tl.zeros([block], dtype=tl.float32)
    samples, widest = samples.to(tl.int64), widest.to(tl.int64)
    of_rows = weights - features * widest
    size = features + 2
    seen, outputs = of_rows - tl.load(begins + (groups - 1) * size), tl.load(begins + groups * size)
    for low in range(0, features + 1, together):
        high = tl.minimum(low + together, features + 1)
        for group in range(1, groups + 1):
            first, end = tl.load(begins + (group - 1) * size), tl.load(begins + group * size + high)
            known = tl.load(begins + (group - 1) * size + low)
            for r in range(tl.load(begins + group * size + low), end, rows):
                where, here, total = _tile(
                    values, of_rows - first, r, end, first, known, n, inside, samples, widest, 1, rows, depth
                )
                tl.store(values + where, total, mask=here)
        tl.debug_barrier()
        for d in range(low, high):
            if d > 0:
                row = outputs + 2 * (d - 1)
                first, last = tl.load(begins + (groups - 1) * size + low), tl.load(begins + (groups - 1) * size + d)
                shift = _row(values, seen, row, first, last, n, inside, samples, widest, 1, depth)
                raw = _row(values, seen, row + 1, first, last, n, inside, samples, widest, 1, depth)
                feature = (d - 1) * samples + n
                given = tl.load(u + feature, mask=inside, other=0.0).to(tl.float32)
                if parameterisation == 0:
                    x, log = given * tl.exp(raw) + shift, raw
                else:
                    s, log_s, _ = _scale(raw, min_scale, bound, parameterisation)
                    x, log = (given - shift) / s, -log_s
                total_log += log
                tl.debug_barrier()
                tl.store(values + feature, x, mask=inside)
                tl.store(values + (row + 1) * samples + n, raw, mask=inside)
                tl.debug_barrier()
            for group in range(1, groups):
                base, end = tl.load(begins + (group - 1) * size), tl.load(begins + group * size + d + 1)
                first, last = tl.load(begins + (group - 1) * size + low), tl.load(begins + (group - 1) * size + d + 1)
                for r in range(tl.load(begins + group * size + d), end, rows):
                    where, here, total = _tile(
                        values, of_rows - base, r, end, first, last, n, inside, samples, widest, 1, rows, depth
                    )
                    tl.store(values + where, _activation(total, activation), mask=here)
                tl.debug_barrier()
    tl.store(log_det + n, total_log, mask=inside)


@triton.jit(do_not_specialize=["samples", "features", "groups", "widest"])
def sequential_affine_backward_kernel(
    gradients, grad_u, grad_log_det, values, u, weights, begins,
    samples, features, groups, widest, min_scale, bound,
    activation: tl.constexpr, parameterisation: tl.constexpr,
    block: tl.constexpr, rows: tl.constexpr, depth: tl.constexpr, together: tl.constexpr,
):  # fmt: skip
    """Fills ``gradients`` of the sums of every row; it has the gradient of x in the features' rows and zeros else."""
    n = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = n < samples
    of_log = tl.load(grad_log_det + n, mask=inside, other=0.0).to(tl.float32)
    samples, widest = samples.to(tl.int64), widest.to(tl.int64)
    of_rows = weights - features * widest
    size = features + 2
    outputs = tl.load(begins + groups * size)
    for i in range(features // together + 1):
        low = (features // together - i) * together
        high = tl.minimum(low + together, features + 1)
        for group in range(groups):
            base, end = tl.load(begins + group * size), tl.load(begins + group * size + high)
            first = tl.load(begins + (group + 1) * size + high)
            last = tl.load(begins + (group + 1) * size + features + 1)
            for r in range(tl.load(begins + group * size + low), end, rows):
                where, here, total = _tile(
                    gradients, of_rows - base, r, end, first, last, n, inside, samples, 1, widest, rows, depth
                )
                tl.store(gradients + where, total, mask=here)
        tl.debug_barrier()
        for j in range(high - low):
            d = high - 1 - j
            for before in range(1, groups):
                group = groups - before
                base, end = tl.load(begins + group * size), tl.load(begins + group * size + d + 1)
                first = tl.load(begins + (group + 1) * size + tl.where(group == groups - 1, d + 1, d))
                last = tl.load(begins + (group + 1) * size + high)
                for r in range(tl.load(begins + group * size + d), end, rows):
                    where, here, total = _tile(
                        gradients, of_rows - base, r, end, first, last, n, inside, samples, 1, widest, rows, depth
                    )
                    value = tl.load(values + where, mask=here, other=0.0).to(tl.float32)
                    tl.store(gradients + where, total * _derivative(value, activation), mask=here)
                tl.debug_barrier()
            if d > 0:
                first, last = tl.load(begins + size + d), tl.load(begins + size + high)
                of_x = _row(gradients, of_rows, d - 1, first, last, n, inside, samples, 1, widest, depth)
                feature, at_shift = (d - 1) * samples + n, (outputs + 2 * (d - 1)) * samples + n
                raw = tl.load(values + at_shift + samples, mask=inside, other=0.0).to(tl.float32)
                if parameterisation == 0:
                    given = tl.load(u + feature, mask=inside, other=0.0).to(tl.float32)
                    of_u, of_shift = of_x * tl.exp(raw), of_x
                    of_raw = of_u * given + of_log
                else:
                    s, _, slope = _scale(raw, min_scale, bound, parameterisation)
                    x = tl.load(values + feature, mask=inside, other=0.0).to(tl.float32)
                    of_u = of_x / s
                    of_shift, of_raw = -of_u, -(of_x * x + of_log) * slope
                tl.store(grad_u + feature, of_u, mask=inside)
                tl.store(gradients + at_shift, of_shift, mask=inside)
                tl.store(gradients + at_shift + samples, of_raw, mask=inside)
                tl.debug_barrier()


@dataclass(frozen=True)
class _Stack:
    """The masked maps, their rows and columns in the order of degrees."""

    parameters: Tensor
    degrees: Tensor
    widths: Sequence[int]

    @cached_property
    def of_groups(self) -> tuple[Tensor, ...]:
        """The degrees of each group, the outputs (shifts, then raw scales) being the last."""
        groups = self.degrees.split(list(self.widths))
        return *groups, torch.cat([groups[0], groups[0]])

    @cached_property
    def units(self) -> list[Tensor]:
        """Of each group its numbers in order; a feature's raw scale follows its shift."""
        return [degrees.argsort(stable=True) for degrees in self.of_groups]

    @cached_property
    def begins(self) -> Tensor:
        """The first row of each group, by degree from 0 to D + 1."""
        size = self.widths[0] + 2
        keys = torch.cat([degrees + i * size for i, degrees in enumerate(self.of_groups)]).sort().values
        return torch.searchsorted(keys, torch.arange((len(self.widths) + 1) * size, device=keys.device)).int()

    @property
    def rows(self) -> list[int]:
        """How many each group has."""
        return [*self.widths, 2 * self.widths[0]]

    @property
    def maps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weight [outputs, inputs] and bias as they were given."""
        sizes = [n for before, after in itertools.pairwise(self.rows) for n in (before * after, after)]
        parts = self.parameters.split(sizes)
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            yield weight.reshape(len(bias), -1), bias

    @cached_property
    def weights(self) -> Tensor:
        """[rows without the features, widest group]."""
        widest = max(self.widths)
        units = zip(self.maps, itertools.pairwise(self.units), strict=True)
        ordered = [weight[after][:, before] for (weight, _), (before, after) in units]
        return torch.cat([torch.nn.functional.pad(weight, (0, widest - weight.shape[1])) for weight in ordered])

    def values(self, offset: Tensor, samples: int) -> Tensor:
        """The panel with the biases in it."""
        panel = offset.new_empty(sum(self.rows), samples)
        _, *groups = panel.split(self.rows)
        for (_, bias), units, group in zip(self.maps, self.units[1:], groups, strict=True):
            group.copy_(bias[units][:, None])
        groups[0] += offset.t()[self.units[1]]
        return panel

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.widths[0], len(self.widths), max(self.widths)

    def gradient(self, values: Tensor, gradients: Tensor) -> Tensor:
        """Of the parameters, from the panels."""
        parts, places = [], [units.argsort() for units in self.units]
        values, gradients = values.split(self.rows), gradients.split(self.rows)
        for i, (before, after) in enumerate(itertools.pairwise(self.of_groups)):
            masked = after[:, None] <= before if i + 1 == len(self.widths) else after[:, None] < before
            product = (gradients[i + 1] @ values[i].t())[places[i + 1]][:, places[i]]
            parts += [product.masked_fill(masked, 0).flatten(), gradients[i + 1].sum(1)[places[i + 1]]]
        return torch.cat(parts)


def _constants(activation: int, parameterisation: int) -> dict:
    sizes = {"block": SAMPLES, "rows": ROWS, "depth": DEPTH, "together": TOGETHER, "maxnreg": REGISTERS}
    return {"activation": activation, "parameterisation": parameterisation} | sizes


def _run(stack: _Stack, u: Tensor, offset: Tensor, *how) -> tuple[Tensor, Tensor]:
    """All values, and the log-determinant, from u [D, N] in the order of degrees."""
    activation, parameterisation, min_scale, bound = how
    samples = u.shape[1]
    values, log_det = stack.values(offset, samples), u.new_empty(samples)
    if samples:
        sequential_affine_kernel[(triton.cdiv(samples, SAMPLES),)](
            values, log_det, u, stack.weights, stack.begins, samples, *stack.sizes, min_scale, bound,
            **_constants(activation, parameterisation),
        )  # fmt: skip
    return values, log_det


def _samples_first(x: Tensor, units: Tensor) -> Tensor:
    """[D, N] in the order of degrees to [N, D]."""
    return x[units.argsort()].t().contiguous()


def sequential_affine(
    u: Tensor, offset: Tensor, parameters: Tensor, degrees: Tensor, widths: Sequence[int], *how
) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.sequential_affine``."""
    stack = _Stack(parameters, degrees, widths)
    values, log_det = _run(stack, u.t()[stack.units[0]].contiguous(), offset, *how)
    return _samples_first(values[: widths[0]], stack.units[0]), log_det


def sequential_affine_backward(
    grad_x: Tensor,
    grad_log_det: Tensor,
    u: Tensor,
    offset: Tensor,
    parameters: Tensor,
    degrees: Tensor,
    widths: Sequence[int],
    *how,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of u, ``offset`` and ``parameters``."""
    stack = _Stack(parameters, degrees, widths)
    activation, parameterisation, min_scale, bound = how
    samples, features = u.shape
    given, grad_u = u.t()[stack.units[0]].contiguous(), u.new_empty(features, samples)
    values, _ = _run(stack, given, offset, *how)
    gradients = torch.zeros_like(values)
    gradients[:features] = grad_x.t()[stack.units[0]]
    if samples:
        sequential_affine_backward_kernel[(triton.cdiv(samples, SAMPLES),)](
            gradients, grad_u, grad_log_det.contiguous(), values, given, stack.weights, stack.begins,
            samples, *stack.sizes, min_scale, bound, **_constants(activation, parameterisation),
        )  # fmt: skip
    with torch.autocast(u.device.type, enabled=False):
        grad_parameters = stack.gradient(values, gradients)
    grad_offset = _samples_first(gradients[features : features + widths[1]], stack.units[1])
    grad_offset = grad_offset if len(offset) == samples else grad_offset.sum(0, keepdim=True)
    return _samples_first(grad_u, stack.units[0]), grad_offset, grad_parameters


_TYPES = {"log_det": "*fp32", "u": "*fp32", "values": "*fp32", "weights": "*fp32", "begins": "*i32"}
_TYPES |= {"samples": "i32", "features": "i32", "groups": "i32", "widest": "i32", "min_scale": "fp32", "bound": "fp32"}

# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (kernel, _TYPES | types, _constants(kind, kind))
    for kernel, types in (
        (sequential_affine_kernel, {}),
        (sequential_affine_backward_kernel, {"gradients": "*fp32", "grad_u": "*fp32", "grad_log_det": "*fp32"}),
    )
    for kind in range(4)
]
