from __future__ import annotations

import pytest
import torch

from fastgen.nn.posterior.planar import Planar
from fastgen.nn.posterior.sylvester import KINDS, Sylvester, orthonormal


def parts(layer: Sylvester, parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """R, S, b, by the description of the parameters in the layer's docstring, for one row."""
    m = layer.rank
    both, diagonal, b = parameters[: m * m].view(m, m), parameters[m * m : m * m + m], parameters[m * m + m :][:m]
    r = both.triu(1) + torch.diag(both.diagonal().tanh())
    return r, both.tril(-1).T + torch.diag(diagonal.tanh()), b, parameters[m * (m + 2) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_formula_of_the_paper(kind, reverse):
    torch.manual_seed(0)
    d, rank = 4, 2 if kind == "orthogonal" else None
    layer = Sylvester(d, kind, rank=rank, reflections=3, reverse=reverse, amortized=True)
    x, parameters = torch.randn(d, dtype=torch.float64), torch.randn(layer.parameter_size, dtype=torch.float64)
    r, s, b, of_q = parts(layer, parameters)
    eye = torch.eye(d, dtype=torch.float64)
    if kind == "orthogonal":
        left, _, right = torch.linalg.svd(of_q.view(d, 2), full_matrices=False)
        q = left @ right  # where the iteration ends: the nearest orthonormal matrix
    elif kind == "householder":
        q = eye
        for v in of_q.view(3, d):
            q = q @ (eye - 2 * torch.outer(v, v) / v.dot(v))
    else:
        q = eye.flip(0) if reverse else eye
    h = (s @ q.T @ x + b).tanh()
    y, log_det = layer(x[None], parameters[None])
    torch.testing.assert_close(y[0], x + q @ r @ h)
    torch.testing.assert_close(log_det[0], (1 + r.diagonal() * s.diagonal() * (1 - h**2)).log().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_q_becomes_orthonormal_to_rounding_whatever_the_scale(dtype):
    torch.manual_seed(0)
    for d, m in ((5, 5), (16, 3), (7, 1)):
        raw = torch.randn(20, d, m, dtype=dtype) * torch.logspace(-6, 6, 20, dtype=dtype)[:, None, None]
        q = orthonormal(raw)
        error = (q.mT @ q - torch.eye(m, dtype=dtype)).abs().max()
        assert error <= 4 * d**0.5 * torch.finfo(dtype).eps


def test_dependent_columns_are_refused():
    raw = torch.randn(3, 4, 2)
    raw[1, :, 1] = raw[1, :, 0]
    raw[2] = 0
    with pytest.raises(
        ValueError, match="raw must have independent columns, got 2 of 3 matrices with nearly dependent ones"
    ):
        orthonormal(raw)


def test_of_rank_one_it_is_a_planar_layer():
    torch.manual_seed(0)
    d = 3
    layer, planar = Sylvester(d, rank=1, amortized=True), Planar(d, amortized=True)
    x, parameters = torch.randn(1, d, dtype=torch.float64), torch.randn(1, layer.parameter_size, dtype=torch.float64)
    r, s, b, raw = parts(layer, parameters[0])
    q = raw / raw.norm()
    wanted = r.item() * s.item()  # w.u, of which the planar layer takes the inverse of softplus(.) - 1
    of_raw = torch.tensor(1 + wanted, dtype=torch.float64).expm1().log()
    w = s.item() * q
    same = torch.cat((w, of_raw * w / w.dot(w), b))[None]
    torch.testing.assert_close(layer(x, parameters), planar(x, same))
    torch.testing.assert_close(layer.inverse(x, parameters), planar.inverse(x, same))


def test_steep_triangles_have_an_exact_inverse():
    torch.manual_seed(0)
    layer = Sylvester(6, "triangular", amortized=True)
    y, parameters = torch.randn(50, 6, dtype=torch.float64), 5 * torch.randn(50, layer.parameter_size).double()
    back = layer(layer.inverse(y, parameters)[0], parameters)[0]
    # an error of one unit's root reaches the units above it, multiplied by what couples them
    assert (back - y).abs().max() < 1e-9


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match=r"kind must be one of 'orthogonal', 'householder'.*, got 'diagonal'"):
        Sylvester(3, "diagonal")
    for rank in (0, 4):
        with pytest.raises(ValueError, match=f"rank must be from 1 to 3, .*got {rank}"):
            Sylvester(3, rank=rank)
    with pytest.raises(ValueError, match="None unless kind is 'orthogonal', got 2 for 'triangular'"):
        Sylvester(3, "triangular", rank=2)
    with pytest.raises(ValueError, match="reflections must be an integer of at least 1, got 0"):
        Sylvester(3, "householder", reflections=0)
