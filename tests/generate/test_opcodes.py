"""The table of operations is the same in Python and in C++, and every machine knows all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgen.generate.ir import opcodes
from fastgen.generate.ir.opcodes import OPCODE, OPCODES, REDUCTIONS, Opcode

CSRC = Path(__file__).parents[2] / "csrc"
ENTRY = re.compile(r'FASTGEN_OPCODE\((\w+), (\w+), (\w+), (\d+), (\w+), "(.*)"\)')


def entries() -> list[tuple[str, Opcode]]:
    """(C++ enumerator, operation) for every line of opcodes.def."""
    lines = (CSRC / "program" / "opcodes.def").read_text().splitlines()
    found = []
    for line in lines:
        if line and not line.startswith("//"):
            form, enumerator, name, registers, parameters, meaning = ENTRY.fullmatch(line).groups()
            found.append((enumerator, Opcode(name, form, int(registers), parameters, meaning)))
    return found


def test_both_tables_have_the_same_operations_in_the_same_order():
    assert [opcode.name for _, opcode in entries()] == list(OPCODES)
    assert len({enumerator for enumerator, _ in entries()}) == len(OPCODES)


@pytest.mark.parametrize("number", range(len(OPCODES)), ids=list(OPCODES))
def test_an_operation_is_the_same_in_both_tables(number):
    enumerator, cpp = entries()[number]
    python = OPCODES[cpp.name]
    assert OPCODE[cpp.name] == number
    for field in Opcode._fields:
        assert getattr(cpp, field) == getattr(python, field), field
    assert enumerator.lower() == cpp.name.replace("_", "")


def test_forms_registers_and_parameters_are_known_ones():
    for opcode in OPCODES.values():
        assert opcode.form in (opcodes.MOVE, opcodes.LANES, opcodes.REDUCTION)
        assert opcode.parameters in (opcodes.NONE, opcodes.X, opcodes.XY, opcodes.OPERAND, opcodes.GROUP)
        assert (opcode.form == opcodes.MOVE) == (opcode.parameters == opcodes.OPERAND)
        assert (opcode.form == opcodes.REDUCTION) == (opcode.parameters == opcodes.GROUP)
        assert 0 <= opcode.registers <= 3
    assert REDUCTIONS == ("sum", "amax", "amin")


def test_the_meaning_names_the_registers_and_numbers_that_are_read():
    for opcode in OPCODES.values():
        named = set(re.findall(r"(?<![\w'])[abcxy](?![\w'])", opcode.meaning))
        numbers = {opcodes.X: {"x"}, opcodes.XY: {"x", "y"}}.get(opcode.parameters, set())
        assert named & {"x", "y"} == numbers, opcode.name
