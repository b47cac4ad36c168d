"""From a module to its exported graph, at a batch of two."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node as FxNode
from torch.nn.modules import transformer
from torch.utils._pytree import tree_map_only

from fastgen.generate.errors import CompileError
from fastgen.generate.frontend.adapted import Adapted, attributes_of, tensors_of
from fastgen.generate.frontend.fx_info import places_within, restore_places
from fastgen.generate.frontend.raised import where_raised
from fastgen.generate.frontend.rules import RULES
from fastgen.generate.frontend.untouched import borrowed
from fastgen.generate.frontend.writes import TraceWrites, Writes, same_values
from fastgen.generate.ir.records import BATCH

aten = torch.ops.aten
_CALLS = 4
"""Calls after which a forward must give the same output for the same input."""


@dataclass
class Exported:
    """The exported graph of a module at one static shape; its one output is the module's."""

    graph_module: torch.fx.GraphModule
    parameters: dict[str, str]  # placeholder -> name in the state of Adapted
    constants: dict[str, Tensor]  # lifted constants by placeholder
    users: list[str]  # placeholders of the inputs, in order
    writes: Writes


class _Traced(Adapted):
    def forward(self, x, context=None):
        with TraceWrites():
            return super().forward(x, context)


def export(network: Adapted, x: Tensor, context) -> Exported:
    """Exports ``network(x[, context])`` in eval mode by ``torch.export``. The module is left exactly as it was.

    Raises:
        CompileError: the module cannot be exported, or its output depends on earlier calls; the message says what to
            change.
    """
    arguments = (x,) if context is None else (x, context)
    network = _Traced(network.module, network.adapter)
    before = tensors_of(network)
    with borrowed(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_calls(network, arguments)
        _register(network, before)
        program = _program(network, arguments)
        signature = program.graph_signature
        names = signature.inputs_to_parameters | signature.inputs_to_buffers
        writes = Writes(program, names)
    names = names | signature.inputs_to_lifted_tensor_constants
    state = program.state_dict | program.constants
    made = {p: state[n] for p, n in names.items() if n not in before}
    for placeholder, tensor in made.items():
        if isinstance(tensor, nn.Parameter):
            raise CompileError(
                f"forward makes the parameter {_plain(names[placeholder])!r} at its first call: call the module once "
                "before"
            )
    parameters = {p: n for p, n in names.items() if n in before}
    return Exported(program.graph_module, parameters, made, list(signature.user_inputs), writes)


def _plain(name: str) -> str:
    """Returns a name of the network's state as the module has it."""
    return name.removeprefix("module.")


def _check_calls(network: nn.Module, arguments: tuple) -> None:
    """Calls the network, which may register buffers, until a call no longer depends on the one before."""
    name = type(network.module).__name__
    x, *rest = arguments
    other = (torch.arange(x.numel()) % 2).reshape(x.shape).to(x.dtype)

    def call(x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)
        return network(*tree_map_only(Tensor, torch.clone, (x, *rest)))

    try:
        before = call(x)
    except Exception as error:
        raise CompileError(
            f"{name} does not take an input {list(x.shape)}, {x.dtype} (a batch of {BATCH} of event_shape "
            f"{tuple(x.shape[1:])}){where_raised(error, network)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(before, Tensor):
        raise CompileError(
            f"{name} returns a {type(before).__name__}, not a tensor; pass an adapter that takes the head's parameters "
            "from it, such as adapter=lambda output: output[0]"
        )
    for _ in range(_CALLS):
        call(other)
        if _close(before, call(x)):
            return
        before = call(x)
    kept = _kept(network)
    call(other)
    changed = [_plain(n) for n, value in _kept(network).items() if not _same(value, kept.get(n))]
    reason = "it draws random numbers that are not PyTorch's, or reads a clock"
    if changed:
        reason = f"it depends on {', '.join(map(repr, changed))}, which every call changes"
    raise CompileError(
        f"{name} gives different outputs for the same input: {reason}. A sample would depend on earlier calls"
    )


def _kept(network: nn.Module) -> dict[str, object]:
    """Copies of what a call may change: tensors and numbers that are attributes."""
    found = {}
    for name, _, _, value in attributes_of(network):
        if isinstance(value, Tensor):
            found[name] = value.clone()
        elif isinstance(value, (bool, int, float, str)):
            found[name] = value
    return found


def _same(a, b) -> bool:
    return same_values(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b


def _register(network: nn.Module, before: dict[str, Tensor]) -> None:
    """Makes buffers of plain attributes, to which ``torch.export`` allows no writes; ones that forward assigns stay.

    Tensors made in inference mode become ordinary ones.
    """
    for full, part, name, value in list(attributes_of(network)):
        if not isinstance(value, Tensor) or value is not before.get(full):
            continue
        if name in vars(part) and not hasattr(type(part), name):
            del part.__dict__[name]
            part._buffers[name] = value
            part._non_persistent_buffers_set.add(name)
        if value.is_inference():
            kind = part._parameters if name in part._parameters else part._buffers
            kind[name] = nn.Parameter(value.clone(), requires_grad=False) if name in part._parameters else value.clone()


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = a.abs().nan_to_num().max().item() if a.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


@contextmanager
def _traceable_attention() -> Iterator[None]:
    """Keeps PyTorch's transformer layers from fused operators, and from asking whether a mask that they apply is
    causal."""
    fast, asked = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        transformer._detect_is_causal_mask = asked


def _program(network: nn.Module, arguments: tuple) -> ExportedProgram:
    try:
        with redirect_stderr(io.StringIO()), _traceable_attention():  # stderr: where torch.export prints its graph
            program = torch.export.export(network, arguments)
            if not all(_has_rule(node) for node in program.graph.nodes):
                places = places_within(program.graph_module)
                program = program.run_decompositions(_decompositions(program))
                restore_places(program.graph_module, places)
    except CompileError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CompileError(
            f"torch.export does not take {type(network.module).__name__}{where_raised(error, network)}: "
            f"{type(error).__name__}: {reason}. The forward must be free of data-dependent Python control flow: use "
            "torch.where in place of an if on values, and tensors in place of .item() and .tolist()"
        ) from error
    return program


def _has_rule(node: FxNode) -> bool:
    """Whether the operator needs no decomposition: it has a rule, or only moves sizes, and it writes to nothing."""
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", "") == "getitem"
    if schema.is_mutable or node.target in _COMPOSITE:
        return False
    return node.target in RULES or node.target in _PLAIN or not any(isinstance(a, FxNode) for a in node.args)


def _decompositions(program: torch.export.ExportedProgram) -> dict:
    """Returns PyTorch's decompositions of the operators that have no rule and that read what depends on the event.

    What reads only the context stays whole, a GRU say, which can run in PyTorch at the start.
    """
    nodes, event = program.graph.nodes, program.graph_signature.user_inputs[0]
    moving = {node for node in nodes if node.name == event}
    for node in nodes:
        if any(n in moving for n in node.all_input_nodes):
            moving.add(node)
    called = [node for node in nodes if isinstance(node.target, torch._ops.OpOverload)]
    still = {n.target for n in called if n not in moving} - {n.target for n in called if n in moving}
    table = torch.export.default_decompositions()
    for operator in (*RULES, *_PLAIN, *still):
        table.pop(operator, None)
    kept = {operator: table[operator] for operator in table if _reads_tensors(operator)}
    return kept | torch._decomp.get_decompositions(_FURTHER)


def _reads_tensors(operator) -> bool:
    return any("Tensor" in str(argument.type) for argument in operator._schema.arguments)


_FURTHER = (
    aten.upsample_linear1d.default, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
)  # fmt: skip

_PLAIN = (
    aten._assert_tensor_metadata.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout,
    aten.type_as.default, aten._weight_norm.default, aten._weight_norm_interface.default,
)  # fmt: skip
_COMPOSITE = (aten.as_strided.default,)


def state_of(exported: Exported, network: Adapted) -> dict[str, Tensor]:
    """Returns the placeholders' tensors, taken from the network as it is, with the writes of its forward applied."""
    tensors = tensors_of(network)
    state = {p: tensors[n].detach() for p, n in exported.parameters.items()}
    return exported.writes.applied(state | exported.constants)
