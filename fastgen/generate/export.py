"""From a module to the graph of ids: export at batch two, fold constants, apply the rules."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_any, tree_map

from fastgen.eval_mode import eval_mode
from fastgen.generate.errors import CompileError, UnsupportedOperator
from fastgen.generate.graph import Channels, Constant, Graph, Node, Recipe, Value
from fastgen.generate.masks import WRITES, check_softmax_masks, writes_weights
from fastgen.generate.places import arguments_of, name_of, where_of
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


@dataclass
class Traced:
    graph: Graph
    input: Node
    contexts: list[Node]
    output: Value
    folded: list[tuple[str, Callable[[dict[str, Tensor]], object]]]
    """How to make every folded constant again, in order."""


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


def trace(
    exported: Exported, state: dict[str, Tensor], input_node: Callable[[Graph, Tensor], tuple[Node, Value]]
) -> Traced:
    """Apply the rules. ``input_node(graph, example)`` makes the event's node and its ids in the input's shape."""
    graph = Graph()
    environment: dict[FxNode, object] = {}
    folded: list[tuple[str, Callable]] = []
    contexts: list[Node] = []
    source = None
    pending = {node: len(node.users) for node in exported.graph_module.graph.nodes}
    check_softmax_masks(exported.graph_module.graph.nodes, state)
    for node in exported.graph_module.graph.nodes:
        graph.name, graph.where = name_of(node), where_of(node)
        if node.op == "placeholder":
            if node.name in exported.users:
                example = node.meta["val"]
                if source is None:
                    source, environment[node] = input_node(graph, example)
                else:
                    context, environment[node] = _context(graph, example, len(contexts))
                    contexts.append(context)
            else:
                tensor = state[node.name]
                graph.constants[node.name] = tensor
                environment[node] = _constant(node.name, tensor)
            continue
        if node.op == "output":
            (output,) = (environment[n] for n in node.args[0])
            if not isinstance(output, Value):
                raise CompileError("the module's output does not depend on its input")
            return Traced(graph, source, contexts, output, folded)
        if _draws_noise(node):
            raise CompileError(
                f"forward draws random numbers at {graph.name}, {graph.where}, so the network is no function of its "
                "input. Dropout must be off in eval (nn.Dropout, or F.dropout with training=self.training)"
            )
        arguments = tree_map(
            lambda n: environment[n] if isinstance(n, FxNode) else n, (list(node.args), dict(node.kwargs))
        )
        if not tree_any(lambda a: isinstance(a, Value), arguments):
            environment[node] = _fold(graph, node, arguments, folded)
        else:
            environment[node] = _apply(graph, node, *arguments)
        for read in node.all_input_nodes:
            pending[read] -= 1
            if not pending[read]:
                del environment[read]
    raise AssertionError("an exported graph ends with its output")


def _draws_noise(node: FxNode) -> bool:
    """Whether the operator is random; dropout that is off is not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = arguments_of(node)
    return given.get("train", given.get("training", True)) and given.get("p") != 0


def _constant(name: str, tensor: Tensor) -> Constant:
    return Constant(tensor, Recipe((name,), lambda t: t))


def _fold(graph: Graph, node: FxNode, arguments, folded: list):
    """Evaluate a node that depends on no input."""
    target = node.target
    sources = [a for a in torch.utils._pytree.tree_leaves(arguments) if isinstance(a, Constant)]

    def evaluate(constants: dict[str, Tensor]):
        args, kwargs = tree_map(
            lambda a: a.recipe.function(*[constants[s] for s in a.recipe.sources]) if isinstance(a, Constant) else a,
            arguments,
        )
        if target in (aten._assert_tensor_metadata.default,):
            return None
        with torch.no_grad():
            return target(*args, **kwargs)

    result = evaluate(graph.constants)
    if isinstance(result, Tensor):
        if not sources:
            return Constant.literal(result)
        graph.constants[node.name] = result
        folded.append((node.name, evaluate))
        return _constant(node.name, result)
    if isinstance(result, (tuple, list)) and any(isinstance(r, Tensor) for r in result):
        made = []
        for number, tensor in enumerate(result):
            name = f"{node.name}.{number}"
            graph.constants[name] = tensor
            folded.append((name, lambda constants, number=number: evaluate(constants)[number]))
            made.append(_constant(name, tensor))
        return made
    return result


def _apply(graph: Graph, node: FxNode, args, kwargs):
    target = node.target
    if getattr(target, "__name__", "") == "getitem":
        return args[0][args[1]]
    if target is aten._assert_tensor_metadata.default:
        return None
    if target in (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default):
        before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype
        if after == torch.bool:
            return RULES[aten.ne.Scalar](graph, args[0], 0.0)
        if before.is_floating_point and not after.is_floating_point:
            return RULES[aten.trunc.default](graph, args[0])
        return args[0]
    if target not in RULES:
        raise UnsupportedOperator(graph, f"operator {target}")
    rule = RULES[target]
    wanted = inspect.signature(rule).parameters
    told = {"operator": target, "result": node.meta["val"].dtype if "result" in wanted else None}
    kwargs = kwargs | {name: value for name, value in told.items() if name in wanted}
    try:
        return rule(graph, *args, **kwargs)
    except CompileError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        use = f"this use of operator {target} ({type(error).__name__}: {error})"
        raise UnsupportedOperator(graph, use) from error


def _context(graph: Graph, example: Tensor, number: int) -> tuple[Node, Value]:
    """The node of a context: ``[N]`` or ``[N, C]`` one position; ``[N, C, *grid]`` a grid of positions."""
    channels = example.shape[1] if example.dim() >= 2 else 1
    rows_shape = (example.shape[0], *example.shape[2:])
    rows = int(np.prod(rows_shape))
    uses = np.repeat(np.array([1, 2], np.uint8), rows // BATCH)
    run = Channels(0, channels, np.zeros(rows, np.int32), uses)
    node = graph.add("context", rows_shape, channels, [run], context=number)
    ids = graph.ids(node)
    return node, Value(ids.movedim(-1, 1) if example.dim() >= 2 else ids[..., 0])


def check_finite(state: dict[str, Tensor], names: Sequence[str]) -> None:
    for placeholder, tensor in state.items():
        if placeholder in names and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CompileError(f"parameter {placeholder!r} holds NaN or infinite values")
