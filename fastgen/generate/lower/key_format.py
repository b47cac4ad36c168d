"""Keys and values of attention in bfloat16 or int8: a program with other formats of the buffers that hold them."""

from __future__ import annotations

from dataclasses import replace

from fastgen.generate.ir.instructions import BFLOAT16, FLOAT32, FORMATS, INT8, STATE, Buffer, Compute, Draw, Operand
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.gathered_rows import stores_of, with_gathered_rows


def with_key_format(program: Program, name: str) -> Program:
    """Returns the program with its keys and values in a format of ``FORMATS``, and the state laid out anew.

    These are the buffers of the state that Attends read as keys or values, and that nothing else reads. Where several
    Computes store parts of a head, as with rotary positions, the parts are gathered in a buffer of their own first, so
    that a scale is that of a whole head. Buffers for which that is not possible stay in float32. The numbers of the
    program's buffers stay.

    Raises:
        ValueError: the format is not "float32", and the program has no such buffer.
    """
    wanted = FORMATS.index(name)
    formats = [FLOAT32] * len(program.buffers)
    for number, width in keys_and_values(program).items():
        buffer, stored = program.buffers[number], [operand for _, operand in stores_of(program, number)]
        if wanted != FLOAT32 and stored and _fit(_read(program, number), buffer, width, wanted):
            gathered = program if _fit(stored, buffer, width, wanted) else with_gathered_rows(program, number)
            if gathered is not None:
                program, formats[number] = gathered, wanted
    if wanted != FLOAT32 and wanted not in formats:
        raise ValueError(
            f"kv must be 'float32' where no attention has keys and values of its own in the state, got {name!r}"
        )
    return _laid_out(program, formats)


def keys_and_values(program: Program) -> dict[int, int]:
    """Returns the buffers of the state that Attends read as keys or values and nothing else reads: channels of a head.

    They are those that only Computes store.
    """
    widths: dict[int, set[int]] = {}
    for instruction in program.attends:
        body = instruction.body
        for operand in (program.operands[body.key], program.operands[body.value]):
            widths.setdefault(operand.buffer, set()).add(operand.length // body.groups)
    others = _used_otherwise(program)
    return {
        number: min(given)
        for number, given in widths.items()
        if program.buffers[number].where == STATE and number not in others and len(given) == 1
    }


def key_bytes(program: Program) -> int:
    """Returns the bytes of a sample's state that hold keys and values which only attention reads."""
    held = [program.buffers[number] for number in keys_and_values(program)]
    return sum(4 * buffer.positions * buffer.stride for buffer in held)


def _laid_out(program: Program, formats: list[int]) -> Program:
    """Returns the program with these formats of its first buffers, and its state without gaps; itself if it is that."""
    widths, buffers = keys_and_values(program), []
    for number, buffer in enumerate(program.buffers):
        wanted = formats[number] if number < len(formats) else FLOAT32
        buffers.append(replace(buffer, format=wanted, group=widths[number] if wanted == INT8 else 0))
    if buffers == program.buffers:
        return program
    size = 0
    for number in sorted(range(len(buffers)), key=lambda n: (program.buffers[n].offset, n)):
        if buffers[number].where == STATE:
            buffers[number] = replace(buffers[number], offset=size)
            size += -(-buffers[number].positions * buffers[number].stride // 16) * 16
    return replace(program, buffers=buffers, state_size=size)


def _used_otherwise(program: Program) -> set[int]:
    """Returns the buffers that are read other than by Attends as keys or values, or written other than by stores."""
    numbers: set[int] = set()
    for instruction in program.instructions:
        body = instruction.body
        if isinstance(body, Compute):
            operations = program.operations[body.operation0 : body.operation1]
            numbers |= {s.operand for s in program.segments[body.segment0 : body.segment1]} | {body.accumulator}
            numbers |= {o.a for o in operations if o.opcode == OPCODE["load"]}
        elif isinstance(body, Draw):
            numbers |= {*range(body.parameter0, body.parameter1), *range(body.input0, body.input1)}
        else:
            numbers |= {body.query, body.out}
    numbers |= {score.operand for score in program.score_operands}
    return {program.operands[number].buffer for number in numbers - {-1}}


def _read(program: Program, number: int) -> list[Operand]:
    used = [program.operands[n] for i in program.attends for n in (i.body.key, i.body.value)]
    return [operand for operand in used if operand.buffer == number]


def _fit(operands: list[Operand], buffer: Buffer, width: int, wanted: int) -> bool:
    """Whether operands have whole heads of neighbouring channels, each from a whole number of the state on."""
    word, head = (2, 1) if wanted == BFLOAT16 else (4, width)
    return buffer.channels % head == 0 and all(
        operand.channel % word == 0
        and operand.channel % head == 0
        and operand.length % head == 0
        and (operand.channel_stride == 1 or operand.length == 1)
        for operand in operands
    )
