"""Contexts: what a network is conditioned on, as tensors in a fixed order, and as position-major buffers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads


class ContextLayout:
    """The structure that ``example_context`` shows: one tensor, or a dict or tuple of tensors, ``[N, ...]`` each."""

    def __init__(self, example) -> None:
        self.leaves, self.structure = tree_flatten(example)
        for leaf in self.leaves:
            if not isinstance(leaf, Tensor) or leaf.dim() < 1:
                raise ValueError(f"example_context must hold tensors [N, ...], got {type(leaf).__name__}")

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
        """Structure, shapes and dtypes, as plain data.

        Raises:
            NotImplementedError: the structure has a class that PyTorch's pytrees cannot write down.
        """
        tensors = [[list(leaf.shape), str(leaf.dtype).removeprefix("torch.")] for leaf in self.leaves]
        return {"structure": treespec_dumps(self.structure), "tensors": tensors}

    @classmethod
    def from_config(cls, config: dict) -> ContextLayout:
        leaves = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in config["tensors"]]
        return cls(tree_unflatten(leaves, treespec_loads(config["structure"])))

    def frames(self) -> list[int]:
        return [leaf.shape[2] for leaf in self.leaves if leaf.dim() == 3]

    def check(self, context, batch: int) -> list[Tensor]:
        """The leaves of ``context`` for ``batch`` samples; one row stands for all.

        Raises:
            ValueError: the structure, a shape or a dtype differs from the example's.
        """
        leaves, structure = tree_flatten(context)
        if structure != self.structure:
            raise ValueError(f"context must have the structure of example_context, {self.structure}, got {structure}")
        checked = []
        for number, (leaf, example) in enumerate(zip(leaves, self.leaves, strict=True)):
            name = "context" if len(leaves) == 1 else f"context, leaf {number},"
            if not isinstance(leaf, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(leaf).__name__}")
            if leaf.dim() != example.dim() or leaf.shape[1:] != example.shape[1:] or leaf.shape[0] not in (1, batch):
                wanted = ["N", *example.shape[1:]]
                raise ValueError(f"{name} must have shape {wanted} with N = {batch} or 1, got {list(leaf.shape)}")
            if leaf.is_floating_point() != example.is_floating_point():
                raise ValueError(f"{name} must have dtype {example.dtype}, got {leaf.dtype}")
            if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
                raise ValueError(f"{name} holds NaN or infinite values")
            checked.append(leaf.expand(batch, *leaf.shape[1:]).to(example.dtype))
        return checked

    def module_context(self, leaves: list[Tensor]):
        return tree_unflatten(leaves, self.structure)


def context_leaves(layout: ContextLayout | None, context, batch: int) -> list[Tensor]:
    """The leaves of ``context`` for ``batch`` samples; none where the sampler was made without an example.

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


def position_major(leaf: Tensor) -> Tensor:
    """``[N, C, *grid]`` (or ``[N]``) to float32 ``[N, positions, C]``."""
    leaf = leaf.unsqueeze(1) if leaf.dim() == 1 else leaf
    return leaf.flatten(2).movedim(1, -1).float().contiguous() if leaf.dim() > 2 else leaf[:, None].float().contiguous()
