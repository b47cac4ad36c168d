"""Measures how far the operators of an exported graph reach along the event; a short analysis must be longer."""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import Node as FxNode

from fastgen.generate.frontend.export import Exported
from fastgen.generate.frontend.fx_info import arguments_of
from fastgen.generate.ir.repetitions import repetitions

aten = torch.ops.aten
_CONVOLUTIONS = (
    aten.convolution.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding,
    aten.conv2d.padding, aten.conv3d.padding,
)  # fmt: skip
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_PADS = (aten.pad.default, aten.constant_pad_nd.default)


def distances(short: Exported, long: Exported, grain: int) -> list[int]:
    """Returns the distances in steps that single operators bridge."""
    return [distance for listed in distances_by_kind(short, long, grain).values() for distance in listed]


def distances_by_kind(short: Exported, long: Exported, grain: int) -> dict[str, list[int]]:
    """Returns the distances in steps that single operators bridge: of taps, padding, shifts and cuts along the event.

    ``long`` is the same network ``grain`` steps longer. A dimension lies along the event where its size differs between
    the two, and what a size is derived from differs too; a distance is the same in both.
    """
    found: dict[str, list[int]] = {}
    moving = _moved_by_loops(short)
    for a, b in zip(short.graph_module.graph.nodes, long.graph_module.graph.nodes, strict=False):
        if a in moving or a.target is not b.target or not (shared := _bridged(a) & _bridged(b)):
            continue
        sizes = [node.args[0].meta["val"].shape for node in (a, b)]
        for dim, kind, distance in shared:
            growth = sizes[1][dim] - sizes[0][dim]
            if growth > 0:
                found.setdefault(kind, []).append(distance * -(-grain // growth))
    return found


def _moved_by_loops(exported: Exported) -> set[FxNode]:
    """Returns the nodes that a loop over positions calls with another place each time, which is no distance."""
    nodes = [node for node in exported.graph_module.graph.nodes if node.op == "call_function"]
    known: dict[tuple, int] = {}
    tokens = np.array([known.setdefault(_token(node), len(known)) for node in nodes], np.int64)
    found: set[FxNode] = set()
    for start, stop, period in repetitions(tokens):
        for place in range(start, start + period):
            copies = nodes[place:stop:period]
            takes = copies[0].target in (aten.slice.Tensor, aten.select.int)
            if takes and any(_numbers(copy) != _numbers(copies[0]) for copy in copies):
                found.update(copies)
    return found


def _token(node: FxNode) -> tuple:
    """Returns what is equal for the calls of a loop: the operator, the parameters, what is no number."""
    return node.target, *(_kind(argument) for argument in (*node.args, *node.kwargs.values()))


def _kind(argument) -> object:
    if isinstance(argument, FxNode):
        return argument.name if argument.op == "placeholder" else FxNode
    return type(argument) if isinstance(argument, (int, float)) else str(type(argument))


def _numbers(node: FxNode) -> list:
    return [argument for argument in node.args if isinstance(argument, int)]


def _bridged(node: FxNode) -> set[tuple[int, str, int]]:
    """Yields (dimension of the first operand, kind, distance) for everything in a node that may be a distance."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], FxNode):
        return set()
    shape = getattr(node.args[0].meta.get("val"), "shape", None)
    if shape is None or not hasattr(node.target, "_schema"):
        return set()
    given = arguments_of(node)
    rank = len(shape)
    if node.target in _CONVOLUTIONS + _TRANSPOSED:
        return _of_taps(given, rank, node.target in _TRANSPOSED or bool(given.get("transposed")))
    if node.target in _PADS:
        pads = given["pad"]
        return {(rank - 1 - i // 2, f"pad {i % 2}", abs(pads[i])) for i in range(len(pads))}
    if node.target is aten.slice.Tensor:
        bounds = [n for n in (given["start"], given["end"]) if isinstance(n, int) and abs(n) < 1 << 62]
    elif node.target is aten.select.int:
        bounds = [given["index"]]
    elif node.target is aten.roll.default and given["dims"]:
        return {(dim % rank, "roll", abs(n)) for dim, n in zip(given["dims"], given["shifts"], strict=True)}
    elif node.target is aten.unfold.default:
        return {(given["dimension"] % rank, "window", given["size"])}
    else:
        return set()
    dim = given["dim"] % rank
    return {(dim, "from the start", abs(n)) for n in bounds} | {
        (dim, "from the end", abs(shape[dim] - n)) for n in bounds
    }


def _of_taps(given: dict, rank: int, transposed: bool) -> set[tuple[int, str, int]]:
    kernel = given["weight"].meta["val"].shape[2:]
    n = len(kernel)

    def each(name: str) -> list[int]:
        value = given[name]
        value = [0] if isinstance(value, str) else [value] if isinstance(value, int) else list(value)
        return value * (n if len(value) == 1 else 1)

    taps = []
    for d, (size, dilation, padding, stride) in enumerate(
        zip(kernel, each("dilation"), each("padding"), each("stride"), strict=True)
    ):
        distance = max(dilation * (size - 1), padding)
        taps.append((rank - n + d, "taps", -(-distance // stride) if transposed else distance))
    return set(taps)
