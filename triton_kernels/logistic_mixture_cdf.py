"""The transform of Flow++ on the GPU: every parameter of the mixtures is read once, and each gradient written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_NUMBERS = 1024
"""Of components that a program holds: as many elements as fit."""
STEPS = 60
"""Of the inverse, at most."""
WARPS, REGISTERS = 8, 128
"""Without the second ptxas spills to get by with fewer."""


@triton.jit
def _log_softmax(terms):
    """Of every row, and the logarithm of its sum."""
    top = tl.max(terms, axis=1)[:, None]
    rest = tl.log(tl.sum(tl.exp(terms - top), axis=1))[:, None]
    return (terms - top) - rest, tl.sum(top + rest, axis=1)


@triton.jit
def _evaluate(x, logits, means, log_scales, inverse_scales, whole):
    """y and its log-derivative; what each component weighs of the cdf, the survival and the density, as logarithms."""
    z = (x[:, None] - means) * inverse_scales
    near = tl.exp(-tl.abs(z))
    u = 1.0 + near
    rest = tl.where(u == 1.0, near, tl.log(u) * near / tl.where(u == 1.0, 1.0, u - 1.0))
    up, down = tl.minimum(z, 0.0) - rest, -tl.maximum(z, 0.0) - rest
    cdf, log_cdf = _log_softmax(logits + up)
    survival, log_survival = _log_softmax(logits + down)
    y = log_cdf - log_survival
    high = y > 0.0
    # of the quotient that is large, by component, so that no large logarithms are subtracted
    density, log_density = _log_softmax(tl.where(high[:, None], survival + up, cdf + down) - log_scales)
    log_det = log_density - (tl.where(high, log_cdf, log_survival) - whole)
    return y, log_det, z, tl.where(z < 0.0, near, 1.0) / u, cdf, survival, density


@triton.jit
def _load(parameters, element, present, components: tl.constexpr, padded: tl.constexpr):
    m = tl.arange(0, padded)[None, :]
    real = (m < components) & present[:, None]
    at = parameters + element[:, None] * (3 * components) + m
    logits = tl.load(at, mask=real, other=0.0).to(tl.float32)
    means = tl.load(at + components, mask=real, other=0.0).to(tl.float32)
    log_scales = tl.load(at + 2 * components, mask=real, other=0.0).to(tl.float32)
    logits = tl.where(m < components, logits, float("-inf"))
    weights, whole = _log_softmax(logits)
    return m, real, logits, means, log_scales, tl.exp(weights), whole


@triton.jit
def _solve(
    y, m, logits, means, log_scales, inverse_scales, weights, whole, components: tl.constexpr, steps: tl.constexpr
):
    """x of y: Newton steps that stay in a bracket and shorten, halvings of the bracket otherwise."""
    ends = means + tl.exp(log_scales) * y[:, None]
    low = tl.min(tl.where(m < components, ends, float("inf")), axis=1)
    high = tl.max(tl.where(m < components, ends, float("-inf")), axis=1)
    x = tl.minimum(tl.maximum(tl.sum(weights * ends, axis=1), low), high)
    last, step, unfinished = high - low, 0, 1
    while (unfinished > 0) & (step < steps):
        found, log_det, _, _, _, _, _ = _evaluate(x, logits, means, log_scales, inverse_scales, whole)
        over = found - y
        move = over * tl.exp(-log_det)
        near = x - move
        low, high = tl.where(over < 0.0, x, low), tl.where(over < 0.0, high, x)
        newton = (tl.abs(move) <= last * 0.5) & (near >= low) & (near <= high)
        following = tl.where(newton, near, low + (high - low) * 0.5)
        following = tl.where(over == 0.0, x, following)
        last, x = tl.abs(following - x), following
        unfinished = tl.max((last > 3e-8 * tl.abs(x)).to(tl.int32), axis=0)
        step += 1
    return x


@triton.jit
def logistic_mixture_cdf_kernel(
    y, log_det, x, parameters, elements,
    inverse: tl.constexpr, components: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, steps: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    at = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    m, _, logits, means, log_scales, weights, whole = _load(parameters, element, present, components, padded)
    inverse_scales = tl.exp(-log_scales)
    if inverse:
        at = _solve(at, m, logits, means, log_scales, inverse_scales, weights, whole, components, steps)
    value, slope, _, _, _, _, _ = _evaluate(at, logits, means, log_scales, inverse_scales, whole)
    if inverse:
        value, slope = at, -slope
    tl.store(y + element, value, mask=present)
    tl.store(log_det + element, slope, mask=present)


@triton.jit
def logistic_mixture_cdf_backward_kernel(
    grad_x, grad_parameters, grad_y, grad_log_det, x, parameters, elements,
    inverse: tl.constexpr, components: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, steps: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    present = element < elements
    at = tl.load(x + element, mask=present, other=0.0).to(tl.float32)
    of_y = tl.load(grad_y + element, mask=present, other=0.0).to(tl.float32)
    of_l = tl.load(grad_log_det + element, mask=present, other=0.0).to(tl.float32)
    m, real, logits, means, log_scales, weights, whole = _load(parameters, element, present, components, padded)
    inverse_scales = tl.exp(-log_scales)
    if inverse:
        at = _solve(at, m, logits, means, log_scales, inverse_scales, weights, whole, components, steps)
    _, _, z, above, cdf, survival, density = _evaluate(at, logits, means, log_scales, inverse_scales, whole)
    cdf, survival, density = tl.exp(cdf), tl.exp(survival), tl.exp(density)
    rises = cdf * (1.0 - above) + survival * above  # dy/dz
    slopes = density * (1.0 - 2.0 * above) - cdf * (1.0 - above) + survival * above  # of the log-derivative
    if inverse:  # x = F^-1(y): dx = (dy - F_p dp) / F_x, and its log-derivative is -L
        along = of_y - of_l * tl.sum(slopes * inverse_scales, axis=1)
        of_x = along / tl.sum(rises * inverse_scales, axis=1)
        of_y, of_l = -of_x, -of_l
    of_z = of_y[:, None] * rises + of_l[:, None] * slopes
    of_shift = of_z * inverse_scales
    if not inverse:
        of_x = tl.sum(of_shift, axis=1)
    tl.store(grad_x + element, of_x, mask=present)
    to = grad_parameters + element[:, None] * (3 * components) + m
    of_logits = of_y[:, None] * (cdf - survival) + of_l[:, None] * (density - cdf - survival + weights)
    tl.store(to, of_logits, mask=real)
    tl.store(to + components, -of_shift, mask=real)
    tl.store(to + 2 * components, -of_z * z - of_l[:, None] * density, mask=real)


def _constants(parameters: int, inverse: bool) -> dict:
    components = parameters // 3
    padded = triton.next_power_of_2(components)
    shape = {"components": components, "padded": padded, "block": max(1, BLOCK_NUMBERS // padded)}
    return {"inverse": inverse, "steps": STEPS, "num_warps": WARPS, "maxnreg": REGISTERS} | shape


def logistic_mixture_cdf(x: Tensor, parameters: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """See ``fastgen.ops.logistic_mixture_cdf``."""
    x, parameters = x.contiguous(), parameters.contiguous()
    y, log_det = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        constants = _constants(parameters.shape[-1], inverse)
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        logistic_mixture_cdf_kernel[grid](y, log_det, x, parameters, x.numel(), **constants)
    return y, log_det


def logistic_mixture_cdf_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, parameters: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the parameters."""
    x, parameters = x.contiguous(), parameters.contiguous()
    grad_x, grad_parameters = torch.empty_like(x), torch.empty_like(parameters)
    if x.numel():
        constants = _constants(parameters.shape[-1], inverse)
        given = grad_y.contiguous(), grad_log_det.contiguous(), x, parameters
        grid = (triton.cdiv(x.numel(), constants["block"]),)
        logistic_mixture_cdf_backward_kernel[grid](grad_x, grad_parameters, *given, x.numel(), **constants)
    return grad_x, grad_parameters


# what `make check-cuda` compiles: kernel, the types of its arguments, its constants and options
COMPILED = [
    (kernel, dict.fromkeys(tensors, "*fp32") | {"elements": "i64"}, _constants(3 * components, inverse))
    for kernel, tensors in (
        (logistic_mixture_cdf_kernel, ("y", "log_det", "x", "parameters")),
        (
            logistic_mixture_cdf_backward_kernel,
            ("grad_x", "grad_parameters", "grad_y", "grad_log_det", "x", "parameters"),
        ),
    )
    for components in (4, 32)
    for inverse in (False, True)
]
