"""Errors of compiling, raised before any sample is drawn."""

from __future__ import annotations


class CompileError(ValueError):
    """The network cannot be compiled to a step program; the message says where and why."""

    node: str | None = None
    """The node of the exported graph that has no rule or no schedule."""
    context: int | None = None
    """The context that it reads across positions."""
    still: tuple[str, ...] = ()
    """Nodes of the exported graph that depend on contexts only and should be computed before the program."""
    final = False
    """Whether the node cannot be computed however its operands lie."""


class VerificationError(CompileError):
    """The program does not compute what the module computes."""


class NotCausalError(CompileError):
    """An output depends on an element that is not drawn yet, or on another sample of the batch."""


class UnsupportedOperator(CompileError):
    """The graph has an operator, or a use of one, without a rule: ``what`` it is, the reason, and what to change."""

    def __init__(self, graph, what: str, reason: str = "has no rule", change: str = "") -> None:
        change = change or (
            "Use operators that have one (docs/generate.md lists them), or register one with "
            "fastgen.generate.register_rule(operator); see its docstring"
        )
        super().__init__(f"{what} {reason}, at {graph.place}. {change}.{graph.remark}")
