"""Contexts: what a network is conditioned on, as tensors in a fixed order, and as position-major buffers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

_MAPPINGS = {"dict": dict, "OrderedDict": OrderedDict}
_SEQUENCES = {"list": list, "tuple": tuple}
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_DEEPEST = 32

MOST_OF_CONTEXT = 1 << 20
"""How large integers of a context may be, so that float32 holds what is made from them."""


class ContextLayout:
    """The structure that ``example_context`` shows: one tensor, or a dict or tuple of tensors, ``[N, ...]`` each.

    ``free`` are dimensions, (leaf, dimension) each, that may have another size than the example's: one for all of them,
    the number of the context's positions. ``fixed`` says why there are none, where some were tried.
    """

    def __init__(self, example, free: Sequence[tuple[int, int]] = (), fixed: str = "") -> None:
        self.leaves, self.structure = tree_flatten(example)
        self.free, self.fixed = tuple(free), fixed
        for path, leaf in tree_flatten_with_path(example)[0]:
            if not isinstance(leaf, Tensor) or leaf.dim() < 1:
                said = "a tensor without dimensions" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
                raise ValueError(
                    f"example_context{keystr(path)} must be a tensor [N, ...], got {said}; leave out what is not a "
                    "tensor, and give it to the network in a forward of your own"
                )
            if not leaf.numel():
                raise ValueError(f"example_context{keystr(path)} must have elements, got {list(leaf.shape)}")

    def example(self, batch: int, length: int | None = None, full_length: int | None = None):
        """``batch`` rows of the example.

        Of tensors ``[N, C, F]``, the frames that ``length`` of ``full_length`` steps need. Returns None where the
        frames do not divide.
        """
        leaves = []
        for leaf in self.leaves:
            leaf = leaf[:1].expand(batch, *leaf.shape[1:]).contiguous()
            if length is not None and leaf.dim() == 3:
                frames = leaf.shape[2] * length
                if frames % full_length:
                    return None
                leaf = leaf[..., : frames // full_length].contiguous()
            leaves.append(leaf)
        return tree_unflatten(leaves, self.structure)

    def to_config(self) -> dict:
        """Returns structure, shapes and dtypes as plain data.

        Raises:
            NotImplementedError: the context holds something else than tensors in dicts, lists and tuples.
        """
        free = [[leaf, dim] for leaf, dim in self.free]
        return {"structure": _written(tree_unflatten(self.leaves, self.structure), 0), "free": free}

    @classmethod
    def from_config(cls, config: Any) -> ContextLayout:
        """Returns the layout of a ``to_config``, with tensors of zeros that take no memory.

        Raises:
            ValueError: the structure, a shape or a dtype is none that ``to_config`` writes.
        """
        if not isinstance(config, dict) or config.keys() != {"structure", "free"}:
            raise ValueError("context must have a structure, free dimensions, and nothing else")
        layout, free = cls(_read(config["structure"], 0)), config["free"]
        pairs = isinstance(free, list) and all(isinstance(f, list) and [type(n) for n in f] == [int, int] for f in free)
        if not pairs or any(not 0 <= n < len(layout.leaves) or not 0 < d < layout.leaves[n].dim() for n, d in free):
            raise ValueError("context must have free dimensions of its tensors, each a leaf and a dimension")
        layout.free = tuple((number, dim) for number, dim in free)
        return layout

    def position_major_shapes(self, batch: int) -> list[list[int]]:
        """Returns the shapes that ``position_major`` gives the leaves of ``batch`` samples."""
        return [position_major_shape([batch, *leaf.shape[1:]]) for leaf in self.leaves]

    def frames(self) -> list[int]:
        return [
            leaf.shape[2]
            for number, leaf in enumerate(self.leaves)
            if leaf.dim() == 3 and not any(number == other for other, _ in self.free)
        ]

    # ---- the number of positions

    def candidates(self) -> list[tuple[tuple[int, int], ...]]:
        """Returns which dimensions may be the context's positions: those of one size together, or one of them."""
        dims = [(n, d) for n, leaf in enumerate(self.leaves) for d in range(1, leaf.dim()) if leaf.shape[d] > 1]
        sizes = dict.fromkeys(self.leaves[n].shape[d] for n, d in dims)
        together = [tuple(dim for dim in dims if self.leaves[dim[0]].shape[dim[1]] == size) for size in sizes]
        return [*dict.fromkeys([*together, *((dim,) for dim in dims)])]

    def positions(self, leaves: Sequence[Tensor] | None = None) -> int:
        """Returns the size of the free dimensions of some leaves, by default the example's."""
        number, dim = self.free[0]
        return (self.leaves if leaves is None else leaves)[number].shape[dim]

    def resized(self, leaves: Sequence[Tensor], positions: int) -> list[Tensor]:
        """Returns the leaves with so many positions: the first ones, and all of them again."""
        made = list(leaves)
        for number, dim in self.free:
            made[number] = made[number].index_select(dim, torch.arange(positions) % made[number].shape[dim])
        return made

    def check(self, context, batch: int) -> list[Tensor]:
        """Returns the leaves of ``context`` for ``batch`` samples; one row stands for all.

        Raises:
            ValueError: the structure, a shape or a dtype differs from the example's.
        """
        leaves, structure = tree_flatten(context)
        if structure != self.structure:
            raise ValueError(f"context must have the structure of example_context, {self.structure}, got {structure}")
        checked, positions = [], None
        for number, (leaf, example) in enumerate(zip(leaves, self.leaves, strict=True)):
            name = "context" if len(leaves) == 1 else f"context, leaf {number},"
            if not isinstance(leaf, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(leaf).__name__}")
            free = {dim for other, dim in self.free if other == number}
            if free and leaf.dim() == example.dim() and positions is None:
                positions = leaf.shape[min(free)]
            wanted = ["N", *example.shape[1:]]
            for dim in free:
                wanted[dim] = "any number" if positions is None else positions
            if leaf.dim() != example.dim() or list(leaf.shape[1:]) != wanted[1:] or leaf.shape[0] not in (1, batch):
                said = f"; {self.fixed}" if self.fixed else ""
                raise ValueError(f"{name} must have shape {wanted} with N = {batch} or 1, got {list(leaf.shape)}{said}")
            if not leaf.numel():
                raise ValueError(f"{name} must have elements, got {list(leaf.shape)}")
            if leaf.is_floating_point() != example.is_floating_point():
                raise ValueError(f"{name} must have dtype {example.dtype}, got {leaf.dtype}")
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise ValueError(f"{name} holds NaN or infinite values")
            checked.append(leaf.expand(batch, *leaf.shape[1:]).to(example.dtype))
        return checked

    def module_context(self, leaves: list[Tensor]):
        return tree_unflatten(leaves, self.structure)


