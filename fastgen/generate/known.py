"""Elements that are known beforehand: checked, laid out as the machines take them, and found in the order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastgen.generate.arguments import as_tensor
from fastgen.generate.heads import Head
from fastgen.generate.orders import Order


def given_levels(head: Head, levels: Tensor, batch: int, name: str, shape: Sequence[int]) -> Tensor:
    """Levels ``[batch or 1, *shape]`` as float32 ``[batch, *shape]``.

    Raises:
        ValueError: the shape is another, or a level is none of the head's; ``name`` is what the message calls them.
    """
    levels = as_tensor(name, levels)
    if tuple(levels.shape[1:]) != tuple(shape) or levels.shape[0] not in (1, batch):
        raise ValueError(
            f"{name} must have shape [{batch} or 1, {', '.join(map(str, shape))}], got {list(levels.shape)}"
        )
    head.check_levels(levels, name)
    return levels.expand(batch, *shape).float()


def known_levels(
    head: Head, order: Order, known: Tensor | None, mask: Tensor | None, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """``known`` and ``known_mask`` as levels (0 where nothing is known) and booleans ``[batch, C, positions]``.

    Raises:
        ValueError: one of them is missing, or has another shape or dtype, or a level is none of the head's.
    """
    if known is None and mask is None:
        return None, None
    if known is None or mask is None:
        raise ValueError("known and known_mask go together; one of them is missing")
    mask, event_shape = as_tensor("known_mask", mask), order.event_shape
    sizes = ", ".join(map(str, event_shape))
    if mask.dtype != torch.bool or mask.dim() != len(event_shape) + 1:
        raise ValueError(f"known_mask must be boolean [N, {sizes}], got {mask.dtype} {list(mask.shape)}")
    levels = given_levels(head, known, batch, "known", event_shape)
    if tuple(mask.shape[1:]) != event_shape or mask.shape[0] not in (1, batch):
        raise ValueError(f"known_mask must have shape [{batch} or 1, {sizes}], got {list(mask.shape)}")
    shape = (batch, order.channels, order.positions)
    mask = mask.expand(batch, *event_shape).reshape(shape).contiguous()
    head.check_known_mask(mask)
    kept = torch.where(mask, levels.reshape(shape), 0).contiguous()
    if not head.holds(kept).all():
        raise ValueError(f"known must be {head.allowed()} where known_mask is True, got {kept[~head.holds(kept)][0]}")
    return kept, mask


def check_prefix(prefix: int, mask: Tensor | None) -> None:
    """Raises ValueError unless a mask ``[batch, C, positions]`` has the first ``prefix`` positions of every sample."""
    if prefix and (mask is None or not bool(mask[..., :prefix].all()) or mask.shape[-1] < prefix):
        got = "no known levels" if mask is None else "False for some of them"
        raise ValueError(
            f"known_mask must be True for the prefix of this sampler, the first {prefix} positions of every sample, "
            f"got {got}"
        )


def known_spans(known: Tensor | None, order: Order, first: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cuts the steps ``first .. end`` into spans (from, to, whether all their elements are known in every sample)."""
    if known is None or known.shape[-1] != order.positions:
        yield first, end, False
        return
    everywhere = known.all(0).numpy()
    full = torch.ones(order.length, dtype=torch.bool)
    full[torch.from_numpy(order.steps[~everywhere])] = False
    changes = (full[first + 1 : end] != full[first : end - 1]).nonzero().flatten() + first + 1
    cuts = [first, *changes.tolist(), end] if first < end else []
    for start, stop in itertools.pairwise(cuts):
        yield start, stop, bool(full[start])
