"""The graph as text: a line for every node, a line for every run of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastgen.generate.ir.records import Attention, ChannelRun, Node, Piece, ScoreStep, Term


def node_lines(nodes: Sequence[Node]) -> Iterator[str]:
    """Yields a node's line (number, kind, rows x channels, place) and those of its runs (slots, times, computation).

    ``%3[0:4]`` are slots of node 3, with ``rows +-4..2`` where the reader's row reads another row: how far it lies off.
    """
    for node in nodes:
        rows = "x".join(map(str, node.rows_shape))
        place = f"  {node.place}" if node.name else ""
        yield f"%{node.index:<4} {node.kind:<9} [{rows}] x {node.channels}{place}"
        for run in node.runs:
            yield f"      [{run.slot}:{run.slot + run.length}] {_times(run)}{_computed(run)}"


def _times(run: ChannelRun) -> str:
    if not run.uses.any():
        return "ready before the first step"
    moving = run.ready[run.uses > 0]
    samples = "mixes the samples, " if (run.uses == 3).any() else ""
    return f"{samples}ready at steps {int(moving.min())}..{int(moving.max())}"


def _computed(run: ChannelRun) -> str:
    if run.attention is not None:
        return _attention(run.attention)
    if run.terms is not None:
        bias = " + bias" if run.bias is not None else ""
        return ": " + (" + ".join(map(_term, run.terms)) or "0") + bias
    if run.opcode is None:
        return ""
    operands = ["(" + " + ".join(map(_piece, p)) + ")" if len(p) != 1 else _piece(p[0]) for p in run.operands]
    numbers = [f"{name}={value:.6g}" for name, value in (("x", run.x), ("y", run.y)) if value]
    return f": {run.opcode}({', '.join([*operands, *numbers])})"


def _attention(attention: Attention) -> str:
    keys, values = attention.keys.node.index, attention.values.node.index
    weights = f"{_steps(attention.scores, f'{_piece(attention.queries)} . %{keys}')}"
    weights = _steps(attention.weighting, f"softmax({weights})" if attention.softmax else weights)
    seen = attention.seen.sum(1)
    groups = f" in {attention.groups} groups" if attention.groups != attention.heads else ""
    return f": {weights} @ %{values} over {seen.min()}..{seen.max()} keys ({attention.heads} heads{groups})"


def _steps(steps: Sequence[ScoreStep], held: str) -> str:
    for step in steps:
        given = [held] if step.piece is None else [held, _piece(step.piece)]
        numbers = [f"{name}={value:.6g}" for name, value in (("x", step.x), ("y", step.y)) if value]
        held = f"{step.opcode}({', '.join((given[::-1] if step.swapped else given) + numbers)})"
    return held


def _term(term: Term) -> str:
    rows = term.weight_rows
    ends = f"{rows[0]}" if len(rows) == 1 else f"{rows.min()}..{rows.max()}" if len(rows) else "none"
    return f"W[{_piece(term.piece)}]" if term.index else f"{_piece(term.piece)} @ W[{ends}]"


def _piece(piece: Piece) -> str:
    read = piece.rows >= 0
    if not read.any():
        return "nothing"
    first = int(piece.slots[read][0])
    slots = f"{first}:{first + (piece.length - 1) * piece.stride + 1}" if piece.length > 1 and piece.stride else first
    stride = f":{piece.stride}" if piece.stride > 1 and piece.length > 1 else ""
    slots = "varying slots" if piece.varies else f"{slots}{stride}"
    if piece.node.rows == 1:
        return f"%{piece.node.index}[{slots}]"
    off = (piece.rows - np.arange(len(piece.rows)))[read]
    rows = f" rows {off.min():+d}..{off.max():+d}" if (off != off[0]).any() else f" row {off[0]:+d}" if off[0] else ""
    missing = "" if read.all() else f" of {int(read.sum())} rows"
    return f"%{piece.node.index}[{slots}]{rows}{missing}"
