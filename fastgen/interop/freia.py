"""FrEIA on fastgen's kernels: AllInOneBlock, and the affine couplings of the RealNVP, Glow and conditional blocks.

Two different sources call themselves FrEIA 0.2: the package index's and the repository's. Both are known. On the CPU
only the permutations and global scales of large blocks gain, and only those are replaced there in effect: for the
coupling kernel scales and shifts would have to be copied first, which costs what it saves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.interop.eligible import eligible, is_transformed
from fastgen.interop.evaluated import Evaluated
from fastgen.interop.known_source import check_known, digest
from fastgen.interop.worthwhile import LARGE, NEVER_ON_CPU, is_worthwhile
from fastgen.ops import affine_coupling
from fastgen.ops.precision import is_autocast

_CLAMP_OUTSIDE, _CLAMP_THROUGHOUT = "55ef9dcf665dc7f9", "bc45cafc5eb7bcaf"
"""Digests of ``AllInOneBlock._affine`` with log-scale clamp tanh(h / 10), and with clamp tanh(h / 10 / clamp)."""

KNOWN = {
    "AllInOneBlock._affine": (_CLAMP_OUTSIDE, _CLAMP_THROUGHOUT),
    "AllInOneBlock._permute": ("949059a576262263",),
    "AllInOneBlock._pre_permute": ("ab0a8f8a1d4dfdce",),
    "RNVPCouplingBlock._coupling1": ("c22039073317e810",),
    "RNVPCouplingBlock._coupling2": ("c90ae3c97db1c7eb",),
    "GLOWCouplingBlock._coupling1": ("88903ad19042ddd5",),
    "GLOWCouplingBlock._coupling2": ("74634563a7621fe4",),
    "AffineCouplingOneSided.forward": ("2cb26065062a76fb",),
    "ConditionalAffineTransform.forward": ("58ad727d4ae7165e",),
}
"""Digests of the functions that are replaced."""

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def replacements() -> Iterator[tuple[Any, str, Any]]:
    """Yields what a kernel computes, and products with permutations: its owner, its name, and what replaces it.

    Raises:
        ValueError: another source of a function than those of the two 0.2.
    """
    from FrEIA.modules import all_in_one_block, coupling_layers

    block = all_in_one_block.AllInOneBlock
    wrappers: dict[tuple[type, str], Callable[[Callable], Callable]] = {
        (block, "_affine"): _all_in_one_affine,
        (block, "_permute"): _permute,
        (block, "_pre_permute"): _pre_permute,
        (coupling_layers.RNVPCouplingBlock, "_coupling1"): _two_networks("2"),
        (coupling_layers.RNVPCouplingBlock, "_coupling2"): _two_networks("1"),
        (coupling_layers.GLOWCouplingBlock, "_coupling1"): _one_network("subnet2"),
        (coupling_layers.GLOWCouplingBlock, "_coupling2"): _one_network("subnet1"),
        (coupling_layers.AffineCouplingOneSided, "forward"): _one_sided,
        (coupling_layers.ConditionalAffineTransform, "forward"): _conditional,
    }
    functions = {f"{owner.__name__}.{name}": getattr(owner, name) for owner, name in wrappers}
    check_known("FrEIA 0.2, of the package index and of the repository", functions, KNOWN)
    for (owner, name), wrapper in wrappers.items():
        yield owner, name, wrapper(getattr(owner, name))


def _all_in_one_affine(original: Callable) -> Callable:
    throughout = digest(original) == _CLAMP_THROUGHOUT

    @functools.wraps(original)
    def affine(self, x, a, rev=False):
        is_number = isinstance(self.clamp, (int, float)) and (self.clamp or not throughout)
        if self.GIN or not (is_number and _is_taken(x) and _fit(x, a)):
            return original(self, x, a, rev)
        if throughout:
            a = a * 0.1
        else:
            a *= 0.1  # theirs too changes what the network returned
        raw, shift = a.split(x.shape[1], 1)
        parameters = torch.cat([shift, raw / self.clamp if throughout else raw], 1)
        return affine_coupling(x, parameters, parameterisation="tanh", scale=self.clamp, inverse=bool(rev))

    return affine


def _permute(original: Callable) -> Callable:
    """Multiplies by a matrix: a permutation by selection, another matrix with scale and offset folded into it."""

    @functools.wraps(original)
    def permute(self, x, rev=False):
        weight = self.w_perm_inv if rev else self.w_perm
        if not _is_product(weight, x):
            return original(self, x, rev)
        selected = _selection(weight)
        if selected is None and self.permute_function not in _CONVOLUTIONS:
            return original(self, x, rev)
        scale = torch.ones_like(self.global_offset) if self.GIN else self.global_scale_activation(self.global_scale)
        log_det = 0.0 if self.GIN else scale.log().sum()
        if selected is not None and rev:
            x = (x.index_select(1, selected) - self.global_offset) / scale
        elif selected is not None:
            x, scale, offset = (t.index_select(1, selected) for t in (x, scale, self.global_offset))
            x = torch.addcmul(offset, x, scale)
        elif rev:
            x = self.permute_function(x, weight / scale.transpose(0, 1), (-self.global_offset / scale).flatten())
        else:
            x = self.permute_function(x, weight * scale, weight.flatten(1) @ self.global_offset.flatten())
        return x, log_det

    return permute


def _pre_permute(original: Callable) -> Callable:
    @functools.wraps(original)
    def pre_permute(self, x, rev=False):
        weight = self.w_perm if rev else self.w_perm_inv
        if not _is_product(weight, x):
            return original(self, x, rev)
        selected = _selection(weight)
        return original(self, x, rev) if selected is None else x.index_select(1, selected)

    return pre_permute


def _is_product(weight: Tensor, x: Tensor) -> bool:
    """Returns whether ``weight`` is a matrix that multiplies every position of a large x, in a plain eager call."""
    if not is_worthwhile(x, LARGE // 2) or is_transformed() or is_autocast(x):
        return False
    if x.dim() != max(2, weight.dim()) or weight.shape[:2] != (x.shape[1], x.shape[1]):
        return False
    return weight.dtype == x.dtype and weight.device == x.device


def _selection(weight: Tensor) -> Tensor | None:
    """Returns the column of the 1 in each row of a fixed permutation matrix on the CPU; None for other matrices."""
    if weight.requires_grad or weight.device.type != "cpu":
        return None
    matrix = weight.flatten(1)
    if int(matrix.count_nonzero()) != len(matrix):
        return None
    rows, columns = matrix.nonzero(as_tuple=True)
    is_selection = torch.equal(rows, torch.arange(len(matrix))) and bool((matrix[rows, columns] == 1).all())
    return columns if is_selection else None


def _two_networks(side: str) -> Callable[[Callable], Callable]:
    def replacement(original: Callable) -> Callable:
        @functools.wraps(original)
        def coupling(self, x, u, rev=False):
            if not _is_taken(x):
                return original(self, x, u, rev)
            raw, shift = getattr(self, f"subnet_s{side}")(u), getattr(self, f"subnet_t{side}")(u)
            if _are_like(x, raw, shift):
                return _affine(self, x, raw, shift, rev)
            return original(Evaluated(self, **{f"subnet_s{side}": raw, f"subnet_t{side}": shift}), x, u, rev)

        return coupling

    return replacement


def _one_network(subnet: str) -> Callable[[Callable], Callable]:
    def replacement(original: Callable) -> Callable:
        @functools.wraps(original)
        def coupling(self, x, u, rev=False):
            if not _is_taken(x):
                return original(self, x, u, rev)
            a = getattr(self, subnet)(u)
            if _fit(x, a):
                return _affine(self, x, *a.split(x.shape[1], 1), rev)
            return original(Evaluated(self, **{subnet: a}), x, u, rev)

        return coupling

    return replacement


def _one_sided(original: Callable) -> Callable:
    @functools.wraps(original)
    def forward(self, x, c=(), rev=False, jac=True):
        if not _is_taken(x[0]):
            return original(self, x, c, rev, jac)
        kept, changed = torch.split(x[0], [self.split_len1, self.split_len2], dim=1)
        a = self.subnet(torch.cat([kept, *c], 1) if self.conditional else kept)
        if not _fit(changed, a):
            return original(Evaluated(self, subnet=a), x, c, rev, jac)
        changed, log_det = _affine(self, changed, *a.split(self.split_len2, 1), rev)
        return (torch.cat((kept, changed), 1),), log_det

    return forward


def _conditional(original: Callable) -> Callable:
    @functools.wraps(original)
    def forward(self, x, c=(), rev=False, jac=True):
        if not c or not _is_taken(x[0]):
            return original(self, x, c, rev, jac)
        a = self.subnet(torch.cat([*c], 1))
        if not _fit(x[0], a):
            return original(Evaluated(self, subnet=a), x, c, rev, jac)
        y, log_det = _affine(self, x[0], *a.split(self.channels, 1), rev)
        return (y,), log_det

    return forward


def _is_taken(x: Tensor) -> bool:
    """Returns whether the kernel transforms x; FrEIA's order of scale and shift makes it copy both first."""
    return is_worthwhile(x, NEVER_ON_CPU) and eligible("affine_coupling", x)


def _fit(x: Tensor, a: Tensor) -> bool:
    """Returns whether ``a`` has two numbers for each of x."""
    if not (isinstance(a, Tensor) and x.dim() > 1 and x.shape[1]):
        return False
    return a.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]) and eligible("affine_coupling", x, a)


def _are_like(x: Tensor, raw: Tensor, shift: Tensor) -> bool:
    return x.dim() > 1 and raw.shape == shift.shape == x.shape and eligible("affine_coupling", x, raw, shift)


def _affine(block: nn.Module, x: Tensor, raw: Tensor, shift: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
    """Returns ``x exp(clamp f(raw)) + shift``, with the block's clamp and f."""
    if block.f_clamp is torch.tanh and isinstance(block.clamp, (int, float)):
        parameters, kind, scale = torch.cat([shift, raw], 1), "tanh", block.clamp
    else:
        parameters, kind, scale = torch.cat([shift, block.clamp * block.f_clamp(raw)], 1), "exp", 1.0
    return affine_coupling(x, parameters, parameterisation=kind, scale=scale, inverse=bool(rev))
