from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastgen.models import create_model
from fastgen.nn import (
    MLP,
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    FlowSequential,
    Inverse,
    InvertibleConv1x1,
    MultiScale,
    Permutation,
    ResidualMLP,
    Squeeze2d,
)
from fastgen.nn.flow.flow_layer import no_log_det
from fastgen.nn.flow.invertible_checkpoint import invertible_checkpoint
from fastgen.nn.normalization.flow_batch_norm import FlowBatchNorm

CONTEXT = 3


def couplings(depth: int, features: int = 4, net: Callable[[], nn.Module] | None = None) -> list[nn.Module]:
    """Each of the depth's steps is an ActNorm, a 1x1 convolution and a coupling."""
    net = net or (lambda: MLP(features // 2, features, (16,), context_features=CONTEXT))
    layers: list[nn.Module] = []
    for i in range(depth):
        mixing = InvertibleConv1x1(features, lu=i % 2 == 0, act_norm=True)
        layers += [ActNorm(features), mixing, AffineCoupling(net(), swap=i % 2 == 1)]
    return layers


class ConvolutionalNet(nn.Module):
    """Takes no context."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(inputs, 2 * inputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def scale(channels: int) -> FlowSequential:
    return FlowSequential(
        Squeeze2d(),
        ActNorm(4 * channels),
        InvertibleConv1x1(4 * channels),
        FlowSequential(AffineCoupling(ConvolutionalNet(2 * channels))),
    )


FLOWS = {
    "couplings": (lambda: FlowSequential(*couplings(3)), (4,)),
    "nested": (lambda: FlowSequential(FlowSequential(*couplings(1)), Inverse(FlowSequential(*couplings(2)))), (4,)),
    "permutations": (lambda: FlowSequential(Permutation.reversed(4), *couplings(1), Permutation.random(4)), (4,)),
    "batch norm": (lambda: FlowSequential(FlowBatchNorm(4, affine=True), *couplings(1), FlowBatchNorm(4)), (4,)),
    "multi-scale": (lambda: MultiScale([scale(1), scale(2)], [(4, 4, 4), (8, 2, 2)]), (1, 8, 8)),
    "multi-scale in a row": (
        lambda: FlowSequential(
            ActNorm(1), MultiScale([scale(1), FlowSequential(scale(2), FlowBatchNorm(8))], [(4, 4, 4), (8, 2, 2)])
        ),
        (1, 8, 8),
    ),
}


def pair(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """A flow, and the same one checkpointed, of independent parameters."""
    torch.manual_seed(0)
    make, shape = FLOWS[name]
    plain = make().to(dtype)
    return plain, invertible_checkpoint(copy.deepcopy(plain)), shape


def gradients(flow: nn.Module, x: Tensor, context: Tensor | None, inverse: bool = False) -> list[Tensor | None]:
    """Of x, the context and all parameters, through both results."""
    x, context = x.clone().requires_grad_(), None if context is None else context.clone().requires_grad_()
    y, log_det = (flow.inverse if inverse else flow)(x, context)
    loss = (y.cos() * torch.arange(y.numel()).view(y.shape)).sum() + (log_det * torch.arange(1, len(x) + 1)).sum()
    wanted = [x, *flow.parameters()] if context is None else [x, context, *flow.parameters()]
    return [y.detach(), log_det.detach(), *torch.autograd.grad(loss, wanted, allow_unused=True)]


def data(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(6, CONTEXT, dtype=dtype, generator=generator) if len(shape) == 1 else None
    return torch.randn(6, *shape, dtype=dtype, generator=generator), context


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("name", FLOWS)
def test_values_and_gradients_are_those_of_the_plain_flow(name, inverse):
    plain, checkpointed, shape = pair(name)
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    x, context = data(shape)
    for _ in range(2):  # the first batch sets ActNorm
        start = plain(x, context)[0].detach() if inverse else x
        with torch.no_grad():
            checkpointed(x, context)
        found, expected = (gradients(flow, start, context, inverse) for flow in (checkpointed, plain))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["glow", "nice", "realnvp"])
def test_of_a_model_the_flow_can_be_replaced(name):
    model = create_model(name, preset="tiny", event_shape=(1, 8, 8)).double()
    x = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    model.log_prob(x)
    expected = torch.autograd.grad(model.log_prob(x).sum(), [*model.parameters()], allow_unused=True)
    model.flow = invertible_checkpoint(model.flow)
    found = torch.autograd.grad(model.log_prob(x).sum(), [*model.parameters()], allow_unused=True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert model.sample(2, seed=0).shape == (2, 1, 8, 8)


def test_the_first_batch_sets_act_norm_once_and_its_gradients_are_right():
    plain, checkpointed, shape = pair("couplings")
    found, expected = (gradients(flow, *data(shape)) for flow in (checkpointed, plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())


class Saved:
    """Counts the bytes that autograd keeps: what is kept, and the most at a time."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def __enter__(self) -> Saved:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(tensor, self), lambda kept: kept.tensor
        )
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hooks.__exit__(*exception)


class _Kept:
    def __init__(self, tensor: Tensor, count: Saved) -> None:
        self.tensor, self.count, self.bytes = tensor, count, tensor.nbytes
        count.now += self.bytes
        count.peak = max(count.peak, count.now)

    def __del__(self) -> None:
        self.count.now -= self.bytes


def test_memory_is_flat_in_depth():
    n, features = 16, 8

    def saved(depth: int) -> tuple[int, int]:
        torch.manual_seed(0)
        nets = [MLP(features // 2, features // 2, (32,)) for _ in range(depth)]
        steps = [FlowSequential(ActNorm(features), AdditiveCoupling(net)) for net in nets]
        flow = invertible_checkpoint(steps)
        with torch.no_grad():
            flow(torch.randn(n, features))
        with Saved() as count:
            z, log_det = flow(torch.randn(n, features))
            kept = count.now
            (z.sum() + log_det.sum()).backward()
        return kept, count.peak

    (kept, peak), (deep_kept, deep_peak) = saved(4), saved(32)
    sums = 4 * n * 2  # of a step: a float32 for each sample and layer
    assert kept == 4 * sums - 4 * n + 2 * 4 * n * features  # none of the first layer, but input and output
    assert deep_kept - kept == 28 * sums
    assert deep_peak - peak == 28 * sums


def test_dropout_is_drawn_again_as_it_was():
    torch.manual_seed(0)
    plain = FlowSequential(*couplings(3, net=lambda: ResidualMLP(2, 4, 16, 1, dropout=0.5, context_features=CONTEXT)))
    plain = plain.double()
    checkpointed = invertible_checkpoint(copy.deepcopy(plain))
    results = []
    for flow in (plain, checkpointed):
        torch.manual_seed(5)
        results.append([*gradients(flow, *data((4,))), torch.rand(3)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert (results[0][0] != gradients(plain, *data((4,)))[0]).any()


class NormalizedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_batch_norm_sees_the_batch_once():
    torch.manual_seed(0)
    plain = FlowSequential(*(AffineCoupling(NormalizedNet(), swap=i == 1) for i in range(3))).double()
    checkpointed = invertible_checkpoint(copy.deepcopy(plain))
    x = data((4,))[0]
    found, expected = (gradients(flow, x, None) for flow in (checkpointed, plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())
    assert checkpointed.state_dict()["layers.0.net.layers.1.num_batches_tracked"] == 1
    plain, checkpointed, shape = pair("batch norm")
    for flow in (plain, checkpointed):
        gradients(flow, *data(shape))
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())
    assert checkpointed.state_dict()["layers.0.batches"] == 1


class WrongInverse(nn.Module):
    def __init__(self, wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, no_log_det(x)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.wrong(z / 2), no_log_det(z)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.flip(1),
        lambda x: -x,
        lambda x: x + 1e-6,
        lambda x: torch.cat((x[1:], x[:1])),
        lambda x: x * float("nan"),
    ],
)
def test_a_layer_that_its_inverse_does_not_undo_is_named(wrong):
    layers = [*couplings(1), FlowSequential(WrongInverse(wrong)), *couplings(1)]
    flow = invertible_checkpoint(FlowSequential(*layers).double())
    z, _ = flow(*data((4,)))
    with pytest.raises(RuntimeError, match=r"layers\.3\.layers\.0 \(WrongInverse\): its input, rebuilt"):
        z.sum().backward()


@pytest.mark.parametrize("error", [1e-3, 1e-5])
def test_the_tolerance_is_of_the_error_relative_to_the_scale(error):
    noise = error * torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 1000, dtype=torch.float64, requires_grad=True)
    layer = WrongInverse(lambda x: x + noise)
    invertible_checkpoint([Permutation.reversed(1000), layer], tolerance=4 * error)(x)[0].sum().backward()
    with pytest.raises(RuntimeError, match="tolerance"):
        invertible_checkpoint([Permutation.reversed(1000), layer], tolerance=error / 1000)(x)[0].sum().backward()


def test_parameters_changed_before_the_backward_pass_are_refused():
    flow = invertible_checkpoint(FlowSequential(*couplings(1)).double())
    z, _ = flow(*data((4,)))
    with torch.no_grad():
        next(flow.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="a parameter was changed"):
        z.sum().backward()


def test_what_needs_no_gradient_gets_none():
    plain, checkpointed, shape = pair("couplings")
    x, context = data(shape)
    for flow in (plain, checkpointed):
        for parameter in flow.layers[0].parameters():
            parameter.requires_grad_(False)
        z, log_det = flow(x, context)
        (z.square().sum() + log_det.sum()).backward()
    grads = [[parameter.grad for parameter in flow.parameters()] for flow in (checkpointed, plain)]
    assert grads[0][0] is None
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert not checkpointed(x, context)[0].requires_grad


def test_float32_and_autocast_err_no_more_than_the_plain_flow_does():
    exact, *_ = pair("couplings")
    x, context = data((4,))
    exact(x, context)
    for precision in (torch.float32, torch.bfloat16):
        plain = copy.deepcopy(exact).float()
        flows = invertible_checkpoint(copy.deepcopy(plain)), plain
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found, expected = (gradients(flow, x.float(), context.float()) for flow in flows)
        truth = gradients(exact, x, context)
        assert torch.equal(found[0], expected[0])
        assert found[1].dtype == torch.float32
        errors = [sum((a - b).square().sum() for a, b in zip(part, truth, strict=True)) for part in (found, expected)]
        assert errors[0] <= 4 * errors[1]


def test_compiles_without_a_break_and_takes_functional_transforms():
    torch.manual_seed(0)
    flow = FlowSequential(AdditiveCoupling(MLP(2, 2, (8,)))).double()
    checkpointed, x = invertible_checkpoint(flow), data((4,))[0]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: checkpointed(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), flow(x)[0])
    found, expected = (torch.func.grad(lambda x: layers(x)[0].sum())(x) for layers in (checkpointed, flow))  # noqa: B023
    torch.testing.assert_close(found, expected)


def test_a_second_derivative_is_refused():
    flow = invertible_checkpoint(FlowSequential(*couplings(1)).double())
    x, context = data((4,))
    z, _ = flow(x.requires_grad_(), context)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(n):
    plain, checkpointed, shape = pair("couplings")
    x, context = data(shape)
    plain(x, context), checkpointed(x, context)
    found, expected = (gradients(flow, x[:n], context[:n]) for flow in (checkpointed, plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_layers_it_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(invertible_checkpoint([])(x)[0], x)


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(
        TypeError, match="flow must be a FlowSequential, a MultiScale or a list of layers, got a ActNorm"
    ):
        invertible_checkpoint(ActNorm(2))
    with pytest.raises(TypeError, match="must have a method inverse, got a Linear"):
        invertible_checkpoint([nn.Linear(2, 2)])
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="tolerance must be greater than 0, got"):
            invertible_checkpoint([], tolerance=tolerance)
    assert not invertible_checkpoint(FlowSequential(ActNorm(2)).eval()).training
