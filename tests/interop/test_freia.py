"""FrEIA under ``fastgen.accelerate("FrEIA")``: the same functions, on kernels, until restored."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from tests.interop.parity import attributes, check_parity, count_calls, differing, results, shaken
from tests.interop.peers import import_peer

Ff = import_peer("FrEIA.framework")
Fm = import_peer("FrEIA.modules")

DIRECTIONS = {False: "forward", True: "reverse"}
each_direction = pytest.mark.parametrize("rev", DIRECTIONS, ids=DIRECTIONS.values())


class Conditioned(nn.Module):
    """A block of FrEIA as a function of its input alone."""

    def __init__(self, block: nn.Module, *conditions: Tensor) -> None:
        super().__init__()
        self.block = block
        for i, condition in enumerate(conditions):
            self.register_buffer(f"condition{i}", condition)

    def forward(self, x: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        (y,), log_det = self.block([x], list(self.buffers(recurse=False)), rev=rev)
        return y, log_det


def call(rev: bool):
    return lambda layer, x: layer(x, rev)


def made(kind: type, rng: random.Random, **options) -> tuple[nn.Module, Tensor]:
    """A block of random size, rank and number of conditions, and an input."""
    rank = options.pop("rank", rng.randint(0, 2))
    shape = [rng.randint(1, 4) for _ in range(rank)]
    conditions = rng.randint(1 if kind is Fm.ConditionalAffineTransform else 0, 2)
    channels, width = rng.randint(2, 7), rng.randint(1, 3)
    if kind is Fm.AllInOneBlock:
        conditions = min(conditions, 1)
    convolution = (nn.Linear, nn.Conv1d, nn.Conv2d)[rank]
    kernel = (1,) if rank else ()
    block = kind(
        [(channels, *shape)],
        dims_c=[(width, *shape)] * conditions,
        subnet_constructor=lambda inputs, outputs: nn.Sequential(
            convolution(inputs, 8, *kernel), nn.Tanh(), convolution(8, outputs, *kernel)
        ),
        **options,
    )
    given = [torch.randn(5, width, *shape) for _ in range(conditions)]
    return Conditioned(block, *given), torch.randn(5, channels, *shape)


def all_in_one(rng: random.Random, **options) -> tuple[nn.Module, Tensor]:
    block, x = made(
        Fm.AllInOneBlock,
        rng,
        affine_clamping=rng.choice([1, 2.0, 3.5]),
        global_affine_type=rng.choice(["SIGMOID", "SOFTPLUS", "EXP"]),
        reverse_permutation=rng.random() < 0.5,
        **options,
    )
    return block, x


def clamped(kind: type):
    def make(rng: random.Random) -> tuple[nn.Module, Tensor]:
        clamp_activation = rng.choice(["ATAN", "TANH", "SIGMOID", F.softsign])
        return made(kind, rng, clamp=rng.choice([1, 2.0]), clamp_activation=clamp_activation, split_len=0.4)

    return make


KINDS = {
    "AllInOneBlock-hard": lambda rng: all_in_one(rng),
    "AllInOneBlock-soft": lambda rng: all_in_one(rng, permute_soft=True),
    "AllInOneBlock-householder": lambda rng: all_in_one(rng, permute_soft=True, learned_householder_permutation=2),
    "AllInOneBlock-gin": lambda rng: all_in_one(rng, gin_block=True),
    "RNVPCouplingBlock": clamped(Fm.RNVPCouplingBlock),
    "GLOWCouplingBlock": clamped(Fm.GLOWCouplingBlock),
    "AffineCouplingOneSided": clamped(Fm.AffineCouplingOneSided),
    "ConditionalAffineTransform": clamped(Fm.ConditionalAffineTransform),
}
AFFINE = [kind for kind in KINDS if kind != "AllInOneBlock-gin"]


def cases(kind: str, count: int = 5) -> list[tuple[nn.Module, Tensor]]:
    rng = random.Random(kind)
    torch.manual_seed(rng.randint(0, 10**6))
    return [(shaken(layer), x) for layer, x in (KINDS[kind](rng) for _ in range(count))]


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch):
    monkeypatch.setattr("fastgen.interop.worthwhile.ALWAYS", True)


@pytest.fixture
def calls(monkeypatch):
    """Names of the ops that the acceleration has called."""
    return count_calls(monkeypatch, "fastgen.interop.freia", ["affine_coupling"])


@each_direction
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_as_exact_as_float32_allows(kind, rev):
    check_parity("FrEIA", cases(kind), call(rev))


@pytest.mark.needs_extension
@each_direction
@pytest.mark.parametrize("kind", AFFINE)
def test_objects_that_exist_run_on_the_kernel_until_restored(kind, rev, calls):
    given = cases(kind, 4)
    with fastgen.accelerated("FrEIA"):
        for layer, x in given:
            layer(x, rev)
    assert len(calls) == len(given) * (2 if kind in ("RNVPCouplingBlock", "GLOWCouplingBlock") else 1)
    calls.clear()
    for layer, x in given:
        layer(x, rev)
    assert not calls


@each_direction
@pytest.mark.parametrize("kind", AFFINE)
def test_float64_does_not_run_on_the_kernel(kind, rev, calls):
    for layer, x in cases(kind, 2):
        layer, x = layer.double(), x.double()
        expected = results(layer, x, call(rev))
        with fastgen.accelerated("FrEIA"):
            found = results(layer, x, call(rev))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert not calls


@pytest.mark.parametrize("kind", AFFINE)
def test_function_transforms_do_not_run_on_the_kernel(kind, calls):
    ((layer, x),) = cases(kind, 1)
    layer.requires_grad_(False)

    def values(x):
        return layer(x, False)[0]

    expected = torch.func.jvp(values, (x,), (torch.ones_like(x),))
    with fastgen.accelerated("FrEIA"):
        found = torch.func.jvp(values, (x,), (torch.ones_like(x),))
    assert not calls
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("matrix", ["double", "nearly", "twice a column"])
@each_direction
def test_a_matrix_that_is_no_permutation_is_multiplied(matrix, rev):
    """A fixed matrix may be loaded in place of the permutation that the block was made with."""
    block, x = made(Fm.AllInOneBlock, random.Random(0), rank=1, permute_soft=True)
    weight = torch.eye(x.shape[1])[torch.randperm(x.shape[1])]
    if matrix == "double":
        weight *= 2
    elif matrix == "nearly":
        weight[0, :2] = torch.tensor([0.5, 0.25])
    else:
        weight[0] = weight[1]
    for parameter in (block.block.w_perm, block.block.w_perm_inv):
        parameter.data = weight.view_as(parameter)
    expected = block(x, rev)
    with fastgen.accelerated("FrEIA"):
        found = block(x, rev)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", [Fm.GLOWCouplingBlock, Fm.RNVPCouplingBlock])
def test_a_network_runs_once_even_if_the_kernel_does_not_take_its_output(kind, calls):
    runs = []

    class OneRow(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.outputs = outputs

        def forward(self, x):
            runs.append(x)
            return torch.ones(1, self.outputs)

    block, x = kind([(4,)], subnet_constructor=OneRow), torch.randn(3, 4)
    (expected,), _ = block([x])
    count = len(runs)
    with fastgen.accelerated("FrEIA"):
        (found,), _ = block([x])
    assert len(runs) == 2 * count
    assert not calls
    assert torch.equal(found, expected)


@pytest.mark.parametrize("split_len", [0, 4])
def test_a_half_without_channels_is_left_to_freia(split_len):
    block, x = Fm.GLOWCouplingBlock([(4,)], subnet_constructor=Constant, split_len=split_len), torch.randn(3, 4)
    expected = block([x])
    with fastgen.accelerated("FrEIA"):
        found = block([x])
    torch.testing.assert_close(found, expected)


class Constant(nn.Module):
    """A network that takes, and gives, any number of channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x), self.outputs)