def context_leaves(layout: ContextLayout | None, context, batch: int) -> list[Tensor]:
    """Returns the leaves of ``context`` for ``batch`` samples; none where the sampler was made without an example.

    Raises:
        ValueError: a context is missing, or given where there is none, or not as the example.
    """
    if layout is None:
        if context is not None:
            raise ValueError("context is given, but the sampler was made without example_context")
        return []
    if context is None:
        raise ValueError("context is missing: the sampler was made with an example_context")
    return layout.check(context, batch)


def probes(context) -> Iterator[list[Tensor]]:
    """Yields the leaves of a context for two samples, with random changes to the second one that a network may allow.

    Floats get noise or change places, integers go up or down by one.
    """
    for noise, step in ((True, 1), (True, -1), (False, 1), (False, -1)):
        generator = torch.Generator("cpu").manual_seed(0)
        leaves = []
        for leaf in tree_flatten(context)[0]:
            changed = torch.rand(leaf.shape, generator=generator) < 0.5
            changed.view(-1)[:: max(1, leaf[0].numel())] = True
            if not leaf.is_floating_point():
                other = ~leaf if leaf.dtype == torch.bool else leaf + step
            else:
                other = (
                    leaf + torch.randn(leaf.shape, generator=generator).to(leaf.dtype) if noise else leaf.roll(1, -1)
                )
            leaves.append(torch.cat([leaf[:1], torch.where(changed, other, leaf)[1:]]))
        yield leaves


