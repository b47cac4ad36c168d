"""Nodes of an exported graph, as people and rules know them: where they come from and what they are given."""

from __future__ import annotations

from torch.fx import GraphModule
from torch.fx import Node as FxNode

_GENERATED = "<eval_with_key>"
"""The file of code that torch.fx has generated."""
_PLACE = ("stack_trace", "nn_module_stack")


def where_of(node: FxNode) -> str:
    """Returns the line of the source, the user's rather than PyTorch's."""
    stack = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [i for i, line in enumerate(stack) if line.startswith("File ")]
    own = [i for i in files if "/torch/" not in stack[i] and _GENERATED not in stack[i]] or files
    if not own:
        return "an unknown source line"
    line = stack[own[-1]]
    code = stack[own[-1] + 1] if own[-1] + 1 < len(stack) else ""
    return f"{line} `{code}`" if code else line


def name_of(node: FxNode) -> str:
    """Returns the layer and the name of the node."""
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    path = modules[-1].removeprefix("L['self'].").replace("module.", "", 1) if modules else ""
    return f"{path or 'forward'} ({node.name})"


def places_within(graph_module: GraphModule) -> dict[str, dict]:
    """Returns by name the layers and lines of the nodes in blocks of a graph: ``with torch.autocast``, ``no_grad``."""
    blocks = [part for part in graph_module.modules() if isinstance(part, GraphModule) and part is not graph_module]
    return {
        node.name: {key: node.meta[key] for key in _PLACE if key in node.meta} for b in blocks for node in b.graph.nodes
    }


def restore_places(graph_module: GraphModule, places: dict[str, dict]) -> None:
    """Gives the nodes of former blocks, whose code is generated after a decomposition, the places they had before."""
    for node in graph_module.graph.nodes:
        trace = node.meta.get("stack_trace") or ""
        if _GENERATED in trace:
            name = trace.strip().splitlines()[-1].partition(" = ")[0].strip()
            node.meta.update(places.get(name, {}))


def arguments_of(node: FxNode) -> dict[str, object]:
    """Returns the arguments of an operator's call by name, defaults included."""
    arguments = node.target._schema.arguments
    given = {a.name: node.kwargs.get(a.name, a.default_value) for a in arguments}
    return given | {a.name: value for a, value in zip(arguments, node.args, strict=False)}
