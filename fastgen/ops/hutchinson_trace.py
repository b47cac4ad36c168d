"""The trace of a field's Jacobian, estimated or exact: a function over ops, since it takes a callable."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.ops.field import Field
from fastgen.ops.philox_uniform import philox_uniform
from fastgen.ops.precision import in_float32

KINDS = ("rademacher", "gaussian", "hutch++", "exact", "closed-form")
_MOST_PROBES = 1 << 16
_BATCHED, _BATCHED_RECORDED, _BATCHED_IMAGES, _BATCHED_ELSEWHERE = 1 << 20, 1 << 21, 1 << 16, 1 << 24
"""Numbers at most in a batch of cotangents that one backward takes: on a CPU more leave the cache, which costs more
than calls do, those that are recorded to be differentiated again a little later. A network of images works on many more
numbers than it takes. On a GPU, the last."""
_LEAST = 16
"""Cotangents that must fit in a batch on a CPU: where fewer do, a backward is so long that its call costs nothing."""


def hutchinson_trace(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    probes: int = 1,
    kind: str = "rademacher",
    seed: int = 0,
    offset: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``f(x)`` and the trace of df/dx for every sample, as a continuous normalizing flow needs them.

    With J the Jacobian of one sample, m = ``probes`` and D the numbers in a sample::

        "rademacher":   mean of v^T J v over m vectors of random signs;  variance 2 (|S|^2 - sum S_ii^2) / m
        "gaussian":     the same of normal vectors;                      variance 2 |S|^2 / m
        "hutch++":      exact on what m/3 products sketch of J, "rademacher" on the rest; m products in all
        "exact":        the trace, from D products, or in closed form
        "closed-form":  the trace of a field of one or two hidden layers, cheaper than one probe

    with S the symmetric part of J and |.| the Frobenius norm. Both results are differentiable to any order, in x and in
    whatever f holds; the noise is a constant, and so is the subspace of Hutch++, which leaves the gradient unbiased.
    Under ``torch.no_grad`` nothing is kept. f runs once, and every product is a vector-Jacobian product, a backward of
    it. No more than D of them are made: from D probes on, an estimate is put together of J's rows, and Hutch++ is
    exact.

    A ``DenseField`` or a ``ConvField``, or a module with a method ``at()`` that gives one (``fastgen.nn.MLPField`` and
    ``ConvNetField``), takes all probes through each layer at once and has its gradient written by hand; for dense
    layers at most 256 wide one compiled kernel does it all, and another its gradient, which may keep some 32 MiB.

    Args:
        f: [N, D...] to [N, D...], each sample by itself.
        x: float [N, D...].
        probes: m, from 1 (3 with "hutch++") to 65,536; "exact" and "closed-form" do not read it.
        kind: as above.
        seed: of the noise, -2**63 <= seed < 2**63.
        offset: number of the first sample. The noise of a sample depends on the seed, its number and the probe alone:
            a batch in two halves has the noise of the whole.
        noise: the vectors themselves, [m, N, D...], or [m, 1, D...] to share them in the batch: a sample's estimate is
            distributed as before, and a wide field is spared the products of its first and last layer. For
            "hutch++" there are m - m // 3, the first m // 3 for the sketch.

    Returns:
        f(x), and the trace [N], float32 for inputs of 32 bits or fewer, else float64.

    Raises:
        TypeError: x or noise is not floating point, or f does not return a tensor.
        ValueError: f(x) has another shape than x, an unknown kind, a number out of range, noise of another shape or
            where none is used, "closed-form" of a callable or of more hidden layers.

    References: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989; Meyer, Musco, Musco,
    Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA 2021; Grathwohl et al., "FFJORD", ICLR 2019.

    Example:
        >>> matrix = torch.randn(3, 3)
        >>> y, trace = hutchinson_trace(lambda x: x @ matrix.t(), torch.randn(5, 3), kind="exact")
        >>> torch.allclose(trace, matrix.trace().expand(5), atol=1e-5)
        True
    """
    function = _field(f)
    _check(function, x, probes, kind, noise)
    field = function if isinstance(function, Field) else Products(function, x)
    if kind in ("exact", "closed-form") and isinstance(field, Field) and field.has_closed_form:
        y, trace = field.trace(x)
        return y.to(x.dtype), trace
    numbers = math.prod(x.shape[1:])
    accumulated = in_float32(x)[0].dtype
    if kind == "exact" or (kind == "hutch++" and probes >= numbers):
        units = torch.eye(numbers, dtype=accumulated, device=x.device).reshape(numbers, 1, *x.shape[1:])
        pairs, scale = (units, units), 1.0
    else:
        if noise is None:
            count = probes - probes // 3 if kind == "hutch++" else probes
            noise = probe_noise(x, count, "gaussian" if kind == "gaussian" else "rademacher", seed, offset, accumulated)
        noise = noise.detach().to(accumulated)
        if kind == "hutch++":
            pairs, scale = _hutch_pp(field, x, noise, probes // 3), 1.0
        elif probes >= numbers:
            pairs, scale = _of_rows(noise, x), 1 / probes
        else:
            pairs, scale = (noise, noise), 1 / probes
    y, trace = field.contract(x, *pairs)
    return (y.to(x.dtype) if isinstance(field, Field) else y), trace if scale == 1 else trace * scale


def _has_hooks() -> bool:
    """Returns whether tensors saved for the backward go through hooks, as in checkpointing, on which vmap fails."""
    return not torch.compiler.is_compiling() and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _field(f: Callable) -> Callable:
    at = getattr(f, "at", None)
    return at() if callable(at) else f


def _check(f: Callable, x: Tensor, probes: int, kind: str, noise: Tensor | None) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"x must have shape [N, D...], got {tuple(x.shape)}")
    if isinstance(f, Field):
        f.check(x)
    if kind == "closed-form" and not (isinstance(f, Field) and f.has_closed_form):
        raise ValueError(
            "kind must be 'exact' for f, got 'closed-form', which is of dense fields of one or two hidden layers"
        )
    exact = kind in ("exact", "closed-form")
    least = 3 if kind == "hutch++" else 1
    if not exact and not least <= probes <= _MOST_PROBES:
        raise ValueError(f"probes must be from {least} to {_MOST_PROBES} for kind {kind!r}, got {probes}")
    if noise is None:
        return
    if exact:
        raise ValueError(f"noise must be None for kind {kind!r}, which uses none, got a tensor")
    if not noise.is_floating_point():
        raise TypeError(f"noise must be floating point, got {noise.dtype}")
    count = probes - probes // 3 if kind == "hutch++" else probes
    wanted = (count, *x.shape)
    if noise.shape != wanted and noise.shape != (count, 1, *x.shape[1:]):
        given, samples = tuple(noise.shape), x.shape[0]
        raise ValueError(f"noise must have shape {wanted}, or have 1 in place of {samples}, got {given}")