def in_float32(leaf: Tensor) -> Tensor:
    """Returns the tensor as float32; raises ValueError where it holds integers beyond ``MOST_OF_CONTEXT``."""
    if not leaf.is_floating_point() and leaf.numel() and leaf.dtype != torch.bool:
        largest = max(-int(leaf.min()), int(leaf.max()))
        if largest > MOST_OF_CONTEXT:
            raise ValueError(
                f"context must hold integers of at most {MOST_OF_CONTEXT} (2^20), got {largest}; pass larger ones as "
                "floats"
            )
    return leaf.float()


def position_major_shape(shape: Sequence[int]) -> list[int]:
    """Returns the shape that ``position_major`` gives a leaf ``[N, ...]``."""
    batch, *rest = shape
    return [batch, math.prod(rest[1:]), *(rest[:1] or [1])]


def position_major(leaf: Tensor) -> Tensor:
    """``[N, C, *grid]`` (or ``[N]``) to float32 ``[N, positions, C]``.

    Raises:
        ValueError: integers beyond ``MOST_OF_CONTEXT``.
    """
    leaf = in_float32(leaf)
    leaf = leaf.unsqueeze(1) if leaf.dim() == 1 else leaf
    return leaf.flatten(2).movedim(1, -1).float().contiguous() if leaf.dim() > 2 else leaf[:, None].float().contiguous()


def _written(example, depth: int) -> list:
    """As lists: ``["dict", [[key, ...], ...]]``, ``["tuple", [...]]``, and ``["tensor", shape, dtype]``."""
    if depth > _DEEPEST:
        raise NotImplementedError(f"a sampler's file takes contexts of at most {_DEEPEST} levels")
    if isinstance(example, Tensor):
        dtype = str(example.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise NotImplementedError(f"a sampler's file takes contexts of {', '.join(_DTYPES)}, not of {dtype}")
        return ["tensor", list(example.shape), dtype]
    name = type(example).__name__
    if _MAPPINGS.get(name) is type(example) and all(type(key) in (str, int) for key in example):
        return [name, [[key, _written(value, depth + 1)] for key, value in example.items()]]
    if _SEQUENCES.get(name) is type(example):
        return [name, [_written(value, depth + 1) for value in example]]
    raise NotImplementedError(
        "a sampler's file takes contexts made of tensors, dicts with keys that are text or integers, lists and "
        f"tuples; this one has a {name}"
    )


def _read(written: Any, depth: int):
    """Returns the example that ``_written`` wrote down, with tensors of the right shape and dtype."""
    if depth > _DEEPEST or not (isinstance(written, list) and written and isinstance(written[0], str)):
        raise ValueError(
            f"context must be nested at most {_DEEPEST} times and made of tensors, dicts, lists and tuples"
        )
    name, *rest = written
    if name == "tensor" and len(rest) == 2:
        shape, dtype = rest
        sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
        if not sizes or len(shape) > 8 or math.prod(shape) >= 1 << 40 or dtype not in _DTYPES:
            raise ValueError(f"context must have tensors with a shape and a dtype, got {rest!s:.100}")
        return torch.zeros((), dtype=_DTYPES[dtype]).expand(shape)
    if len(rest) == 1 and isinstance(rest[0], list):
        if name in _SEQUENCES:
            return _SEQUENCES[name](_read(value, depth + 1) for value in rest[0])
        items = [item for item in rest[0] if isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int)]
        if name in _MAPPINGS and len(items) == len(rest[0]):
            return _MAPPINGS[name]((key, _read(value, depth + 1)) for key, value in items)
    raise ValueError(f"context must be made of tensors, dicts, lists and tuples, got {written!s:.100}")
