"""zuko's rational-quadratic spline on fastgen's kernel."""

from __future__ import annotations

import functools
from numbers import Real

import torch
from torch import Tensor
from torch.distributions import Transform
from zuko.transforms import MonotonicRQSTransform

from fastgen.interop.eligible import eligible, is_transformed
from fastgen.interop.packing import packed
from fastgen.ops import rq_spline
from fastgen.ops.soft_clip import soft_clip

_init = MonotonicRQSTransform.__init__
_TABLES = "horizontal", "vertical", "derivatives"


@functools.wraps(_init)
def init(self, widths, heights, derivatives, bound=5.0, slope=1e-3, **kwargs):
    if type(self) is not MonotonicRQSTransform or not _fit([widths, heights, derivatives], bound, slope):
        _init(self, widths, heights, derivatives, bound, slope, **kwargs)
        return
    Transform.__init__(self, **kwargs)
    self.__class__ = KernelSpline
    self._arguments = widths, heights, derivatives, bound, slope
    raw = packed([widths, heights, derivatives])
    self._parameters = soft_clip(raw, 2 * widths.shape[-1], slope, _least(slope))


class KernelSpline(MonotonicRQSTransform):
    """A ``MonotonicRQSTransform`` that keeps its raw parameters, from which the kernel computes the bins it needs.

    zuko's tables of knots and slopes are computed on first access, and have the gradients that they would have
    had at the start.
    """

    def __getattr__(self, name: str) -> Tensor:
        if name not in _TABLES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        tables = MonotonicRQSTransform.__new__(MonotonicRQSTransform)
        with torch.inference_mode(False), torch.set_grad_enabled(self._parameters.requires_grad):
            _init(tables, *self._arguments)
        if not is_transformed():  # what a transform of torch.func has seen is of no use after it
            self.__dict__ |= {table: getattr(tables, table) for table in _TABLES}
        return getattr(tables, name)

    def __reduce__(self) -> tuple:
        return functools.partial(MonotonicRQSTransform, cache_size=self._cache_size), self._arguments

    @property
    def bins(self) -> int:
        return self._arguments[0].shape[-1]

    def _call(self, x: Tensor) -> Tensor:
        found = self._transform(x, inverse=False)
        return super()._call(x) if found is None else found[0]

    def _inverse(self, y: Tensor) -> Tensor:
        found = self._transform(y, inverse=True)
        return super()._inverse(y) if found is None else found[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self._transform(x, inverse=False)
        return super().call_and_ladj(x) if found is None else found

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """Returns values and log-derivatives by the kernel; None where it does not take x."""
        *parts, bound, slope = self._arguments
        if not eligible("rq_spline", x, *parts):
            return None
        shape = torch.broadcast_shapes(x.shape, self._parameters.shape[:-1])
        return rq_spline(
            x.expand(shape),
            self._parameters.expand(*shape, -1),
            inverse=inverse,
            bound=bound,
            min_width=0.0,
            min_height=0.0,
            min_derivative=_least(slope),
        )


KernelSpline.__name__ = KernelSpline.__qualname__ = MonotonicRQSTransform.__name__


def _least(slope: float) -> float:
    """Returns what the kernel adds to the softplus of a slope, less than the rounding of zuko's least slope."""
    return slope * 1e-9


def _fit(parts: list[Tensor], bound: float, slope: float) -> bool:
    """Returns whether the kernel takes these parameters of a spline."""
    if not eligible("rq_spline", *parts) or not all(part.dim() for part in parts):
        return False
    if not (isinstance(bound, Real) and bound > 0 and isinstance(slope, Real) and 0 < slope < 1):
        return False
    shape, bins = parts[0].shape[:-1], parts[0].shape[-1]
    return bins > 0 and [part.shape for part in parts] == [(*shape, bins), (*shape, bins), (*shape, bins - 1)]
