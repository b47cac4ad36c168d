"""Writes in a network's forward: what a call leaves behind in its state, and whether the next call reads it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.fx import Node as FxNode
from torch.overrides import TorchFunctionMode

from fastgen.generate.errors import CompileError

_GET_DATA, _SET_DATA = Tensor.data.__get__, Tensor.data.__set__
REPEATS = 8
"""Calls after which a write must have stopped to change anything; rounding may take a few."""


class TraceWrites(TorchFunctionMode):
    """Lets ``torch.export`` see writes through ``.data``, and those of an embedding with ``max_norm``.

    ``tensor.data`` becomes an alias that is traced, an assignment to it a copy. An embedding that rescales the rows
    that it looks up rescales all rows: the result is the same, and the write no longer depends on the input. Gradients
    are never switched on.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == _GET_DATA:
            return args[0].detach()
        if func == _SET_DATA:
            tensor, value = args
            with torch.no_grad():
                tensor.copy_(value)
            return None
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **kwargs)


def _embedding(x, weight, padding_idx=None, max_norm=None, norm_type=2.0, *args, **kwargs) -> Tensor:
    if max_norm is not None:
        with torch.no_grad():
            torch.embedding_renorm_(weight.detach(), torch.arange(weight.shape[0]), max_norm, norm_type)
    return F.embedding(x, weight, padding_idx, None, norm_type, *args, **kwargs)


class Writes:
    """The writes of one call to what the output reads: in most networks, masks multiplied into weights.

    Made from an exported program, whose graph is left without writes: its only output is then the module's. Counters,
    statistics and other state that the output does not read are ignored.

    Raises:
        CompileError: the output reads what earlier calls wrote from their input.
    """

    def __init__(self, program: ExportedProgram, names: dict[str, str]) -> None:
        """``names``: the state's names by placeholder."""
        graph, signature = program.graph, program.graph_signature
        output = graph.output_node()
        results = {node.name: node for node in output.args[0] if isinstance(node, FxNode)}
        state = {names[node.name]: node for node in graph.find_nodes(op="placeholder") if node.name in names}
        written = signature.buffers_to_mutate | signature.parameters_to_mutate
        new = {state[name]: results[result] for result, name in written.items()}
        wanted = results[signature.user_outputs[0]]
        live, kept = _ancestors([wanted]), {}
        while more := {node: value for node, value in new.items() if node in live and node not in kept}:
            kept |= more
            live |= _ancestors(more.values())
        needed = _ancestors(kept.values())
        inputs = set(signature.user_inputs)
        for node, value in kept.items():
            if any(n.name in inputs for n in _ancestors([value])):
                raise CompileError(
                    f"forward writes to {_name(names[node.name])!r} what it computes from its input, and the output of "
                    "the next call reads it, so that a sample would depend on earlier calls. " + _ADVICE
                )
        self.targets = {node.name: _name(names[node.name]) for node in kept}
        values, copies = Graph(), {}
        for node in graph.nodes:
            if node in needed:
                copies[node] = values.node_copy(node, copies.__getitem__)
        values.output(tuple(copies[value] for value in kept.values()))
        self.inputs = [node.name for node in copies if node.op == "placeholder"]
        self.call = GraphModule(program.graph_module, values)
        output.args = ((wanted,),)
        live = _ancestors([wanted])
        for node in reversed(list(graph.nodes)):
            if node not in live and node.op not in ("placeholder", "output"):
                graph.erase_node(node)
        program.graph_module.recompile()

    def applied(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state, by placeholder, as calls leave it.

        Raises:
            CompileError: every further call changes it.
        """
        for _ in range(REPEATS if self.targets else 0):
            with torch.no_grad():
                new = dict(zip(self.targets, self.call(*[state[name] for name in self.inputs]), strict=True))
            changed = [name for name, value in new.items() if not same_values(value, state[name])]
            if not changed:
                return state
            state = state | new
        if not self.targets:
            return state
        listed = ", ".join(repr(self.targets[name]) for name in changed)
        raise CompileError(
            f"forward writes to {listed}, which its output reads, and every call changes it further, so that a sample "
            "would depend on the number of calls. " + _ADVICE
        )


_ADVICE = "Write only `if self.training`, or outside of forward"


def _name(name: str) -> str:
    return name.removeprefix("module.")


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; NaN equals NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _ancestors(nodes: Iterable[FxNode]) -> set[FxNode]:
    """Returns the nodes and all that they are computed from."""
    found, pending = set(), list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found