@each_direction
def test_an_input_of_another_width_is_an_error_of_freia(rev):
    block, x = made(Fm.AllInOneBlock, random.Random(1), rank=0)
    wrong = torch.randn(5, x.shape[1] + 1)
    with pytest.raises(RuntimeError) as theirs:
        block(wrong, rev)
    with fastgen.accelerated("FrEIA"), pytest.raises(RuntimeError) as ours:
        block(wrong, rev)
    assert str(ours.value) == str(theirs.value)


def test_a_conditional_block_without_conditions_is_an_error_of_freia():
    block, x = made(Fm.ConditionalAffineTransform, random.Random(1), rank=0)
    with fastgen.accelerated("FrEIA"), pytest.raises(IndexError):
        block.block([x])


def test_another_source_is_refused_and_nothing_is_replaced(monkeypatch):
    def affine(self, x, a, rev=False):
        return x, 0

    monkeypatch.setattr(Fm.AllInOneBlock, "_affine", affine)
    before = attributes("FrEIA")
    with pytest.raises(
        ValueError,
        match=r"the installed library must be FrEIA.*, got one whose AllInOneBlock\._affine has another source",
    ):
        fastgen.accelerate("FrEIA")
    assert differing(before, attributes("FrEIA")) == []


def test_a_whole_network_trains_to_the_same_gradients():
    torch.manual_seed(0)
    net = Ff.SequenceINN(6)
    for _ in range(3):
        net.append(Fm.AllInOneBlock, subnet_constructor=lambda i, o: nn.Sequential(nn.Linear(i, 8), nn.Linear(8, o)))
    x = torch.randn(20, 6)
    check_parity("FrEIA", [(shaken(net, 0.1), x)], lambda net, x: net(x))
    check_parity("FrEIA", [(net, x)], lambda net, x: net(x, rev=True))


@each_direction
def test_a_small_block_on_the_cpu_is_left_to_freia(rev, calls, monkeypatch):
    monkeypatch.setattr("fastgen.interop.worthwhile.ALWAYS", False)
    block, x = made(Fm.AllInOneBlock, random.Random(0), rank=1)
    expected = block(x, rev)
    with fastgen.accelerated("FrEIA"):
        found = block(x, rev)
    assert not calls
    assert all(map(torch.equal, found, expected))
