"""Samplers as files: a program with what it takes to generate from it, without the module."""

from __future__ import annotations

from torch import Tensor

from fastgen.generate.compile.any_length import Compiled
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.context_network import ContextNetwork
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.files.context_file import PREFIX, read_network, write_network
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from fastgen.generate.heads import Head, from_config, to_config
from fastgen.generate.ir.instructions import FORMATS
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_checks import check_program
from fastgen.generate.lower.key_format import with_key_format
from fastgen.generate.request import CompileRequest
from fastgen.generate.step_rules import rule_from_config


def write_sampler(network: CompiledNetwork, path) -> None:
    """Writes what ``read_sampler`` reads; errors as ``Sampler.save``."""
    request, contexts = network.request, network.compiled.context_network
    order, saved = request.order, request.order.name
    if order.permutation is not None:
        saved = order.permutation.tolist()
    elif order.rule is not None:
        saved = {order.name: order.rule.to_config()}
    description = {
        "event_shape": request.event_shape,
        "head": to_config(request.head),
        "order": saved,
        "weights": network.weights,
        "kv": network.kv,
        "predicts": request.predicts,
        "start": request.start,
        "prefix": request.prefix,
        "context": None if request.layout is None else request.layout.to_config(),
        "context_network": None,
    }
    tensors = network.program.to_tensors()
    if contexts is not None:
        description["context_network"], held = write_network(contexts)
        tensors |= held
    write_tensor_file(path, "program", tensors, description)


def read_sampler(path, head: Head | None = None) -> tuple[CompileRequest, Compiled, str, str]:
    """Returns the request (without a module), what was compiled, and the formats of weights and of keys and values.

    ``head`` is the ``Custom`` head of the file, if it has one.

    Everything is checked here, before any work: what is added to the file is to be checked here too. Errors as
    ``Sampler.load``.
    """
    tensors, saved = read_tensor_file(path, "program")
    try:
        request = _request(saved, head)
        held = {name: tensors.pop(name) for name in [*tensors] if name.startswith(PREFIX)}
        program, network = Program.from_tensors(tensors), _network(request.layout, saved, held)
        contexts = [] if request.layout is None else [s[2] for s in request.layout.position_major_shapes(1)]
        contexts += [] if network is None else [channels for _, channels in network.sizes]
        check_program(program, request.head, request.order, contexts)
        if request.shift and not program.draws:
            raise ValueError("predicts='next' needs a program that draws")
        if with_key_format(program, saved["kv"]) is not program:
            raise ValueError(f"kv must be the format of the program's keys and values, got {saved['kv']!r}")
        return request, Compiled(program, [], None, None, network), saved["weights"], saved["kv"]
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} holds a sampler that cannot be used: {error}") from error


def _network(layout: ContextLayout | None, saved: dict, tensors: dict[str, Tensor]) -> ContextNetwork | None:
    if saved["context_network"] is None and not tensors:
        return None
    leaves, free = ([], ()) if layout is None else (layout.leaves, layout.free)
    return read_network(saved["context_network"], tensors, leaves, free)


def _request(saved: dict, custom: Head | None) -> CompileRequest:
    fields = {
        "event_shape",
        "head",
        "order",
        "weights",
        "kv",
        "predicts",
        "start",
        "prefix",
        "context",
        "context_network",
    }
    if saved.keys() != fields:
        odd = ", ".join(sorted(saved.keys() ^ fields))
        raise ValueError(f"a sampler has {', '.join(sorted(fields))}; missing or not known: {odd:.200}")
    shape, order = saved["event_shape"], saved["order"]
    if not isinstance(shape, list):
        raise ValueError(f"event_shape must be a list of sizes, got {shape!s:.100}")
    for name in ("weights", "kv"):
        if saved[name] not in FORMATS:
            raise ValueError(f"{name} must be one of {', '.join(FORMATS)}, got {saved[name]!s:.100}")
    layout = None if saved["context"] is None else ContextLayout.from_config(saved["context"])
    if isinstance(order, dict) and len(order) == 1:
        order = rule_from_config(*next(iter(order.items())))
    elif not isinstance(order, str | list):
        order = repr(order)
    head = from_config(saved["head"], custom)
    request = CompileRequest.checked(
        None, shape, head, order, saved["predicts"], None, layout, saved["start"], saved["prefix"]
    )
    if request.head.to_input_name is None:
        raise ValueError("the head must say how a level becomes the network's input, got to_input None")
    return request
