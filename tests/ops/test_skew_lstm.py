from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.ops import skew_lstm
from fastgen.reference.skew_lstm import CASES

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]


def given(name: str, dtype: torch.dtype = torch.float64) -> dict:
    return {k: v.to(dtype) for k, v in CASES[name](torch.Generator().manual_seed(0)).items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_further_steps_begin_with_the_state_that_the_first_ended_with(name, backend):
    arguments = given(name)
    gates, weight = arguments.pop("gates"), arguments.pop("weight")
    with fastgen.backend(backend):
        whole, last = skew_lstm(gates, weight, **arguments)
        first, c = skew_lstm(gates[:, :, :1], weight, **arguments)
        if gates.shape[2] > 1:
            rest, c = skew_lstm(gates[:, :, 1:], weight, first[:, :, -1], c)
            first = torch.cat([first, rest], 2)
    assert torch.equal(first, whole)
    assert torch.equal(c, last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_one_tap_every_position_is_pytorchs_lstm(backend):
    n, hidden, steps, positions = 2, 5, 7, 3
    gates = torch.randn(n, 4 * hidden, steps, positions, dtype=torch.float64)
    weight = torch.randn(4 * hidden, hidden, 1, dtype=torch.float64)
    peer = torch.nn.LSTM(4 * hidden, hidden, bias=False, batch_first=True).double()
    order = torch.arange(4 * hidden).reshape(4, hidden)[[0, 1, 3, 2]].flatten()  # PyTorch's is i, f, g, o
    with torch.no_grad():
        peer.weight_ih_l0.copy_(torch.eye(4 * hidden)[order])
        peer.weight_hh_l0.copy_(weight[order, :, 0])
        wanted, (_, wanted_c) = peer(gates.permute(0, 3, 2, 1).reshape(n * positions, steps, 4 * hidden))
    with fastgen.backend(backend):
        h, c = skew_lstm(gates, weight)
    torch.testing.assert_close(h, wanted.reshape(n, positions, steps, hidden).permute(0, 3, 2, 1))
    torch.testing.assert_close(c, wanted_c.reshape(n, positions, hidden).transpose(1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
def test_an_output_depends_on_the_taps_of_the_steps_before(taps, backend):
    steps, positions = 3, 7
    gates, weight = torch.randn(1, 8, steps, positions), torch.randn(8, 2, taps)

    def last(gates: torch.Tensor) -> torch.Tensor:
        return skew_lstm(gates, weight)[0][0].abs().sum((0, 1))

    with fastgen.backend(backend):
        found = torch.autograd.functional.jacobian(last, gates)[:, 0].abs().sum(1) != 0
    for position in range(positions):
        for step in range(steps):
            ago = steps - 1 - step
            low, high = position - ago * (taps // 2), position + ago * (taps - 1 - taps // 2)
            reach = torch.arange(positions)
            assert torch.equal(found[position, step], (reach >= low) & (reach <= high))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_saturated_gates_are_finite_and_have_finite_gradients(size, backend):
    gates = size * torch.randn(2, 12, 4, 19)
    weight = torch.randn(12, 3, 3)
    gates.requires_grad_()
    weight.requires_grad_()
    with fastgen.backend(backend):
        h, c = skew_lstm(gates, weight)
        gradients = torch.autograd.grad(h.sum() + c.sum(), (gates, weight))
    assert (h.abs() <= 1).all()
    assert (c.abs() <= gates.shape[2]).all()
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.needs_extension
@pytest.mark.parametrize("name", CASES)
def test_samples_do_not_depend_on_their_neighbours_in_the_batch(name):
    arguments = given(name, torch.float32)
    whole = skew_lstm(**arguments)
    for n in range(min(2, len(whole[0]))):
        alone = skew_lstm(**{k: v if k == "weight" else v[n : n + 1] for k, v in arguments.items()})
        assert all(torch.equal(a[0], w[n]) for a, w in zip(alone, whole, strict=True))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"gates": torch.zeros(1, 8, 2, 3, dtype=torch.int64)}, TypeError, "gates must be floating point"),
        ({"gates": torch.zeros(8, 2, 3)}, ValueError, r"gates must have shape .*, got \(8, 2, 3\)"),
        ({"gates": torch.zeros(1, 6, 2, 3)}, ValueError, "gates must have shape"),
        ({"gates": torch.zeros(1, 8, 0, 3)}, ValueError, "gates must have shape"),
        ({"weight": torch.zeros(8, 3, 3)}, ValueError, r"weight must have shape .*\(8, 2, k\)"),
        ({"weight": torch.zeros(8, 2, 0)}, ValueError, "weight must have shape"),
        ({"h0": torch.zeros(1, 2, 4)}, ValueError, r"h0 must have shape .*\(1, 2, 3\)"),
        ({"c0": torch.zeros(2, 2, 3)}, ValueError, "c0 must have shape"),
        ({"c0": torch.zeros(1, 2, 3, dtype=torch.bool)}, TypeError, "c0 must be floating point"),
    ],
)
def test_wrong_arguments_are_named(changed, error, words):
    with pytest.raises(error, match=words):
        skew_lstm(**{"gates": torch.zeros(1, 8, 2, 3), "weight": torch.zeros(8, 2, 3)} | changed)
