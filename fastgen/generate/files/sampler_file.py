"""Samplers as files: a program with what it takes to generate from it, without the module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fastgen.generate.arguments import finite_number
from fastgen.generate.compile.any_length import Compiled
from fastgen.generate.context_network import ContextNetwork
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.files.context_file import PREFIX, read_network, write_network
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.heads import from_config, to_config
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_checks import check_program
from fastgen.generate.orders import event_grid, make_order

if TYPE_CHECKING:
    from fastgen.generate.sampler import Sampler

WEIGHTS = ("float32", "bfloat16", "int8")
PREDICTS = ("same", "next")


def save_sampler(sampler: Sampler, path) -> None:
    """``Sampler.save``."""
    order = sampler.order
    description = {
        "event_shape": sampler.event_shape,
        "head": to_config(sampler.head),
        "order": order.name if order.permutation is None else order.permutation.tolist(),
        "weights": sampler.weights,
        "predicts": sampler.predicts,
        "start": sampler.start_value,
        "context": None if sampler.layout is None else sampler.layout.to_config(),
        "context_network": None,
    }
    tensors = sampler.program.to_tensors()
    if sampler.compiled.context_network is not None:
        description["context_network"], held = write_network(sampler.compiled.context_network)
        tensors |= held
    write_tensor_file(path, "program", tensors, description)


def restore_sampler(sampler: Sampler, path) -> Compiled:
    """Gives ``sampler`` what the file says of it, and returns what is compiled; errors as ``Sampler.load``.

    Everything is checked here, before any work: what is added to the file is to be checked here too.
    """
    tensors, saved = read_tensor_file(path, "program")
    try:
        _restore(sampler, saved)
        held = {name: tensors.pop(name) for name in [*tensors] if name.startswith(PREFIX)}
        program, network = Program.from_tensors(tensors), _network(sampler, saved, held)
        contexts = [] if sampler.layout is None else [s[2] for s in sampler.layout.position_major_shapes(1)]
        contexts += [] if network is None else [channels for _, channels in network.sizes]
        check_program(program, sampler.head, sampler.order, contexts)
        if sampler.predicts == "next" and not program.draws:
            raise ValueError("predicts='next' needs a program that draws")
        return Compiled(program, [], None, None, network)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} holds a sampler that cannot be used: {error}") from error


def _network(sampler: Sampler, saved: dict, tensors: dict[str, Tensor]) -> ContextNetwork | None:
    if saved["context_network"] is None and not tensors:
        return None
    return read_network(saved["context_network"], tensors, [] if sampler.layout is None else sampler.layout.leaves)


def _restore(sampler: Sampler, saved: dict) -> None:
    fields = {"event_shape", "head", "order", "weights", "predicts", "start", "context", "context_network"}
    if saved.keys() != fields:
        odd = ", ".join(sorted(saved.keys() ^ fields))
        raise ValueError(f"a sampler has {', '.join(sorted(fields))}; missing or not known: {odd:.200}")
    shape, order, start = saved["event_shape"], saved["order"], saved["start"]
    if not isinstance(shape, list):
        raise ValueError(f"event_shape must be a list of sizes, got {shape!s:.100}")
    event_grid(shape)
    sampler.event_shape = tuple(shape)
    sampler.order = make_order(order if isinstance(order, str | list) else repr(order), sampler.event_shape)
    sampler.module, sampler.adapter = None, None
    sampler.head = from_config(saved["head"]).resolve(sampler.event_shape)
    if sampler.head.to_input_name is None:
        raise ValueError("the head must say how a level becomes the network's input, got to_input None")
    for name, allowed in (("weights", WEIGHTS), ("predicts", PREDICTS)):
        if saved[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {saved[name]!s:.100}")
        setattr(sampler, name, saved[name])
    sampler.start_value = finite_number("start", start)
    sampler.layout = None if saved["context"] is None else ContextLayout.from_config(saved["context"])
