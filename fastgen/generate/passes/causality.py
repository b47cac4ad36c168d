"""Checks that no output depends on an element that is not drawn yet, and says where one does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastgen.generate.errors import NotCausalError
from fastgen.generate.ir.graph import ChannelRun, Node, Piece
from fastgen.generate.orders import Order
from fastgen.generate.schedule.scheduler import DrawSite


def check_causal(draws: list[DrawSite], order: Order, event: Node, shift: int, remark: str) -> None:
    """Raises NotCausalError, with the path of the dependency, unless every draw's parameters are ready before it.

    Args:
        draws: with the pieces that they read.
        order: the event's.
        event: the node of the network's input.
        shift: 1 where the network reads every element one position late (``predicts="next"``), else 0.
        remark: what the error adds.
    """
    for draw in draws:
        for piece in draw.pieces:
            for run in piece.source_runs():
                if piece.node.kind == "constant":
                    continue
                rows = piece.rows
                if (run.uses[rows] & 2).any():
                    raise NotCausalError(_mixing(piece, run, rows))
                late = run.ready[rows] > draw.steps
                if late.any():
                    at = int(np.argmax(late))
                    late_by = int(run.ready[rows[at]]) - int(draw.steps[at])
                    peek = _peeking(draw, piece, run, int(rows[at]), at, order, event, shift)
                    raise NotCausalError(peek + _remedy(order, shift, late_by) + remark)


def _walk(
    node: Node, run: ChannelRun, row: int, key: Callable[[ChannelRun, int], int]
) -> tuple[list[Node], Node, int, int]:
    """Follows the dependency that maximises ``key`` back to an input; returns the path, the input, its row and slot."""
    path, slot = [], 0
    while node.kind == "computed":
        path.append(node)
        best = None
        for piece in run.latest():
            source = int(piece.rows[row])
            if source < 0 or piece.node.kind == "constant":
                continue
            for r in piece.source_runs():
                value = key(r, source)
                if best is None or value > best[0]:
                    best = value, piece.node, r, source, int(piece.slots[row])
        if best is None:
            break
        _, node, run, row, slot = best
    return path, node, row, slot


def _layers(path: list[Node]) -> str:
    names = []
    for node in reversed(path):
        name = node.name.split(" (")[0]
        if not names or names[-1] != name:
            names.append(name)
    shown = names if len(names) <= 8 else [*names[:4], "...", *names[-3:]]
    return " -> ".join(shown)


def _mixing(piece: Piece, run: ChannelRun, rows: np.ndarray) -> str:
    row = int(rows[np.argmax((run.uses[rows] & 2) > 0)])
    path, _, _, _ = _walk(piece.node, run, row, lambda r, source: int(r.uses[source] & 2))
    first = next((n for n in reversed(path) if any((r.uses == 3).any() for r in n.runs)), path[0])
    return f"the network mixes the samples of the batch at {first.name}, {first.where}"


def _element(order: Order, position: int, channel: int | None) -> str:
    at = order.coordinates(position)
    return f"{at}" if channel is None or order.steps.shape[0] == 1 else f"{at}, channel {channel}"


def _peeking(
    draw: DrawSite, piece: Piece, run: ChannelRun, row: int, at: int, order: Order, event: Node, shift: int
) -> str:
    path, _, source, slot = _walk(piece.node, run, row, lambda r, s: int(r.ready[s]))
    target = _element(order, int(draw.positions[at]), draw.channel0)
    if order.name == "features":
        peeked = _element(order, slot, None)
    else:
        peeked = _element(order, source % (event.rows // 2) - shift, slot)
    seen = (
        "itself"
        if peeked == target and order.channels == 1
        else f"element {peeked} (drawn at step {int(run.ready[row]) - 1})"
    )
    return (
        f"the network is not causal for order {order.name!r}: the output that scores element {target} (drawn at step "
        f"{int(draw.steps[at])}) depends on {seen}, through {_layers(path)}."
    )


def _remedy(order: Order, shift: int, late_by: int) -> str:
    """Returns advice about an output that sees an element drawn ``late_by - 1`` steps after its own."""
    if order.name == "features":
        return " The output of a feature may depend on the features before it, not on itself: mask the weights so."
    if shift:
        return (
            ' With predicts="next" the network reads the start value and then the elements, each one position late. An '
            f"output may read the input at its own position and before; this one reads {late_by} further on. If output "
            't is meant to score element t, pass predicts="same".'
        )
    said = []
    if late_by == 1 and order.rule is not None:
        said.append("An output may see what is drawn at earlier steps, nothing of its own step.")
    if late_by == 1 and order.name in ("time", "raster"):
        said.append('If output t is meant to score element t + 1, pass predicts="next".')
    if late_by == 1 and order.name == "raster" and order.channels > 1:
        said.append('If the channels of a pixel follow one another, pass order="raster-subpixel".')
    if late_by == 1 and order.name == "time" and order.channels > 1:
        said.append('If the channels of a step follow one another, pass order="time-channels".')
    return "".join(" " + words for words in said)
