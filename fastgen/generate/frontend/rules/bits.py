"""Truth values, and the bits of integers."""

from __future__ import annotations

import torch

from fastgen.generate.frontend.rules.elementwise import Operand, constant, floor_divide, mul
from fastgen.generate.frontend.rules.registry import register_rule
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten


@register_rule(aten.logical_not.default, aten.bitwise_not.default)
def logical_not(graph: Graph, x: Value, *, result: torch.dtype) -> Value:
    if result == torch.bool:
        return graph.map("eq", x, constant(0.0))
    return graph.map("sub", constant(-1.0), x)


def _of_truth_or_bits(name: str, on_truth: str, bits: str) -> None:
    def rule(graph: Graph, a: Operand, b: Operand, *, result: torch.dtype) -> Value:
        if result == torch.bool:
            return graph.map(on_truth, _truth(graph, a), _truth(graph, b))
        return graph.map(bits, constant(a), constant(b))

    register_rule(
        getattr(aten, f"logical_{name}").default,
        *[
            getattr(getattr(aten, form), kind)
            for form in (f"bitwise_{name}", f"__{name}__")
            for kind in ("Tensor", "Scalar")
        ],
    )(rule)


_of_truth_or_bits("and", "mul", "bitand")
_of_truth_or_bits("or", "max", "bitor")
_of_truth_or_bits("xor", "ne", "bitxor")


def _truth(graph: Graph, x: Operand) -> Value | Constant:
    return graph.map("ne", x, constant(0.0)) if isinstance(x, Value) else derive(lambda t: t != 0, constant(x))


@register_rule(
    aten.__lshift__.Scalar,
    aten.__lshift__.Tensor,
    aten.bitwise_left_shift.Tensor,
    aten.bitwise_left_shift.Tensor_Scalar,
    aten.bitwise_left_shift.Scalar_Tensor,
)
def left_shift(graph: Graph, x: Operand, bits: Operand) -> Value:
    return mul(graph, x, _power_of_two(graph, bits))


@register_rule(
    aten.__rshift__.Scalar,
    aten.__rshift__.Tensor,
    aten.bitwise_right_shift.Tensor,
    aten.bitwise_right_shift.Tensor_Scalar,
    aten.bitwise_right_shift.Scalar_Tensor,
)
def right_shift(graph: Graph, x: Operand, bits: Operand) -> Value:
    return floor_divide(graph, x, _power_of_two(graph, bits))


def _power_of_two(graph: Graph, bits: Operand) -> Value | Constant:
    bits = constant(bits)
    return graph.map("pow", constant(2.0), bits) if isinstance(bits, Value) else derive(lambda t: 2.0**t, bits)
