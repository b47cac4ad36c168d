"""From an exported graph to the graph of ids: fold constants, apply the rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_any, tree_flatten, tree_leaves, tree_map

from fastgen.generate.context_network import Result
from fastgen.generate.contexts import MOST_OF_CONTEXT
from fastgen.generate.errors import CompileError, UnsupportedOperator
from fastgen.generate.frontend.context_plan import ContextPlan
from fastgen.generate.frontend.export import Exported
from fastgen.generate.frontend.fx_info import arguments_of, name_of, where_of
from fastgen.generate.frontend.integers import CONVERSIONS, computed, is_moving
from fastgen.generate.frontend.masks import finite_mask
from fastgen.generate.frontend.ranges import TRUTH, UNKNOWN
from fastgen.generate.frontend.refused import REFUSED, REFUSED_RESULTS
from fastgen.generate.frontend.rules import RULES
from fastgen.generate.frontend.rules.attention import SCORE_RULES, written_out
from fastgen.generate.frontend.rules.softmax_by_hand import check_parts
from fastgen.generate.frontend.scores import Scores, SoftmaxPart
from fastgen.generate.ir.graph import ChannelRun, Constant, Graph, Node, Recipe, Value
from fastgen.generate.ir.records import BATCH, Place

aten = torch.ops.aten


@dataclass
class Traced:
    graph: Graph
    input: Node
    contexts: list[Node]
    output: Value
    folded: list[tuple[str, Callable[[dict[str, Tensor]], object]]]
    """How to make every folded constant again, in order."""
    place: Place
    """Where the output is."""


def trace(
    exported: Exported,
    state: dict[str, Tensor],
    input_node: Callable[[Graph, Tensor], tuple[Node, Value]],
    plan: ContextPlan | None,
) -> Traced:
    """Applies the rules. ``input_node(graph, example)`` makes the event's node and its ids in the input's shape.

    ``plan`` says which values of the contexts are computed outside of the program and read as further contexts.
    """
    graph = Graph()
    environment: dict[FxNode, object] = {}
    evaluated: dict[
        tuple, tuple
    ] = {}  # what a loop evaluates again and again; with the arguments, which keep their ids
    folded: list[tuple[str, Callable]] = []
    contexts: list[Node] = []
    source = None
    results = {} if plan is None else {result.name: result for result in plan.results}
    skipped = set() if plan is None else plan.still.keys() - plan.needed - {*exported.users}
    pending = {node: len(node.users) for node in exported.graph_module.graph.nodes}
    graph.remark = finite_mask(exported.graph_module.graph.nodes, state)

    def outside(node: FxNode) -> Value:
        number = len(exported.users) - 1 + list(results).index(node.name)
        return _result(graph, node.meta["val"], results[node.name], number)

    for node in exported.graph_module.graph.nodes:
        with graph.at(Place(name_of(node), where_of(node), node.name)):
            if node.op == "placeholder":
                if node.name in exported.users:
                    example = node.meta["val"]
                    if source is None:
                        source, environment[node] = input_node(graph, example)
                    else:
                        context, environment[node] = _context(graph, example, len(contexts))
                        contexts.append(context)
                        if node.name in results:
                            environment[node] = outside(node)
                else:
                    tensor = state[node.name]
                    graph.constants[node.name] = tensor
                    environment[node] = _constant(node.name, tensor)
                continue
            if node.op == "output":
                (output,) = (environment[n] for n in node.args[0])
                output = written_out(graph, output) if isinstance(output, Scores) else output
                if not isinstance(output, Value):
                    raise CompileError("the module's output does not depend on its input")
                return Traced(graph, source, contexts, output, folded, graph.place)
            if _draws_noise(node):
                raise CompileError(
                    f"forward draws random numbers at {graph.place}, so the network is no function of its "
                    "input. Dropout must be off in eval (nn.Dropout, or F.dropout with training=self.training); other "
                    "noise must come in as a context, or stay with the head, which draws"
                )
            if node.name in results:
                environment[node] = outside(node)
                continue
            if node.name in skipped:
                continue
            arguments = tree_map(
                lambda n: environment[n] if isinstance(n, FxNode) else n, (list(node.args), dict(node.kwargs))
            )
            if not tree_any(is_moving, arguments):
                call = _call(node, arguments)
                if call not in evaluated:
                    evaluated[call] = arguments, _fold(graph, node, arguments, folded)
                environment[node] = evaluated[call][1]
            else:
                try:
                    environment[node] = _apply(graph, node, *arguments)
                except CompileError as error:
                    error.node, error.final = node.name, True
                    raise
            for read in node.all_input_nodes:
                pending[read] -= 1
                if not pending[read] and read in environment:
                    del environment[read]
    raise AssertionError("an exported graph ends with its output")


def _draws_noise(node: FxNode) -> bool:
    """Whether the operator is random; dropout that is off is not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = arguments_of(node)
    return given.get("train", given.get("training", True)) and given.get("p", given.get("dropout_p")) != 0


def _constant(name: str, tensor: Tensor) -> Constant:
    return Constant(tensor, Recipe((name,), lambda t: t))


