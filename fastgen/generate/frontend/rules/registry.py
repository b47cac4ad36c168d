"""The registry of rules."""

from __future__ import annotations

from collections.abc import Callable

RULES: dict[object, Callable] = {}


def register_rule(*operators: object) -> Callable[[Callable], Callable]:
    """Registers the rule of operators (``torch.ops.aten.relu.default``, a custom op's overload, ...), as a decorator.

    Example::

        @register_rule(torch.ops.mylib.squareplus.default)
        def squareplus(graph, x, b):                       # (x + sqrt(x * x + b)) / 2
            root = graph.map("sqrt", graph.map("addc", graph.map("mul", x, x), x=b))
            return graph.map("mulc", graph.map("add", x, root), x=0.5)
    """

    def register(rule: Callable) -> Callable:
        for operator in operators:
            RULES[operator] = rule
        return rule

    return register
