"""Recurrent cells, and layers of them over positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.contraction import channel_inputs
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.frontend.rules.scan import scan
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten
Tensors = Sequence[Value | Constant]


# ---- cells, of one position or of many: [..., channels]


def _product(graph: Graph, inputs: Tensors, weights: Sequence[Constant], biases: Sequence[Constant]) -> Value:
    """``sum_i inputs[i] @ weights[i].T + sum(biases)`` over the last dimension, as one contraction."""
    shape = next(x.shape for x in inputs if isinstance(x, Value))
    given, row = [], 0
    for x, weight in zip(inputs, weights, strict=True):
        ids = x.ids if isinstance(x, Value) else graph.constant_ids(x, None)
        table = ids.reshape(-1, ids.shape[-1])
        given += [
            (table[:, first].contiguous().numpy(), stride, length, row + rows, False)
            for first, stride, length, rows in channel_inputs(graph, ids)
        ]
        row += weight.tensor.shape[1]
    matrix = derive(lambda *all: torch.cat([w.t() for w in all]), *weights).recipe
    bias = derive(lambda *all: sum(b.double() for b in all), *biases).recipe if biases else None
    return graph.contract(shape[:-1], given, matrix, bias)


def _parts(value: Value, count: int) -> list[Value]:
    return [Value(ids) for ids in value.ids.chunk(count, -1)]


def _as_value(graph: Graph, x: Value | Constant, beside: Value) -> Value:
    return x if isinstance(x, Value) else Value(graph.constant_ids(x, beside))


def lstm_step(
    graph: Graph, x: Value | Constant, h: Value, c: Value, weights: Sequence[Constant], biases: Sequence[Constant]
) -> tuple[Value, Value]:
    """``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o) tanh(c')``, projected by ``weights[2]`` if there is
    one; ``i, f, g, o`` are the parts of a product with x and h."""
    i, f, g, o = _parts(_product(graph, (x, h), weights[:2], biases), 4)
    kept = graph.map("mul", graph.map("sigmoid", f), c)
    c = graph.map("add", kept, graph.map("mul", graph.map("sigmoid", i), graph.map("tanh", g)))
    h = graph.map("mul", graph.map("sigmoid", o), graph.map("tanh", c))
    return (_product(graph, (h,), weights[2:], ()) if len(weights) > 2 else h), c


def gru_step(
    graph: Graph, x: Value | Constant, h: Value, weights: Sequence[Constant], biases: Sequence[Constant]
) -> Value:
    """``r, z = sigmoid(...)`` of products with x and h, ``n = tanh(W x + b + r (U h + d))``, ``h' = n + z (h - n)``."""

    def part(first: int, last: int, tensors: Sequence[Constant]) -> list[Constant]:
        size = weights[1].tensor.shape[1]
        return [derive(lambda t: t[first * size : last * size], tensor) for tensor in tensors]

    r, z = _parts(_product(graph, (x, h), part(0, 2, weights), part(0, 2, biases)), 2)
    of_x = _product(graph, (x,), part(2, 3, weights[:1]), part(2, 3, biases[:1]))
    of_h = _product(graph, (h,), part(2, 3, weights[1:]), part(2, 3, biases[1:]))
    n = graph.map("tanh", graph.map("add", of_x, graph.map("mul", graph.map("sigmoid", r), of_h)))
    return graph.map("add", n, graph.map("mul", graph.map("sigmoid", z), graph.map("sub", h, n)))


def rnn_step(
    graph: Graph, opcode: str, x: Value | Constant, h: Value, weights: Sequence[Constant], biases: Sequence[Constant]
) -> Value:
    """``h' = f(W x + b + U h + d)``."""
    return graph.map(opcode, _product(graph, (x, h), weights, biases))


@register_rule(aten.lstm_cell.default)
def lstm_cell(graph: Graph, x: Value | Constant, states: Tensors, w_ih, w_hh, b_ih=None, b_hh=None) -> tuple:
    x, h, c = _cell_inputs(graph, x, states)
    return lstm_step(graph, x, h, c, (w_ih, w_hh), [b for b in (b_ih, b_hh) if b is not None])


@register_rule(aten.gru_cell.default)
def gru_cell(graph: Graph, x: Value | Constant, h: Value | Constant, w_ih, w_hh, b_ih=None, b_hh=None) -> Value:
    x, h = _cell_inputs(graph, x, (h,))
    return gru_step(graph, x, h, (w_ih, w_hh), [b for b in (b_ih, b_hh) if b is not None])


@register_rule(aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default)
def rnn_cell(
    graph: Graph, x: Value | Constant, h: Value | Constant, w_ih, w_hh, b_ih=None, b_hh=None, *, operator
) -> Value:
    x, h = _cell_inputs(graph, x, (h,))
    opcode = "tanh" if operator is aten.rnn_tanh_cell.default else "relu"
    return rnn_step(graph, opcode, x, h, (w_ih, w_hh), [b for b in (b_ih, b_hh) if b is not None])


def _cell_inputs(graph: Graph, x: Value | Constant, states: Tensors) -> list[Value]:
    """Returns all as values, constants as they lie beside one that depends on the input."""
    beside = next(t for t in (x, *states) if isinstance(t, Value))
    return [_as_value(graph, t, beside) for t in (x, *states)]


# ---- layers over positions


@register_rule(aten.lstm.input)
def lstm(graph: Graph, x: Value, states, parameters, has_biases, layers, dropout, train, bidirectional, batch_first):
    def layer(inputs: Value, initial: Tensors, weights, biases) -> list[Value]:
        return scan(graph, lambda before: lstm_step(graph, inputs, *before, weights, biases), initial, inputs.shape[1])

    return _layers(graph, layer, x, states, parameters, has_biases, layers, bidirectional, batch_first)


@register_rule(aten.gru.input)
def gru(graph: Graph, x: Value, state, parameters, has_biases, layers, dropout, train, bidirectional, batch_first):
    def layer(inputs: Value, initial: Tensors, weights, biases) -> list[Value]:
        return scan(graph, lambda before: [gru_step(graph, inputs, *before, weights, biases)], initial, inputs.shape[1])

    return _layers(graph, layer, x, [state], parameters, has_biases, layers, bidirectional, batch_first)


@register_rule(aten.rnn_tanh.input, aten.rnn_relu.input)
def rnn(
    graph: Graph, x: Value, state, parameters, has_biases, layers, dropout, train, bidirectional, batch_first, *,
    operator,
):  # fmt: skip
    opcode = "tanh" if operator is aten.rnn_tanh.input else "relu"

    def layer(inputs: Value, initial: Tensors, weights, biases) -> list[Value]:
        return scan(
            graph, lambda before: [rnn_step(graph, opcode, inputs, *before, weights, biases)], initial, inputs.shape[1]
        )

    return _layers(graph, layer, x, [state], parameters, has_biases, layers, bidirectional, batch_first)


def _layers(
    graph: Graph,
    layer: Callable[..., list[Value]],
    x: Value | Constant,
    states: Tensors,
    parameters: Sequence[Constant],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple:
    """Runs layers one after the other; returns the last one's output and the last states ``[layers, N, channels]``."""
    if bidirectional:
        raise UnsupportedOperator(
            graph, "a bidirectional recurrence over the event, whose states depend on what is drawn later,"
        )
    if not isinstance(x, Value):
        raise UnsupportedOperator(graph, "a recurrence over a constant from a state that depends on the input")
    inputs = x if batch_first else Value(x.ids.transpose(0, 1))
    each = len(parameters) // layers
    last: list[list[torch.Tensor]] = [[] for _ in states]
    for number in range(layers):
        own = parameters[number * each : (number + 1) * each]
        weights, biases = (own[:2] + own[4:], own[2:4]) if has_biases else (own, [])
        initial = [_of_layer(state, number) for state in states]
        made = layer(inputs, initial, weights, biases)
        inputs = made[0]
        for found, state in zip(last, made, strict=True):
            found.append(state.ids[:, -1])
    output = inputs if batch_first else Value(inputs.ids.transpose(0, 1))
    return output, *(Value(torch.stack(found)) for found in last)


def _of_layer(states: Value | Constant, number: int) -> Value | Constant:
    return Value(states.ids[number]) if isinstance(states, Value) else derive(lambda t: t[number], states)
