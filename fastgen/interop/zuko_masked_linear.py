"""zuko's masked linear map with its mask as numbers, by which PyTorch multiplies twice as fast as by booleans."""

from __future__ import annotations

import functools
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional
from zuko.nn import MaskedLinear

from fastgen.interop.eligible import is_transformed

_forward = MaskedLinear.forward


class _Numbers(NamedTuple):
    """A mask in the dtype of the weight, valid while the module has that mask unchanged."""

    mask: Tensor
    version: int
    numbers: Tensor


_KNOWN: WeakKeyDictionary[MaskedLinear, _Numbers] = WeakKeyDictionary()


@functools.wraps(_forward)
def forward(self, x: Tensor) -> Tensor:
    if is_transformed() or self.mask.is_inference():
        return _forward(self, x)
    return functional.linear(x, _numbers(self) * self.weight, self.bias)


def _numbers(module: MaskedLinear) -> Tensor:
    mask, dtype = module.mask, module.weight.dtype
    known = _KNOWN.get(module)
    if known is None or known.mask is not mask or known.version != mask._version or known.numbers.dtype != dtype:
        with torch.inference_mode(False):
            known = _KNOWN[module] = _Numbers(mask, mask._version, mask.to(dtype))
    return known.numbers
