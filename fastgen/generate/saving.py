"""Samplers as files: a program with what it takes to generate from it, without the module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgen.generate.contexts import ContextLayout
from fastgen.generate.heads import from_config, to_config
from fastgen.generate.orders import make_order
from fastgen.generate.program import Program

if TYPE_CHECKING:
    from fastgen.generate.sampler import Sampler


def save_sampler(sampler: Sampler, path) -> None:
    """``Sampler.save``."""
    layout = None if sampler.layout is None else sampler.layout.to_config()
    order = sampler.order.name if sampler.order.name != "permutation" else sampler.order.steps[0].argsort().tolist()
    sampler.program.save(
        path,
        {
            "event_shape": sampler.event_shape,
            "head": to_config(sampler.head),
            "order": order,
            "weights": sampler.weights,
            "predicts": sampler.predicts,
            "start": sampler.start_value,
            "context": layout,
        },
    )


def restore_sampler(sampler: Sampler, path) -> Program:
    """Gives ``sampler`` what the file says of it, and returns the file's program; errors as ``Sampler.load``."""
    program, saved = Program.load(path)
    sampler.event_shape = tuple(saved["event_shape"])
    sampler.order = make_order(saved["order"], sampler.event_shape)
    sampler.module, sampler.adapter = None, None
    sampler.head = from_config(saved["head"]).resolve(sampler.event_shape)
    sampler.predicts, sampler.start_value, sampler.weights = saved["predicts"], saved["start"], saved["weights"]
    sampler.layout = None if saved["context"] is None else ContextLayout.from_config(saved["context"])
    return program