def probe_noise(x: Tensor, probes: int, kind: str, seed: int, offset: int, dtype: torch.dtype) -> Tensor:
    """Returns the vectors [probes, N, D...] of a seed, for kind "rademacher" or "gaussian"."""
    samples = torch.arange(offset, offset + x.shape[0], device=x.device)
    positions = torch.arange(math.prod(x.shape[1:]), device=x.device)
    rows = []
    for probe in range(probes):
        uniform = philox_uniform(seed, samples, positions, 0, probe)
        rows.append((torch.special.ndtri(uniform) if kind == "gaussian" else (uniform - 0.5).sign_()).to(dtype))
    return torch.stack(rows).reshape(probes, *x.shape)


def _of_rows(noise: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the unit vectors and the columns of C = sum v v^T: the sum of v^T J v is tr(J C)."""
    vectors = noise.flatten(2)
    columns = torch.einsum("pni,pnj->inj", vectors, vectors)
    numbers = len(columns)
    units = torch.eye(numbers, dtype=noise.dtype, device=noise.device)
    return units.reshape(numbers, 1, *x.shape[1:]), columns.unflatten(2, x.shape[1:])


@torch.no_grad()
def _hutch_pp(field: Field | Products, x: Tensor, noise: Tensor, sketched: int) -> tuple[Tensor, Tensor]:
    """Returns left and right vectors: a basis of J^T's sketched range, and the other noise projected off it."""
    ranges = field.products(x, noise[:sketched]).flatten(2).permute(1, 2, 0)
    basis = torch.linalg.qr(ranges.detach())[0]  # forward-mode derivatives do not mind no_grad
    rest = noise[sketched:].flatten(2).expand(-1, x.shape[0], -1).permute(1, 2, 0)
    rest = (rest - basis @ (basis.mT @ rest)) / math.sqrt(rest.shape[2])
    vectors = torch.cat([basis, rest], 2).permute(2, 0, 1).unflatten(2, x.shape[1:])
    return vectors, vectors


class Products:
    """Vector-Jacobian products of a callable at x, which runs once; a ``Field`` has methods for them."""

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        if torch.compiler.is_dynamo_compiling() or torch._C._are_functorch_transforms_active():
            self.y, pull = torch.func.vjp(f, x)[:2]
            self.pull = lambda cotangent: pull(cotangent)[0]
        else:
            recorded = torch.is_grad_enabled()
            with torch.enable_grad():
                at = x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_()
                y = f(at)
            self.y = y if recorded or not isinstance(y, Tensor) else y.detach()
            self.pull = lambda cotangent: self._gradient(y, at, cotangent)
        if not isinstance(self.y, Tensor):
            raise TypeError(f"f must return a tensor, got a {type(self.y).__name__}")
        if self.y.shape != x.shape:
            raise ValueError(f"f must keep the shape of x, {tuple(x.shape)}, got {tuple(self.y.shape)}")

    @staticmethod
    def _gradient(y: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        if not y.requires_grad:
            return torch.zeros_like(cotangent)
        kept = {"retain_graph": True, "create_graph": torch.is_grad_enabled()}
        (found,) = torch.autograd.grad(y, x, cotangent, **kept, allow_unused=True, materialize_grads=True)
        return found

    def products(self, x: Tensor, vectors: Tensor) -> Tensor:
        """v^T J of every v in [P, N or 1, D...]: [P, N, D...], in float32 or float64."""
        cotangents = vectors.to(self.y.dtype).expand(vectors.shape[:1] + x.shape)
        found = self._batched(x, cotangents)
        return (torch.stack([self.pull(v) for v in cotangents]) if found is None else found).to(vectors.dtype)

    def power_products(self, x: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """f(x) and ``v^T J, v^T J^2, ..., v^T J^count`` of vectors [N, D...]: [count, N, D...], without a gradient."""
        terms = []
        with torch.no_grad():
            for _ in range(count):
                vectors = self.pull(vectors)
                terms.append(vectors)
        return self.y, torch.stack(terms) if terms else vectors.new_empty(0, *vectors.shape)

    def contract(self, x: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and the sum of left_p^T J right_p."""
        cotangents = left.to(self.y.dtype).expand(left.shape[:1] + x.shape)
        found = self._batched(x, cotangents)
        if found is not None:
            return self.y, (found * right).flatten(2).sum(2).sum(0)
        total, numbers = left.new_zeros(x.shape[0]), tuple(range(1, x.dim()))
        for cotangent, along in zip(cotangents, right, strict=True):
            total = total + (self.pull(cotangent) * along).sum(numbers)
        return self.y, total

    def _batched(self, x: Tensor, cotangents: Tensor) -> Tensor | None:
        """Returns the products if computing many in one backward is possible and faster, else None."""
        most, least = _BATCHED_ELSEWHERE, 2
        if x.device.type == "cpu":
            of_vectors = _BATCHED_RECORDED if torch.is_grad_enabled() else _BATCHED
            most, least = of_vectors if x.dim() == 2 else _BATCHED_IMAGES, _LEAST
        together = most // max(1, x.numel())
        if together < least or len(cotangents) < 2 or _has_hooks():
            return None
        chunk = together if together < len(cotangents) else None  # one chunk would be copied all the same
        try:
            return torch.func.vmap(self.pull, chunk_size=chunk)(cotangents)
        except RuntimeError:  # not every backward can be batched
            return None
