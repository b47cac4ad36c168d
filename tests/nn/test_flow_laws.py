"""The laws of every flow layer, on the table of layers and their variants: it is invertible, and what it says it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastgen.nn
from fastgen.nn import FlowLayer
from tests.nn.flow_layer_variants import VARIANTS
from tests.nn.layer_cases import CASES, Case

CLASSES = {name: getattr(fastgen.nn, name) for name in fastgen.nn.__all__ if inspect.isclass(getattr(fastgen.nn, name))}
GIVEN_PARAMETERS = {"DeepDenseSigmoidal", "DeepSigmoidal", "MonotoneIntegral", "MonotoneTransform", "SOSPolynomial"}
GIVEN_PARAMETERS |= {"SplineTransform"}
"""Elementwise maps that have an inverse, and are no flow layers: each call gives their parameters."""

LAYERS: dict[str, Case] = {n: c for n, c in CASES.items() if isinstance(c.make(), FlowLayer)} | VARIANTS
EXACT = [name for name, case in LAYERS.items() if case.make().estimate is None]
SEEDED = [name for name, case in LAYERS.items() if case.seeded]
CONDITIONED = [name for name, case in LAYERS.items() if len(case.shapes) > 1]


ITERATED = {name for name in LAYERS if name.startswith(("ContinuousFlow", "InvertibleResidual"))}
"""Layers whose inverse is found up to a tolerance, or is that of a solver's steps."""


def precision(name: str) -> dict[str, float]:
    allowed = 1e-4 if name in ITERATED else 1e-9
    return {"rtol": allowed, "atol": allowed}


def layer_and_inputs(name: str, n: int = 3) -> tuple[FlowLayer, tuple[Tensor, ...], dict[str, int]]:
    case = LAYERS[name]
    return case.layer(torch.float64), case.inputs(n, torch.float64), case.options


def parameters_and_buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (*layer.named_parameters(), *layer.named_buffers())}


def changed(before: dict[str, Tensor], layer: nn.Module) -> set[str]:
    return {name for name, value in parameters_and_buffers(layer).items() if not torch.equal(value, before[name])}


def test_every_layer_with_an_inverse_is_a_flow_layer():
    invertible = {name for name, kind in CLASSES.items() if issubclass(kind, nn.Module) and hasattr(kind, "inverse")}
    layers = {name for name, kind in CLASSES.items() if issubclass(kind, FlowLayer)}
    assert invertible - layers == GIVEN_PARAMETERS
    assert layers <= invertible


@pytest.mark.parametrize("name", [name for name, kind in CLASSES.items() if issubclass(kind, FlowLayer)])
def test_a_layer_takes_what_it_says_in_both_directions(name):
    kind = CLASSES[name]
    says = {name for name, taken in (("context", kind.takes_context), ("seed", kind.takes_seed)) if taken}
    for method in (kind.forward, kind.inverse):
        if kind is not FlowLayer:
            assert says == {"context", "seed"} & set(inspect.signature(method).parameters)


@pytest.mark.parametrize("name", LAYERS)
def test_each_direction_undoes_the_other_and_the_log_dets_cancel(name):
    layer, (x, *others), options = layer_and_inputs(name)
    y, log_det = layer(x, *others, **options)
    back, back_log_det = layer.inverse(y, *others, **options)
    assert log_det.shape == back_log_det.shape == (3,)
    torch.testing.assert_close(back, x, **precision(name))
    torch.testing.assert_close(back_log_det, -log_det, **precision(name))
    torch.testing.assert_close(layer(back, *others, **options)[0], y, **precision(name))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("n", [0, 1])
def test_batches_of_none_and_one_are_rows_of_a_batch(name, n):
    layer, inputs, options = layer_and_inputs(name)
    y, _ = layer(*inputs, **options)
    for function, arguments in ((layer, inputs), (layer.inverse, (y, *inputs[1:]))):
        whole = function(*arguments, **options)
        part = function(*(value[:n] for value in arguments), **options)
        assert [value.shape for value in part] == [value[:n].shape for value in whole]
        torch.testing.assert_close(part[0], whole[0][:n], **precision(name))
        if layer.estimate is None:
            torch.testing.assert_close(part[1], whole[1][:n], **precision(name))


@pytest.mark.parametrize("name", EXACT)
def test_the_log_det_is_that_of_the_jacobian_and_samples_do_not_mix(name):
    layer, (x, *others), options = layer_and_inputs(name)
    size = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, *others, **options)[0].flatten(1), x).flatten(3)
    own = torch.stack([jacobian[i, :, i].reshape(size, size) for i in range(3)])
    torch.testing.assert_close(layer(x, *others, **options)[1], own.slogdet()[1])
    assert all((jacobian[i, :, j] == 0).all() for i in range(3) for j in range(3) if i != j)


@pytest.mark.parametrize("name", CONDITIONED)
@pytest.mark.parametrize("inverse", [False, True])
def test_a_context_reaches_its_own_sample_alone(name, inverse):
    layer, (x, context), options = layer_and_inputs(name)
    function: Callable = layer.inverse if inverse else layer
    other = context.clone()
    other[1] += 1
    before, after = function(x, context, **options)[0], function(x, other, **options)[0]
    assert (before != after).flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_decides_the_log_det_in_both_directions(name):
    layer, (x,), _ = layer_and_inputs(name)
    y, log_det = layer(x, seed=3)
    assert torch.equal(layer(x, seed=3)[1], log_det)
    assert torch.equal(layer(x, seed=4)[0], y)
    other = layer(x, seed=4)[1]
    assert torch.equal(other, log_det) == (layer.estimate is None)
    torch.testing.assert_close(layer.inverse(y, seed=4)[1], -other, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    drawn, another = layer(x)[1], layer(x)[1]
    assert torch.equal(drawn, another) == (layer.estimate is None)
    torch.manual_seed(0)
    assert torch.equal(layer(x)[1], drawn)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in SEEDED])
def test_a_layer_without_a_seed_draws_nothing(name):
    layer, inputs, _ = layer_and_inputs(name)
    before = torch.get_rng_state()
    layer.inverse(layer(*inputs)[0], *inputs[1:])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_first_batch_sets_what_the_layer_says_and_no_later_one_does(name):
    case = LAYERS[name]
    layer = case.make().eval()
    inputs, later = case.inputs(8), case.inputs(8, seed=2)
    before = parameters_and_buffers(layer)
    y, _ = layer(*inputs, **case.options)
    layer.train().inverse(y, *inputs[1:], **case.options)
    assert changed(before, layer) == set()
    layer(*inputs, **case.options)
    parts = [part for part in layer.modules() if isinstance(part, FlowLayer)]
    by_batch = any(part.normalizes_by_batch for part in parts)
    assert bool(changed(before, layer)) == (by_batch or any(part.set_by_first_batch for part in parts))
    first = parameters_and_buffers(layer)
    layer(*later, **case.options)
    assert bool(changed(first, layer)) == by_batch


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_in_training_mode_too_the_inverse_undoes_a_later_batch_as_the_layer_says(name):
    case = LAYERS[name]
    layer = case.layer(torch.float64).train()
    x, *others = case.inputs(4, torch.float64, seed=2)
    statistics = layer.batch_statistics(x)
    assert bool(statistics) == layer.normalizes_by_batch
    y, _ = layer(x, *others, **case.options)
    for buffer, value in statistics.items():
        layer.get_buffer(buffer).copy_(value)
    torch.testing.assert_close(layer.inverse(y, *others, **case.options)[0], x, rtol=1e-4, atol=1e-4)
