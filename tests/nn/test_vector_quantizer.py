from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fastgen.nn import VectorQuantizer


def test_values_are_the_nearest_codes_and_gradients_go_straight_through():
    quantizer = VectorQuantizer(7, 3).eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    out = quantizer(z)
    distances = (z.detach().movedim(1, -1)[..., None, :] - quantizer.codebook).square().sum(-1)
    assert torch.equal(out.codes, distances.argmin(-1))
    torch.testing.assert_close(out.values, quantizer.lookup(out.codes))
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((out.values * weights).sum(), z)
    assert torch.equal(gradient, weights)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_loss_is_the_paper_s(decay):
    quantizer = VectorQuantizer(5, 2, commitment=0.3, decay=decay).double().eval()
    z = torch.randn(11, 2, dtype=torch.float64, requires_grad=True)
    out = quantizer(z)
    nearest = quantizer.codebook[out.codes]
    commitment = 0.3 * (z - nearest.detach()).square().mean()
    wanted = commitment if decay else commitment + (z.detach() - nearest).square().mean()
    torch.testing.assert_close(out.loss, wanted)
    (gradient,) = torch.autograd.grad(out.loss, z, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(commitment, z)[0])
    if decay is None:
        (of_codes,) = torch.autograd.grad(out.loss, quantizer.codebook)
        torch.testing.assert_close(
            of_codes, torch.autograd.grad((z.detach() - nearest).square().mean(), quantizer.codebook)[0]
        )


def test_moving_averages_are_those_of_the_formula():
    quantizer = VectorQuantizer(4, 3, decay=0.8, epsilon=1e-3).double()
    counts, sums = quantizer.counts.clone(), quantizer.sums.clone()
    for _ in range(3):
        before, z = quantizer.codebook.clone(), torch.randn(9, 3, dtype=torch.float64)
        codes = quantizer(z).codes
        assert torch.equal(codes, torch.cdist(z, before).argmin(1))
        chosen = torch.nn.functional.one_hot(codes, 4).double()
        counts, sums = 0.8 * counts + 0.2 * chosen.sum(0), 0.8 * sums + 0.2 * chosen.t() @ z
        smoothed = (counts + 1e-3) / (counts.sum() + 4e-3) * counts.sum()
        torch.testing.assert_close(quantizer.codebook, sums / smoothed[:, None])


def test_a_code_that_is_fed_alone_moves_to_what_feeds_it():
    quantizer = VectorQuantizer(2, 2, decay=0.5)
    target = quantizer.codebook[0] + 0.1
    for _ in range(60):
        quantizer(target.expand(8, 2))
    torch.testing.assert_close(quantizer.codebook[0], target, rtol=1e-3, atol=1e-3)


def test_evaluation_and_gradients_change_no_average():
    quantizer = VectorQuantizer(4, 2).eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(torch.randn(8, 2))
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items())
    assert not list(quantizer.parameters())
    assert [name for name, _ in VectorQuantizer(4, 2, decay=None).named_parameters()] == ["codebook"]


def test_a_restarted_code_begins_again_in_average_and_count():
    quantizer = VectorQuantizer(6, 2, decay=0.1)
    for _ in range(5):
        quantizer(quantizer.codebook[:2].repeat(8, 1))
    kept = quantizer.codebook[:2].clone()
    z = torch.randn(5, 2, 3)
    unused = quantizer.restart_unused(z, below=0.5, seed=3)
    assert unused.tolist() == [False, False, True, True, True, True]
    assert torch.equal(quantizer.codebook[:2], kept)
    assert torch.equal(quantizer.sums[2:], quantizer.codebook[2:])
    assert (quantizer.counts[2:] == 1).all()
    rows = z.movedim(1, -1).reshape(-1, 2)
    assert all((rows == code).all(1).any() for code in quantizer.codebook[2:])
    again = VectorQuantizer(6, 2, decay=0.1)
    again.load_state_dict(quantizer.state_dict())
    again.restart_unused(z, below=2.0, seed=4)
    quantizer.restart_unused(z, below=2.0, seed=4)
    assert torch.equal(again.codebook, quantizer.codebook)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_forward_that_is_computed_again_adds_nothing_to_the_averages(use_reentrant):
    torch.manual_seed(0)
    quantizer, other = VectorQuantizer(4, 2), VectorQuantizer(4, 2)
    other.load_state_dict(quantizer.state_dict())
    z = torch.randn(9, 2, requires_grad=True)
    checkpoint(lambda z: quantizer(z).values, z, use_reentrant=use_reentrant).sum().backward()
    other(z)
    torch.testing.assert_close(quantizer.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_perplexity_counts_the_codes_in_use():
    quantizer = VectorQuantizer(8, 2).eval()
    torch.testing.assert_close(quantizer(quantizer.codebook.clone()).perplexity, torch.tensor(8.0))
    torch.testing.assert_close(quantizer(quantizer.codebook[:1].clone()).perplexity, torch.tensor(1.0))


@pytest.mark.parametrize("decay", [0.99, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_is_summed_in_float32(dtype, decay):
    """reports_vq_half_loss"""
    torch.manual_seed(0)
    quantizer, z = VectorQuantizer(16, 8, decay=decay).eval(), 5 * torch.randn(8, 8, 40, 40)
    wide, half = quantizer(z), quantizer(z.to(dtype))
    assert half.loss.dtype == half.perplexity.dtype == torch.float32
    assert half.values.dtype == dtype
    torch.testing.assert_close(half.loss, wide.loss, rtol=1e-2, atol=0)


@pytest.mark.parametrize("decay", [0.99, None])
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch(training, decay):
    """reports_vq_empty_batch"""
    out = VectorQuantizer(4, 2, decay=decay).train(training)(torch.zeros(0, 2, 3))
    assert out.values.shape == (0, 2, 3)
    assert out.codes.shape == (0, 3)
    assert out.loss == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorQuantizer(0, 2), "codes and width must be at least 1, got 0 and 2"),
        (lambda: VectorQuantizer(2, 2, decay=1.0), r"decay must be at least 0 and less than 1, or None, got 1\.0"),
        (
            lambda: VectorQuantizer(2, 2, commitment=-1),
            "commitment must be at least 0 and epsilon greater than 0, got -1 and 1e-05",
        ),
        (lambda: VectorQuantizer(2, 2)(torch.zeros(3, 4)), r"z must have shape .*got \(3, 4\)"),
        (
            lambda: VectorQuantizer(2, 2, decay=None).restart_unused(torch.zeros(3, 2), 1.0, 0),
            "decay must be a number for restart_unused, which needs moving averages, got None",
        ),
        (
            lambda: VectorQuantizer(2, 2).restart_unused(torch.zeros(0, 2), 1.0, 0),
            r"z must have at least one position, got shape \(0, 2\)",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
