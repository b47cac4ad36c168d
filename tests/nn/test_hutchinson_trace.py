from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgen.nn import ConvNetField, HutchinsonTrace, MLPField


class Plain(nn.Module):
    """A field that fastgen knows nothing about."""

    def __init__(self, field: MLPField) -> None:
        super().__init__()
        self.inner = field

    def forward(self, x, t=None, context=None):
        return self.inner(x, t, context)


@pytest.mark.parametrize("context_features", [None, 2])
@pytest.mark.parametrize("time", ["none", "concat", "concat-squash"])
@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hutch++", "exact"])
def test_an_mlp_field_and_the_same_as_a_callable_agree(kind, time, context_features):
    field = MLPField((4, 6, 5, 6, 4), "softplus", time, context_features).double()
    inputs = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True), *field.parameters()]
    context = torch.randn(5, 2, dtype=torch.float64, requires_grad=True) if context_features else None
    inputs += [context] if context_features else []
    t = None if time == "none" else 0.7
    layers = [HutchinsonTrace(f, probes=3, kind=kind) for f in (field, Plain(field))]
    found = [layer(inputs[0], t, context, seed=2, offset=9) for layer in layers]
    torch.testing.assert_close(*found)
    sums = [y.square().sum() + trace.square().sum() for y, trace in found]
    torch.testing.assert_close(*(torch.autograd.grad(s, inputs) for s in sums))


@pytest.mark.parametrize("time", ["concat", "concat-squash"])
@pytest.mark.parametrize("images", [False, True], ids=["dense", "images"])
def test_a_field_with_time_and_context_compiles_without_a_graph_break(images, time):
    net = (ConvNetField if images else MLPField)((2, 3, 2), time=time, context_features=2)
    layer, x = HutchinsonTrace(net), torch.randn(4, 2, *(3, 3) * images)
    t, context, noise = torch.tensor(0.3), torch.randn(4, 2, requires_grad=True), torch.randn(1, *x.shape)

    def total(x, t, context, noise):
        y, trace = layer(x, t, context, noise=noise)
        return y.square().sum() + trace.square().sum()

    found = []
    for function in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = function(x, t, context, noise)
        found.append([value.detach(), *torch.autograd.grad(value, [context, *net.parameters()])])
    torch.testing.assert_close(*found)


def test_a_solve_by_small_steps_changes_the_density_as_it_should():
    """Through x' = tanh-network the log-determinant of the flow is the integral of the exact trace."""
    field = MLPField((2, 8, 2), time="concat").double()
    layer, steps = HutchinsonTrace(field, kind="closed-form"), 200

    def solve(x):
        log_det = torch.zeros(len(x), dtype=x.dtype)
        for i in range(steps):  # midpoint rule
            y, _ = layer(x, i / steps)
            y, trace = layer(x + y / (2 * steps), (i + 0.5) / steps)
            x, log_det = x + y / steps, log_det + trace / steps
        return x, log_det

    start = torch.randn(1, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: solve(x)[0][0], start)[:, 0]
    found, wanted = solve(start)[1], torch.linalg.slogdet(jacobian).logabsdet[None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1.0 / steps**2)


def test_the_same_seed_gives_the_same_trace():
    layer, x = HutchinsonTrace(MLPField((3, 4, 3)), probes=2), torch.randn(5, 3)
    first, again, other = (layer(x, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_can_be_given():
    layer, x, noise = HutchinsonTrace(MLPField((3, 4, 3)), probes=2), torch.randn(5, 3), torch.randn(2, 1, 3)
    torch.testing.assert_close(layer(x, noise=noise), layer(x, noise=noise.expand(2, 5, 3)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"probes": 0}, "probes must be an integer of at least 1, got 0"),
        ({"kind": "trace"}, "kind must be one of.*, got 'trace'"),
    ],
)
def test_wrong_arguments_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        HutchinsonTrace(MLPField((3, 4, 3)), **given)
