"""From a module to its exported graph, at a batch of two."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode

from fastgen.eval_mode import eval_mode
from fastgen.generate.errors import CompileError
from fastgen.generate.masks import WRITES, writes_weights
from fastgen.generate.rules import RULES

aten = torch.ops.aten
BATCH = 2


@dataclass
class Exported:
    """The exported graph of a module at one static shape."""

    graph_module: torch.fx.GraphModule
    parameters: dict[str, str]  # placeholder -> name in the module's state
    constants: dict[str, Tensor]  # lifted constants by placeholder
    users: list[str]  # placeholders of the inputs, in order


class Adapted(nn.Module):
    """``adapter(module(x[, context]))``."""

    def __init__(self, module: nn.Module, adapter: Callable | None) -> None:
        super().__init__()
        self.module, self.adapter = module, adapter

    def forward(self, x, context=None):
        out = self.module(x) if context is None else self.module(x, context)
        return out if self.adapter is None else self.adapter(out)


def export(module: nn.Module, x: Tensor, context, adapter: Callable | None = None) -> Exported:
    """``torch.export`` of ``adapter(module(x[, context]))`` in eval mode.

    Raises:
        CompileError: the module cannot be exported; the message says what to change.
    """
    arguments = (x,) if context is None else (x, context)
    wrapped = Adapted(module, adapter)
    with eval_mode(wrapped), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if writes_weights(module):
            raise CompileError(WRITES)
        try:
            output = wrapped(*arguments)  # some modules register buffers on their first call
        except Exception as error:
            raise CompileError(
                f"{type(module).__name__} does not take an input {list(x.shape)}, {x.dtype} (a batch of {BATCH} of "
                f"event_shape {tuple(x.shape[1:])}): {type(error).__name__}: {error}"
            ) from error
        if not isinstance(output, Tensor):
            raise CompileError(
                f"{type(module).__name__} returns a {type(output).__name__}, not a tensor; pass an adapter that "
                "takes the head's parameters from it, such as adapter=lambda output: output[0]"
            )
        try:
            program = torch.export.export(wrapped, arguments)
            if not all(_has_rule(node) for node in program.graph.nodes):
                program = program.run_decompositions({})
        except CompileError:
            raise
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise CompileError(
                f"torch.export does not take {type(module).__name__}: {type(error).__name__}: {reason}. "
                "The forward must be free of data-dependent Python control flow and of writes to parameters."
            ) from error
    signature = program.graph_signature
    written = signature.buffers_to_mutate | signature.parameters_to_mutate
    if written:
        names = [n.removeprefix("module.") for n in written.values()]
        raise CompileError(f"forward writes to {', '.join(map(repr, names))}; " + WRITES)
    lifted = {p: program.constants[n] for p, n in signature.inputs_to_lifted_tensor_constants.items()}
    parameters = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    for placeholder, name in list(parameters.items()):
        if name in program.constants and name not in program.state_dict:
            lifted[placeholder] = program.constants[name]
            del parameters[placeholder]
    return Exported(program.graph_module, parameters, lifted, list(signature.user_inputs))


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


_PLAIN = (
    aten._assert_tensor_metadata.default, aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout,
    aten.type_as.default, aten._weight_norm.default, aten._weight_norm_interface.default,
)  # fmt: skip
_COMPOSITE = (aten.as_strided.default,)


def state_of(exported: Exported, module: nn.Module) -> dict[str, Tensor]:
    """The placeholders' tensors, taken from the module as it is now."""
    state = dict(module.state_dict(keep_vars=False)) | dict(module.named_buffers())
    tensors = {p: state[n.removeprefix("module.")].detach() for p, n in exported.parameters.items()}
    return tensors | exported.constants
