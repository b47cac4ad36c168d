"""The operations of a lane program: one table, by which Python numbers, checks, prints and runs them.

``csrc/program/opcodes.def`` has the same table for C++, one line an operation in the same order, and
``tests/generate/test_opcodes.py`` compares the two field by field. A table in each language needs neither a data file
in the wheel nor the extension, and a program can be made, saved, checked and run without it.
"""

from __future__ import annotations

from typing import NamedTuple

MOVE, LANES, REDUCTION = "MOVE", "LANES", "REDUCTION"
NONE, X, XY, OPERAND, GROUP = "NONE", "X", "XY", "OPERAND", "GROUP"


class Opcode(NamedTuple):
    """An operation. Its number is its place in the table."""

    name: str
    form: str
    """MOVE: between memory and registers. LANES: lane by lane. REDUCTION: over groups of lanes."""
    registers: int
    """How many of the register numbers ``a``, ``b``, ``c`` it reads, from ``a`` on."""
    parameters: str
    """What else it reads: NONE, X or XY: the numbers ``x``, ``y``; OPERAND: the number of an operand (``a`` of load,
    ``b`` of store); GROUP: in ``b`` the number of lanes of a group, which divides the instruction's lanes."""
    meaning: str
    """The value of register ``dst``; of store, what is written."""


_TABLE = (
    Opcode("load", MOVE, 0, OPERAND, "operand a"),
    Opcode("store", MOVE, 1, OPERAND, "operand b = a"),
    Opcode("const", LANES, 0, X, "x"),
    Opcode("neg", LANES, 1, NONE, "-a"),
    Opcode("abs", LANES, 1, NONE, "|a|"),
    Opcode("exp", LANES, 1, NONE, "exp(a)"),
    Opcode("log", LANES, 1, NONE, "log(a)"),
    Opcode("log1p", LANES, 1, NONE, "log(1 + a)"),
    Opcode("expm1", LANES, 1, NONE, "exp(a) - 1"),
    Opcode("sqrt", LANES, 1, NONE, "sqrt(a)"),
    Opcode("rsqrt", LANES, 1, NONE, "1 / sqrt(a)"),
    Opcode("reciprocal", LANES, 1, NONE, "1 / a"),
    Opcode("tanh", LANES, 1, NONE, "tanh(a)"),
    Opcode("sigmoid", LANES, 1, NONE, "1 / (1 + exp(-a))"),
    Opcode("erf", LANES, 1, NONE, "erf(a)"),
    Opcode("sin", LANES, 1, NONE, "sin(a)"),
    Opcode("cos", LANES, 1, NONE, "cos(a)"),
    Opcode("floor", LANES, 1, NONE, "floor(a)"),
    Opcode("ceil", LANES, 1, NONE, "ceil(a)"),
    Opcode("round", LANES, 1, NONE, "a to the nearest whole number, halves to the even one"),
    Opcode("sign", LANES, 1, NONE, "-1, 0 or 1"),
    Opcode("relu", LANES, 1, NONE, "max(a, 0)"),
    Opcode("elu", LANES, 1, X, "a > 0 ? a : x * expm1(a)"),
    Opcode("leaky_relu", LANES, 1, X, "a > 0 ? a : x * a"),
    Opcode("softplus", LANES, 1, XY, "a * x > y ? a : log1p(exp(a * x)) / x"),
    Opcode("gelu", LANES, 1, NONE, "a / 2 * (1 + erf(a / sqrt(2)))"),
    Opcode("add", LANES, 2, NONE, "a + b"),
    Opcode("sub", LANES, 2, NONE, "a - b"),
    Opcode("mul", LANES, 2, NONE, "a * b"),
    Opcode("div", LANES, 2, NONE, "a / b"),
    Opcode("max", LANES, 2, NONE, "max(a, b)"),
    Opcode("min", LANES, 2, NONE, "min(a, b)"),
    Opcode("pow", LANES, 2, NONE, "a ** b"),
    Opcode("lt", LANES, 2, NONE, "a < b"),
    Opcode("le", LANES, 2, NONE, "a <= b"),
    Opcode("eq", LANES, 2, NONE, "a == b"),
    Opcode("ne", LANES, 2, NONE, "a != b"),
    Opcode("where", LANES, 3, NONE, "a != 0 ? b : c"),
    Opcode("addc", LANES, 1, X, "a + x"),
    Opcode("mulc", LANES, 1, X, "a * x"),
    Opcode("clamp", LANES, 1, XY, "min(max(a, x), y)"),
    Opcode("sum", REDUCTION, 1, GROUP, "the sum of a over groups of b neighbouring lanes, broadcast back"),
    Opcode("amax", REDUCTION, 1, GROUP, "the maximum of a over groups of b neighbouring lanes, broadcast back"),
    Opcode("amin", REDUCTION, 1, GROUP, "the minimum of a over groups of b neighbouring lanes, broadcast back"),
    Opcode("trunc", LANES, 1, NONE, "a rounded towards zero"),
    Opcode("fmod", LANES, 2, NONE, "a - b * trunc(a / b), exactly"),
    Opcode("remainder", LANES, 2, NONE, "fmod(a, b), plus b where its sign is not that of b"),
    Opcode("floor_divide", LANES, 2, NONE, "floor(a / b) by the exact remainder (torch.floor_divide)"),
    Opcode("bitand", LANES, 2, NONE, "a & b of integers"),
    Opcode("bitor", LANES, 2, NONE, "a | b of integers"),
    Opcode("bitxor", LANES, 2, NONE, "a ^ b of integers"),
    Opcode("mulmod", LANES, 3, X, "(a * b + c) modulo x of integers, exactly"),
)

OPCODES: dict[str, Opcode] = {opcode.name: opcode for opcode in _TABLE}
OPCODE: dict[str, int] = {name: number for number, name in enumerate(OPCODES)}
NAMES: tuple[str, ...] = tuple(OPCODES)
REDUCTIONS: tuple[str, ...] = tuple(name for name, opcode in OPCODES.items() if opcode.form == REDUCTION)
