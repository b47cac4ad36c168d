"""Modules of every make: taken as they are, or refused in words."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import fastgen
from fastgen.generate import CompileError, heads
from tests.generate.compiled import FAST, MACHINES
from tests.generate.test_untouched import assert_untouched

LEVELS, LENGTH = 7, 12


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(LEVELS, 8), nn.Linear(8, LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.table(x)).transpose(1, 2)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, LEVELS)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h).transpose(1, 2)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@dataclasses.dataclass
class Output:
    logits: Tensor


def changed(**parts) -> Network:
    """The network with other parts, made of the present ones."""
    module = Network()
    for name, make in parts.items():
        setattr(module, name, make(getattr(module, name)))
    return module


def with_forward(forward) -> Network:
    """The network with another ``forward(self, x)``."""
    return type("Changed", (Network,), {"forward": forward})()


def plain(self: Network, x: Tensor) -> Tensor:
    return Network.forward(self, x)


def sets_input(self: Network, x: Tensor) -> Tensor:
    x[:, 0] = 2
    return plain(self, x.mul_(1).add_(0))


def registers(self: Network, x: Tensor) -> Tensor:
    if not hasattr(self, "places"):
        self.register_buffer("places", torch.linspace(0, 1, x.shape[1])[:, None].repeat(1, 8))
    return self.output(self.table(x) + self.places).transpose(1, 2)


def with_gradients(self: Network, x: Tensor) -> Tensor:
    with torch.enable_grad():
        h = self.table(x)
    with torch.no_grad():
        return self.output(h).transpose(1, 2)


def exported(module: nn.Module, *arguments: Tensor, check_guards: bool = False) -> nn.Module:
    return torch.export.export(module, arguments).module(check_guards=check_guards)


def tied() -> nn.Module:
    module = changed(output=lambda _: nn.Linear(8, LEVELS, bias=False))
    module.output.weight = module.table.weight
    return module


def hooked() -> nn.Module:
    module = Network()
    module.register_forward_pre_hook(lambda layer, inputs: (inputs[0].clamp(0, LEVELS - 2),))
    module.output.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return module


def parametrized() -> nn.Module:
    module = Network()
    parametrize.register_parametrization(module.output, "weight", Doubled())
    return module


def weight_norm_called() -> nn.Module:
    module = changed(output=nn.utils.weight_norm)
    module(torch.zeros(3, 5, dtype=torch.int64))
    return module


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Network()


def two_tables() -> nn.Module:
    module = Network()
    module.masks = [torch.ones(8), torch.arange(8.0)]
    module.forward = functools.partial(lambda m, x: m.output(m.table(x) * m.masks[1]).transpose(1, 2), module)
    return module


TAKEN = {
    "adapter is a module": (lambda: nn.Embedding(LEVELS, 8), {"adapter": Transposed()}),
    "adapter of a tuple": (lambda: with_forward(lambda m, x: (plain(m, x), 0)), {"adapter": lambda out: out[0]}),
    "adapter of a dataclass": (lambda: with_forward(lambda m, x: Output(plain(m, x))), {"adapter": lambda o: o.logits}),
    "changes its input": lambda: with_forward(sets_input),
    "exported": lambda: exported(Network(), torch.zeros(2, LENGTH, dtype=torch.int64)),
    "exported, with guards": lambda: exported(Network(), torch.zeros(2, LENGTH).long(), check_guards=True),
    "exported part": lambda: changed(output=lambda layer: exported(layer, torch.zeros(2, LENGTH, 8))),
    "fx": lambda: torch.fx.symbolic_trace(Network()),
    "compiled": lambda: torch.compile(Network(), backend="eager"),
    "compiled part": lambda: changed(output=torch.compile),
    "DataParallel": lambda: nn.DataParallel(Network()),
    "tied": tied,
    "hooks": hooked,
    "parametrized": parametrized,
    "weight norm": lambda: changed(output=nn.utils.parametrizations.weight_norm),
    "older weight norm": lambda: changed(output=nn.utils.weight_norm),
    "older weight norm, called": weight_norm_called,
    "spectral norm": lambda: changed(output=nn.utils.parametrizations.spectral_norm),
    "older spectral norm": lambda: changed(output=nn.utils.spectral_norm),
    "inference mode": made_in_inference_mode,
    "no gradients needed": lambda: Network().requires_grad_(False),
    "registers a buffer": lambda: with_forward(registers),
    "switches gradients": lambda: with_forward(with_gradients),
    "decorated": lambda: with_forward(torch.inference_mode()(plain)),
    "checkpoint": lambda: with_forward(lambda m, x: checkpoint(plain, m, x, use_reentrant=False)),
    "forward replaced": two_tables,
}


def compiled(module: nn.Module, **options) -> fastgen.Sampler:
    options = {"order": "time", "predicts": "next", "machine": FAST} | options
    return fastgen.Sampler(module, (LENGTH,), heads.Categorical(LEVELS), **options)


@pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated", "ignore:`torch.jit", "ignore:.*check_guards"
)
@pytest.mark.parametrize("name", TAKEN)
def test_a_module_is_taken_as_it_is(name):
    """Fault generation_14, and what else a module may be made of."""
    make, options = TAKEN[name] if isinstance(TAKEN[name], tuple) else (TAKEN[name], {})
    torch.manual_seed(0)
    module, made = make(), []
    assert_untouched(module, lambda: made.append(compiled(module, **options)))
    (sampler,) = made
    drawn, log_prob = sampler.sample(2, return_log_prob=True)
    assert torch.equal(drawn, sampler.sample_naive(2))
    torch.testing.assert_close(sampler.log_prob(drawn).double(), log_prob, rtol=1e-5, atol=1e-5)
    assert torch.equal(sampler.refresh().sample(2), drawn)


def test_an_adapter_s_parameters_are_refreshed():
    adapter = Transposed()
    sampler = compiled(nn.Embedding(LEVELS, 8), adapter=adapter)
    before = sampler.sample(4)
    with torch.no_grad():
        adapter.linear.weight.mul_(-3)
    drawn = sampler.refresh().sample(4)
    assert not torch.equal(before, drawn)
    assert torch.equal(drawn, sampler.sample_naive(4))


def test_a_replaced_tensor_that_is_an_attribute_is_refreshed():
    module = with_forward(lambda m, x: plain(m, x) * m.scale)
    module.scale = torch.ones(())
    sampler = compiled(module)
    module.scale = torch.full((), 4.0)
    drawn = sampler.refresh().sample(4)
    assert torch.equal(drawn, sampler.sample_naive(4))
    assert torch.equal(drawn, compiled(module).sample(4))


def makes_parameter(self: Network, x: Tensor) -> Tensor:
    if not hasattr(self, "scale"):
        self.scale = nn.Parameter(torch.rand(()))
    return plain(self, x) * self.scale


REFUSED = {
    "function": (lambda: lambda x: x, ValueError, r"module must be a torch.nn.Module, got a function"),
    "partial": (lambda: functools.partial(Network()), ValueError, r"module must be a torch.nn.Module, got a partial"),
    "lazy": (
        lambda: changed(output=lambda _: nn.LazyLinear(LEVELS)),
        CompileError,
        r"'output.weight' has no shape yet",
    ),
    "meta": (lambda: Network().to("meta"), CompileError, r"'table.weight' is on device meta.*has its weights"),
    "script": (lambda: torch.jit.script(Network()), CompileError, r"'module' is a torch.jit.*pass the Python module"),
    "script part": (lambda: changed(output=torch.jit.script), CompileError, r"'output' is a torch.jit"),
    "makes a parameter": (lambda: with_forward(makes_parameter), CompileError, r"makes the parameter 'scale'.*once"),
    "tuple": (lambda: with_forward(lambda m, x: (plain(m, x),)), CompileError, r"returns a tuple.*adapter"),
    "clock": (
        lambda: with_forward(lambda m, x: plain(m, x) * (time.perf_counter_ns() % 1009)),
        CompileError,
        "reads a clock",
    ),
    "noise": (lambda: with_forward(lambda m, x: F.dropout(plain(m, x), 0.5)), CompileError, "draws random numbers"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_cannot_be_taken_is_refused_in_words(name):
    make, kind, message = REFUSED[name]
    module = make()
    with pytest.raises(kind, match=message):
        compiled(module)


def test_a_context_that_is_no_tensor_is_named():
    """Fault generation_14: a context with None."""
    with pytest.raises(ValueError, match=r"example_context\['label'\] must be a tensor \[N, \.\.\.\], got a NoneType"):
        compiled(Network(), example_context={"label": None})


def test_a_refusal_prints_nothing(capfd):
    """torch.export prints its graph before it refuses data-dependent control flow."""

    def branches(self: Network, x: Tensor) -> Tensor:
        out = plain(self, x)
        return out if bool((out.sum() > 0).item()) else -out

    with pytest.raises(CompileError, match="data-dependent"):
        compiled(with_forward(branches))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("outer", ["no_grad", "enable_grad", "inference_mode", "autocast"])
def test_the_mode_around_it_changes_nothing(outer):
    torch.manual_seed(0)
    module = Network()
    want = compiled(module).sample(4)
    with torch.autocast("cpu", torch.bfloat16) if outer == "autocast" else getattr(torch, outer)():
        sampler = compiled(module)
        drawn = sampler.sample(4)
        assert torch.equal(drawn, sampler.sample_naive(4))
        assert sampler.log_prob(drawn).dtype == torch.float32
    assert torch.equal(drawn, want)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(dtype, machine):
    torch.manual_seed(0)
    module = Network()
    want = compiled(module, machine=machine).sample(2, return_log_prob=True)
    torch.set_default_dtype(dtype)
    try:
        sampler = compiled(module, machine=machine)
        drawn = sampler.sample(2, return_log_prob=True)
        naive = sampler.sample_naive(2)
        streamed = torch.cat(list(sampler.stream(2, LENGTH, chunk=5)), -1)
        sampler.refresh()
        assert sampler.log_prob(naive).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(drawn[0], want[0])
    assert torch.equal(drawn[1], want[1])
    assert torch.equal(naive, want[0])
    assert torch.equal(streamed, want[0])


@pytest.mark.parametrize("machine", MACHINES)
def test_the_default_device_changes_nothing(machine, tmp_path):
    torch.manual_seed(0)
    module = Network()
    want = compiled(module, machine=machine).sample(2)
    with torch.device("meta"):
        sampler = compiled(module, machine=machine)
        drawn = [sampler.sample(2), sampler.sample_naive(2)]
        drawn.append(torch.cat(list(sampler.stream(2, LENGTH, chunk=5)), -1))
        drawn.append(sampler.sample(2, known=[[0] * LENGTH] * 2, known_mask=[[False] * LENGTH] * 2))
        state = sampler.refresh().advance(sampler.start(2), 3)
        state.save(tmp_path / "state")
        sampler.save(tmp_path / "sampler")
        loaded = fastgen.Sampler.load(tmp_path / "sampler", machine=machine)
        state = loaded.load_state(tmp_path / "state").fork([0, 1], same_noise=True)
        drawn.append(copy.deepcopy(loaded).advance(copy.deepcopy(state), LENGTH).levels)
        assert torch.isfinite(sampler.log_prob(drawn[0])).all()
        assert "causal" in str(sampler.explain())
    assert all(torch.equal(one, want) for one in drawn)