def _call(node: FxNode, arguments) -> tuple:
    """Returns what is equal for calls of one operator with the same arguments."""
    leaves, form = tree_flatten(arguments)
    return node.target, str(form), *((type(a), id(a) if isinstance(a, Constant) else str(a)) for a in leaves)


def _fold(graph: Graph, node: FxNode, arguments, folded: list):
    """Evaluates a node that depends on no input."""
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
        taken = args[0][args[1]]
        if taken is None and node.users:
            told = REFUSED_RESULTS.get(node.args[0].target, ())
            raise UnsupportedOperator(graph, f"result {args[1]} of operator {node.args[0].target}", *told)
        return taken
    if target is aten._assert_tensor_metadata.default:
        return None
    _check_precision(graph, node)
    scored = tree_any(lambda a: isinstance(a, (Scores, SoftmaxPart)), (args, kwargs))
    if scored:
        check_parts(graph, target, (args, kwargs))
    if scored and target not in SCORE_RULES:
        args, kwargs = tree_map(lambda a: written_out(graph, a) if isinstance(a, Scores) else a, (args, kwargs))
        scored = False
    rules = SCORE_RULES if scored else RULES
    rule = _conversion(node) if target in CONVERSIONS and not scored else rules.get(target)
    if rule is None:
        raise UnsupportedOperator(graph, f"operator {target}", *REFUSED.get(target, ()))
    wanted = inspect.signature(rule).parameters
    told = {"operator": target, "node": node, "result": node.meta["val"].dtype if "result" in wanted else None}
    rule = partial(rule, **{name: value for name, value in told.items() if name in wanted})
    try:
        return rule(graph, *args, **kwargs) if scored else computed(graph, node, rule, args, kwargs)
    except CompileError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        use = f"this use of operator {target} ({type(error).__name__}: {error})"
        raise UnsupportedOperator(graph, use) from error


def _conversion(node: FxNode) -> Callable:
    """Returns the rule of a conversion between dtypes."""
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype

    def convert(graph: Graph, x: Value, *_, **__) -> Value:
        if after == torch.bool:
            return RULES[aten.ne.Scalar](graph, x, 0.0)
        return RULES[aten.trunc.default](graph, x) if before.is_floating_point and not after.is_floating_point else x

    return convert


def _check_precision(graph: Graph, node: FxNode) -> None:
    """Raises CompileError where what depends on the input is computed in half precision."""
    for value in tree_leaves(node.meta.get("val")):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4:
            raise CompileError(
                f"the network computes in {value.dtype} at {graph.place}; the sampler computes in "
                "float32, so its samples would not be the module's. Compile a float32 copy, "
                "copy.deepcopy(module).float(), and without torch.autocast in forward"
            )


def _context(graph: Graph, example: Tensor, number: int) -> tuple[Node, Value]:
    """Makes the node of a context: ``[N]`` or ``[N, C]`` one position; ``[N, C, *grid]`` a grid of positions."""
    channels = example.shape[1] if example.dim() >= 2 else 1
    rows_shape = (example.shape[0], *example.shape[2:])
    rows = int(np.prod(rows_shape))
    uses = np.repeat(np.array([1, 2], np.uint8), rows // BATCH)
    run = ChannelRun(0, channels, np.zeros(rows, np.int32), uses)
    node = graph.add("context", rows_shape, channels, [run], context=number)
    ids = graph.ids(node)
    ids = ids.movedim(-1, 1) if example.dim() >= 2 else ids[..., 0]
    return node, Value(ids, *_given_range(example))


def _given_range(example: Tensor) -> tuple[float, float]:
    """Returns the least and the greatest number of a context, or of what is made of contexts."""
    if example.is_floating_point() or example.is_complex():
        return UNKNOWN
    return TRUTH if example.dtype == torch.bool else (-float(MOST_OF_CONTEXT), float(MOST_OF_CONTEXT))


def _result(graph: Graph, example: Tensor, result: Result, number: int) -> Value:
    """Returns the value of a context that PyTorch computes at the start."""
    *rows_shape, channels = result.arranged(example).shape
    rows = int(np.prod(rows_shape))
    uses = np.repeat(np.array([1, 2], np.uint8), rows // BATCH)
    run = ChannelRun(0, channels, np.zeros(rows, np.int32), uses)
    node = graph.add("context", rows_shape, channels, [run], context=number)
    return Value(result.restored(graph.ids(node)), *_given_range(example))


def check_finite(exported: Exported, state: dict[str, Tensor], parameters: set[str]) -> None:
    """Raises CompileError where the network reads NaN, or infinite ``parameters``; a buffer's infinities are a mask."""
    read = {node.name for node in exported.graph_module.graph.nodes if node.op == "placeholder" and node.users}
    for placeholder, name in exported.parameters.items():
        tensor, told = state[placeholder], name.removeprefix("module.")
        if placeholder not in read or not tensor.is_floating_point():
            continue
        if name not in parameters and bool(tensor.isnan().any()):
            raise CompileError(f"buffer {told!r} holds NaN")
        if name in parameters and not bool(torch.isfinite(tensor).all()):
            raise CompileError(f"parameter {told!r} holds NaN or infinite values")
