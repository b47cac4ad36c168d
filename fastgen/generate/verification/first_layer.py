"""The layer at which a program and its module part first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Interpreter

from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.frontend.export import state_of
from fastgen.generate.frontend.fx_info import name_of, where_of
from fastgen.generate.ir.domain_cells import Cell, pixel_cells, row_cells
from fastgen.generate.ir.graph import Node
from fastgen.generate.ir.instructions import PIXEL, ROW, Instruction
from fastgen.generate.ir.opcodes import OPCODE
from fastgen.generate.ir.program import Program
from fastgen.generate.machines.batch import GenerationBatch
from fastgen.generate.verification.precision import Precision


def first_layer(
    network: CompiledNetwork, inputs: Tensor, leaves: list[Tensor], run: GenerationBatch, step: int, error: float
) -> str:
    """Returns which layer's result differs first, relatively by more than ``error``, and the line of the source.

    ``inputs`` and ``leaves``: one event of the analysed shape, as the module's input; ``run``: the program after it has
    read that event's elements up to ``step``. The exported graph is between the two: where it differs from the module,
    the layer is one whose output differs; where the program differs from it, the first result that the program keeps.
    """
    inputs, leaves = torch.cat([inputs, inputs]), [torch.cat([leaf, leaf]) for leaf in leaves]
    given, outputs = _of_module(network, inputs, leaves)
    exported = network.compiled.exported
    values = _of_graph(network, given)
    nodes = list(exported.graph_module.graph.nodes)
    last = {name_of(node).rpartition(" (")[0]: node for node in nodes if node.op == "call_function"}
    for path, output in outputs.items():
        node = last.get(path)
        if node is not None and _differs(values[node.name], output, error):
            return _stale(f"from layer {path} on, {where_of(node)}")
    (result,) = nodes[-1].args[0]
    if not outputs or _differs(values[result.name], outputs[""], error):
        return _stale(f"after its layers, {where_of(result)}")
    for node, buffer in sorted(network.compiled.analysis.lowered.buffers.items(), key=lambda item: item[0].index):
        value = _rows(values.get(node.name.rpartition(" (")[2].removesuffix(")")), node)
        if node.kind != "computed" or value is None:
            continue
        for position in _written(network.program, buffer, step):
            kept = _kept(network.program, run, buffer, position)
            if position < len(value) and _differs(kept.sort().values, value[position].sort().values, error):
                return _wrong(f"{node.name}, {node.where}")
    return _wrong(f"{name_of(result)}, {where_of(result)}")


def _stale(place: str) -> str:
    return (
        f"The module computes something else than its exported graph {place}. refresh() takes parameters and buffers "
        "as they are now; where something else changed (a Python attribute, a tensor, a hook), compile a new sampler"
    )


def _wrong(place: str) -> str:
    return f"The first result that differs is that of {place}: this is a fault of fastgen, please report it"


def _of_module(
    network: CompiledNetwork, inputs: Tensor, leaves: list[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns what the module is given, and the outputs of its layers that are called once, by name and in order."""
    given, outputs, handles, twice = [], {}, [], set()

    def keep(path: str, output) -> None:
        if path in outputs:
            twice.add(path)
        outputs.setdefault(path, output)

    for path, layer in network.module.named_modules():
        if not list(layer.children()):
            handles.append(layer.register_forward_hook(lambda _, __, out, path=path: keep(path, out)))
    handles.append(network.module.register_forward_pre_hook(lambda _, arguments: given.append(arguments)))
    try:
        with torch.no_grad(), Precision(torch.float64):
            output = network.request.forward(inputs, leaves)
    finally:
        for handle in handles:
            handle.remove()
    kept = {path: out for path, out in outputs.items() if path not in twice and isinstance(out, Tensor)}
    return torch.utils._pytree.tree_leaves(given[0]), kept | {"": output}


def _of_graph(network: CompiledNetwork, given: list[Tensor]) -> dict[str, object]:
    """Returns the values of the exported graph by node."""
    exported = network.compiled.exported
    tensors = state_of(exported, network.request.network) | dict(zip(exported.users, given, strict=True))
    values: dict[str, object] = {}

    class Keeping(Interpreter):
        def run_node(self, node):
            values[node.name] = super().run_node(node)
            return values[node.name]

    order = [node.name for node in exported.graph_module.graph.nodes if node.op == "placeholder"]
    with torch.no_grad(), Precision(torch.float64):
        Keeping(exported.graph_module).run(*[tensors[name] for name in order])
    return values


def _differs(a, b, error: float) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool((((a - b).abs() > error * b.abs().amax()) & (a != b)).any()) if a.numel() else False


def _rows(value, node: Node) -> Tensor | None:
    """``[rows of one event, channels]`` of a value whose shape is the node's."""
    if not isinstance(value, Tensor):
        return None
    for laid in (value, value.movedim(1, -1)) if value.dim() > 1 else ():
        if tuple(laid.shape) == (*node.rows_shape, node.channels):
            return laid.reshape(-1, node.channels)[: node.rows // 2]
    return None


def _written(program: Program, buffer: int, step: int) -> list[int]:
    """Returns the positions of a buffer that are written at a step."""
    positions = []
    for instruction in program.computes:
        for operation in program.operations[instruction.body.operation0 : instruction.body.operation1]:
            if operation.opcode == OPCODE["store"] and program.operands[operation.b].buffer == buffer:
                written = program.operands[operation.b].map
                positions += [written.position(*cell) for cell in _cells(program, instruction, step)]
    return positions


def _cells(program: Program, instruction: Instruction, step: int) -> list[Cell]:
    """Returns the cells at which an instruction runs at a step, or at the start of the step's row."""
    domain = instruction.domain
    if instruction.when == PIXEL:
        return list(pixel_cells(domain, step, program.row_length))
    start, rest = divmod(step, program.row_length)
    if instruction.when != ROW or rest:
        return []
    columns = range(domain.column0, domain.column1)
    return [(row, column, frame) for frame, rows in row_cells(domain, start) for row in rows for column in columns]


def _kept(program: Program, run: GenerationBatch, buffer: int, position: int) -> Tensor:
    """Returns the channels that a state holds of a position of a buffer."""
    record = program.buffers[buffer]
    first = record.offset + position % record.positions * record.channels
    return run.state[0, first : first + record.channels]
