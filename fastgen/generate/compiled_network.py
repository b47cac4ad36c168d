"""A compiled network and the machine that runs it: what generating, checking and explaining have in common."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from torch import nn

from fastgen.generate.compile.any_length import Compiled
from fastgen.generate.heads import Head, to_config
from fastgen.generate.ir.program import Program
from fastgen.generate.lower.key_format import with_key_format
from fastgen.generate.machines.machine import Machine, check_threads, default_machine, make_machine
from fastgen.generate.orders import Order
from fastgen.generate.request import CompileRequest


class CompiledNetwork:
    """The base of ``Sampler``."""

    request: CompileRequest
    compiled: Compiled
    program: Program
    machine: Machine
    machine_name: str
    weights: str
    kv: str
    """The format of keys and values."""
    threads: int

    def __init__(
        self,
        request: CompileRequest,
        compiled: Compiled,
        weights: str,
        kv: str,
        machine: str | None,
        threads: int | None,
    ) -> None:
        self.request, self.weights, self.kv, self.threads = request, weights, kv, check_threads(threads)
        self.run_on(machine, compiled)

    def run_on(self, machine: str | None, compiled: Compiled) -> None:
        """Gives a compiled program to a machine, by default the fastest that is there."""
        self.program = with_key_format(compiled.program, self.kv)
        self.compiled = compiled if self.program is compiled.program else replace(compiled, program=self.program)
        self.machine_name = machine or default_machine()
        self.machine = make_machine(self.machine_name, self.program, self.head, self.weights)

    def in_float32(self) -> CompiledNetwork:
        """Returns the network with weights, keys and values in float32, on the fastest machine: itself where it is."""
        if self.weights == self.kv == "float32" and self.machine_name == default_machine():
            return self
        return CompiledNetwork(self.request, self.compiled, "float32", "float32", None, self.threads)

    @property
    def module(self) -> nn.Module | None:
        """The network; None where the program comes from a file."""
        return self.request.module

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.request.event_shape

    @property
    def head(self) -> Head:
        return self.request.head

    @property
    def order(self) -> Order:
        return self.request.order

    @property
    def steps(self) -> int:
        """Steps of one event."""
        return self.order.length

    @property
    def fingerprint(self) -> str:
        """Tells programs, events and heads apart: a state goes with one of them."""
        told = json.dumps([self.program.fingerprint, self.event_shape, to_config(self.head)])
        return hashlib.sha256(told.encode()).hexdigest()[:16]
