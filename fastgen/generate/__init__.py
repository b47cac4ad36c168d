"""Compiled generation: from any causal network to a step program, and the machines that run it."""

from __future__ import annotations

from fastgen.generate.errors import CompileError, NotCausalError, UnsupportedOperator, VerificationError
from fastgen.generate.frontend.masks import freeze_masks
from fastgen.generate.frontend.rules import register_rule
from fastgen.generate.report.report import Report
from fastgen.generate.report.verify import verify
from fastgen.generate.step_rules import Delayed, Groups, Wavefront, multiscale

__all__ = [
    "CompileError",
    "Delayed",
    "Groups",
    "NotCausalError",
    "Report",
    "UnsupportedOperator",
    "VerificationError",
    "Wavefront",
    "freeze_masks",
    "multiscale",
    "register_rule",
    "verify",
]
