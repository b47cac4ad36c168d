from __future__ import annotations

import pytest
import torch

from fastgen.nn import MADE, MaskedMLP, ResMADE

ORDERS = ["natural", "reversed", [2, 0, 4, 1, 3]]


@pytest.mark.parametrize("hidden_degrees", ["sequential", "random"])
@pytest.mark.parametrize("hidden", [(16,), (24, 17, 31)], ids=str)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_outputs_depend_on_exactly_the_features_before(order, hidden, hidden_degrees):
    torch.manual_seed(0)
    made = MADE(5, hidden, activation="elu", order=order, hidden_degrees=hidden_degrees).double()
    places = {"natural": [0, 1, 2, 3, 4], "reversed": [4, 3, 2, 1, 0]}.get(
        order if isinstance(order, str) else "", order
    )
    x = torch.randn(5, dtype=torch.float64)
    for part in (0, 1):
        jacobian = torch.autograd.functional.jacobian(lambda x, part=part: made(x)[part], x)
        ordered = jacobian[places][:, places]
        assert (ordered.triu() == 0).all()
        if hidden_degrees == "sequential":
            assert (ordered[torch.ones(5, 5).tril(-1) == 1] != 0).all()


@pytest.mark.parametrize("hidden_degrees", ["sequential", "random"])
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("network", [MaskedMLP, ResMADE])
def test_every_output_of_a_feature_depends_on_exactly_the_features_before(network, order, hidden_degrees):
    torch.manual_seed(0)
    hidden = {"width": 40} if network is ResMADE else {"hidden": (40, 33)}
    made = network(5, 3, **hidden, activation="elu", order=order, hidden_degrees=hidden_degrees).double()
    before = made.degrees[0][:, None] > made.degrees[0]
    jacobian = torch.autograd.functional.jacobian(made, torch.randn(5, dtype=torch.float64))
    assert jacobian.shape == (5, 3, 5)
    for of_output in jacobian.unbind(1):
        assert torch.equal(of_output != 0, before)


@pytest.mark.parametrize("blocks", [0, 2])
def test_the_context_goes_into_the_first_layer_and_every_block(blocks):
    made = ResMADE(3, 2, width=8, blocks=blocks, context_features=4)
    assert made.context.out_features == 8 * (1 + blocks)
    made(torch.randn(6, 3), torch.randn(6, 4)).square().sum().backward()
    assert (made.context.weight.grad.unflatten(0, (-1, 8)).abs().amax((1, 2)) > 0).all()


def test_dropout_is_of_training_alone():
    made, x = ResMADE(3, 2, width=8, dropout=0.5), torch.randn(6, 3)
    assert not torch.equal(made(x), made(x))
    made.eval()
    assert torch.equal(made(x), made(x))


def test_one_feature_depends_on_the_context_alone():
    made = MADE(1, (7,), context_features=3, activation="tanh")
    x, context = torch.randn(4, 1), torch.randn(4, 3)
    for mine, theirs in zip(made(x, context), made(x + 1, context), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(made(x, context)[0], made(x, context + 1)[0])


def test_degrees_are_saved():
    torch.manual_seed(0)
    first, second = (MADE(4, (9, 8), hidden_degrees="random", order=order) for order in ("natural", "reversed"))
    second.load_state_dict(first.state_dict())
    x = torch.randn(3, 4)
    for mine, theirs in zip(first(x), second(x), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(first.degrees, second.degrees, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"hidden": ()}, r"hidden must have the width of one layer at least, each 1 or more, got \(\)"),
        ({"activation": "gelu"}, "activation must be one of 'relu', 'tanh', 'sigmoid', 'elu', got 'gelu'"),
        ({"order": "random"}, "order must be 'natural', 'reversed' or a permutation, got 'random'"),
        ({"order": [0, 0, 1]}, r"order must have every number below 3 once, got \[0, 0, 1\]"),
        ({"hidden_degrees": "cyclic"}, "hidden_degrees must be 'sequential' or 'random', got 'cyclic'"),
    ],
)
def test_wrong_arguments_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        MADE(**{"features": 3, "hidden": (4,)} | changed)


@pytest.mark.parametrize("network", [MaskedMLP, ResMADE])
def test_a_feature_has_one_output_at_least(network):
    with pytest.raises(ValueError, match="outputs must be at least 1, got 0"):
        network(3, 0)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="x must have shape"):
        MADE(3, (4,))(torch.zeros(2, 4))
    with pytest.raises(
        ValueError, match=r"context must be None for context_features=None, got a tensor of shape \(2, 1\)"
    ):
        MADE(3, (4,))(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"context must be \[\.\.\., 2\] .*, got None"):
        MADE(3, (4,), context_features=2)(torch.zeros(2, 3))
