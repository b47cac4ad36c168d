"""Nodes of an exported graph, as people and rules know them: where they come from and what they are given."""

from __future__ import annotations

from torch.fx import Node as FxNode


def where_of(node: FxNode) -> str:
    """Returns the line of the source, the user's rather than PyTorch's."""
    stack = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    files = [i for i, line in enumerate(stack) if line.startswith("File ")]
    own = [i for i in files if "/torch/" not in stack[i] and "<eval_with_key>" not in stack[i]] or files
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


def arguments_of(node: FxNode) -> dict[str, object]:
    """Returns the arguments of an operator's call by name, defaults included."""
    arguments = node.target._schema.arguments
    given = {a.name: node.kwargs.get(a.name, a.default_value) for a in arguments}
    return given | {a.name: value for a, value in zip(arguments, node.args, strict=False)}
