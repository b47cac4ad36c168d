"""Compiled generation: from any causal network to a step program, and the machines that run it."""

from __future__ import annotations

from fastgen.generate.errors import CompileError, NotCausalError, UnsupportedOperator, VerificationError
from fastgen.generate.frontend.masks import freeze_masks
from fastgen.generate.frontend.rules import register_rule
from fastgen.generate.report.report import Report
from fastgen.generate.report.verify import verify

__all__ = [
    "CompileError",
    "NotCausalError",
    "Report",
    "UnsupportedOperator",
    "VerificationError",
    "freeze_masks",
    "register_rule",
    "verify",
]
