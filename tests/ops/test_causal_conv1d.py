"""Laws and wrong arguments of the causal convolution; the rest is the contract's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgen
from fastgen.ops import causal_conv1d
from fastgen.ops.causal_conv1d import OP
from fastgen.reference.causal_conv1d import GATES
from tests.ops.test_contract import check_precision, differentiated, threads

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
TRITON = pytest.param("triton-interpret", marks=pytest.mark.interpreter)
HALVES = {
    "tanh_sigmoid": lambda a, g: a.tanh() * g.sigmoid(),
    "glu": lambda a, g: a * g.sigmoid(),
    "reglu": lambda a, g: a * g.clamp(min=0),
    "geglu": lambda a, g: a * g * (1 + (g / 2**0.5).erf()) / 2,
    "swiglu": lambda a, g: a * g * g.sigmoid(),
}


def made(n: int, c: int, o: int, t: int, k: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return normal(n, c, t), normal(o, c, k), normal(o)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", GATES)
def test_the_sums_and_the_gate_by_their_definition(backend, gate):
    x, weight, bias = made(2, 3, 6, 11, 3)
    condition = torch.randn(2, 6, 11, dtype=torch.float64)
    with fastgen.backend(backend):
        y, _ = causal_conv1d(x, weight, bias, dilation=2, gate=gate, condition=condition)
    sums = bias[:, None] + condition
    for k in range(3):
        back = (2 - k) * 2
        sums = sums + torch.einsum("oc,nct->not", weight[:, :, k], F.pad(x, (back, 0))[:, :, :11])
    torch.testing.assert_close(y, sums if gate is None else HALVES[gate](sums[:, :3], sums[:, 3:]))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(
    t=st.integers(1, 700),
    k=st.integers(1, 4),
    dilation=st.integers(1, 90),
    cut=st.floats(0, 1),
    gate=st.sampled_from(list(GATES)),
)
def test_pieces_with_the_state_between_them_are_the_whole(backend, t, k, dilation, cut, gate):
    x, weight, bias = made(2, 3, 4, t, k)
    at = int(cut * t)
    with fastgen.backend(backend):
        whole, last = causal_conv1d(x, weight, bias, dilation=dilation, gate=gate)
        first, state = causal_conv1d(x[..., :at], weight, bias, dilation=dilation, gate=gate)
        second, end = causal_conv1d(x[..., at:], weight, bias, dilation=dilation, gate=gate, state=state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    assert torch.equal(end, last)
    assert last.shape == (2, 3, (k - 1) * dilation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_input_changes_nothing_before_it(backend):
    x, weight, bias = made(1, 2, 4, 600, 3)
    with fastgen.backend(backend):
        y, _ = causal_conv1d(x, weight, bias, dilation=16, gate="glu")
        x[:, :, 300] += 1
        changed = (causal_conv1d(x, weight, bias, dilation=16, gate="glu")[0] != y).any(1)[0]
    assert changed.nonzero().flatten().tolist() == [300, 316, 332]


def out_of(hidden: int, channels: int, skips: int, seed: int = 1) -> dict:
    """Weights and biases of residual and skip."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = {"residual_weight": normal(channels, hidden), "skip_weight": normal(skips, hidden)}
    return weights | {"residual_bias": normal(channels), "skip_bias": normal(skips)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("times", [1, 255, 600])
def test_residual_and_skip_by_their_definition(backend, gate, times):
    x, weight, bias = made(2, 3, 6, times, 2)
    out, before = out_of(6 if gate is None else 3, 3, 5), torch.randn(2, 5, times, dtype=torch.float64)
    with fastgen.backend(backend):
        y, state = causal_conv1d(x, weight, bias, dilation=7, gate=gate)
        residual, skip, same_state = causal_conv1d(x, weight, bias, dilation=7, gate=gate, skip=before, **out)
        last = {name: value for name, value in out.items() if name.startswith("skip")}
        given, last_skip, _ = causal_conv1d(x, weight, bias, dilation=7, gate=gate, **last)
        first = {name: value for name, value in out.items() if name.startswith("residual")}
        only_residual, none, _ = causal_conv1d(x, weight, bias, dilation=7, gate=gate, **first)
    torch.testing.assert_close(residual, x + F.conv1d(y, out["residual_weight"][:, :, None], out["residual_bias"]))
    torch.testing.assert_close(skip, before + F.conv1d(y, out["skip_weight"][:, :, None], out["skip_bias"]))
    torch.testing.assert_close(last_skip, skip - before)
    torch.testing.assert_close(only_residual, residual)
    assert torch.equal(state, same_state)
    assert torch.equal(given, x)
    assert none.shape == (2, 0, times)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=10)
@given(t=st.integers(1, 700), dilation=st.integers(1, 90), cut=st.floats(0, 1), gate=st.sampled_from(list(GATES)))
def test_pieces_of_residual_and_skip_are_the_whole(backend, t, dilation, cut, gate):
    x, weight, bias = made(2, 3, 4, t, 2)
    before, at = torch.randn(2, 5, t, dtype=torch.float64), int(cut * t)
    settled = {"dilation": dilation, "gate": gate, **out_of(4 if gate is None else 2, 3, 5)}
    with fastgen.backend(backend):
        whole = causal_conv1d(x, weight, bias, skip=before, **settled)
        first = causal_conv1d(x[..., :at], weight, bias, skip=before[..., :at], **settled)
        second = causal_conv1d(x[..., at:], weight, bias, skip=before[..., at:], state=first[2], **settled)
    for wanted, *pieces in zip(whole[:2], first[:2], second[:2], strict=True):
        torch.testing.assert_close(torch.cat(pieces, 2), wanted)
    assert torch.equal(second[2], whole[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_input_changes_no_residual_or_skip_before_it(backend):
    x, weight, bias = made(1, 2, 4, 600, 3)
    out = out_of(2, 2, 3)
    with fastgen.backend(backend):
        before = causal_conv1d(x, weight, bias, dilation=16, gate="glu", **out)
        x[:, :, 300] += 1
        after = causal_conv1d(x, weight, bias, dilation=16, gate="glu", **out)
    for mine, changed in zip(before[:2], after[:2], strict=True):
        assert (mine != changed).any(1)[0].nonzero().flatten().tolist() == [300, 316, 332]


@pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("size", [1e4, 1e-30])
def test_large_and_small_numbers_stay_finite(backend, gate, size):
    x, weight, bias = (t.float().requires_grad_() for t in made(2, 3, 4, 50, 2))
    with fastgen.backend(backend):
        y, _ = causal_conv1d(size * x, weight, bias, gate=gate)
        gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    for value in (y, *gradients):
        assert torch.isfinite(value).all()


@pytest.mark.needs_extension
@pytest.mark.parametrize("with_out", [False, True])
def test_two_threads_find_the_same(with_out):
    x, weight, bias = made(3, 2, 4, 700, 2)
    given = {"x": x, "weight": weight, "bias": bias, "gate": "glu", **(out_of(2, 2, 3) if with_out else {})}
    with threads(1):
        one = differentiated(OP, given)
    with threads(2):
        two = differentiated(OP, given)
    for mine, theirs in zip(two[0] + two[1], one[0] + one[1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.needs_extension
@pytest.mark.parametrize("times", [63, 1100, 5000])
@pytest.mark.parametrize("dilation", [1, 40, 700, 2500])
def test_gradients_of_x_and_state_reach_back_over_blocks(times, dilation):
    """Over strips, over blocks, over the blocks that another thread takes, and into the state."""
    x, weight, bias = made(2, 3, 4, times, 3)
    state = torch.randn(2, 3, 2 * dilation, dtype=torch.float64)
    given = {"x": x, "weight": weight, "bias": bias, "state": state, "dilation": dilation, "gate": "glu"}
    with threads(2):
        _, mine = differentiated(OP, given)
    with fastgen.backend("reference"):
        _, wanted = differentiated(OP, given)
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.interpreter
@pytest.mark.parametrize("gate", HALVES)
@pytest.mark.parametrize("times", [1, 2, 129, 151])
def test_triton_has_every_gate_at_odd_lengths(times, gate):
    def make(generator: torch.Generator) -> dict:
        shapes = {"x": (2, 3, times), "weight": (2, 3, 2), "bias": (2,), "condition": (2, 2, times)}
        given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return given | {"dilation": 3, "gate": gate}

    check_precision(OP, make, "triton-interpret")


@pytest.mark.interpreter
@pytest.mark.parametrize("times", [1, 2, 129, 151])
def test_triton_without_a_gate_hands_the_gradient_on_to_the_condition(times):
    x, weight, condition = torch.randn(2, 3, times), torch.randn(5, 3, 2), torch.randn(2, 5, times, requires_grad=True)
    with fastgen.backend("triton-interpret"):
        y, _ = causal_conv1d(x, weight, condition=condition)
        grad = torch.randn_like(y)
        assert torch.equal(torch.autograd.grad(y, condition, grad)[0], grad)


@pytest.mark.interpreter
def test_triton_takes_strided_arguments():
    given = {
        "x": torch.randn(151, 3, 2).permute(2, 1, 0),
        "weight": torch.randn(3, 6, 5).permute(1, 2, 0)[:, 1:4],
        "bias": torch.randn(6, 2)[:, 1],
        "condition": torch.randn(2, 151, 6).transpose(1, 2),
        "state": torch.randn(4, 3, 2).permute(2, 1, 0),
        "dilation": 2,
        "gate": "geglu",
    }
    dense = {name: t.contiguous() if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    with fastgen.backend("triton-interpret"):
        torch.testing.assert_close(differentiated(OP, given), differentiated(OP, dense))


@pytest.mark.interpreter
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("times", [1, 129])
def test_triton_has_residual_and_skip_for_every_gate(times, gate):
    def make(generator: torch.Generator) -> dict:
        hidden = 4 if gate is None else 2
        shapes = {"x": (2, 3, times), "weight": (4, 3, 2), "bias": (4,), "residual_weight": (3, hidden)}
        shapes |= {"residual_bias": (3,), "skip_weight": (5, hidden), "skip": (2, 5, times)}
        given = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return given | {"dilation": 3, "gate": gate}

    check_precision(OP, make, "triton-interpret")


def test_a_condition_for_all_times_may_lack_the_dimension():
    x, weight, bias = made(2, 3, 4, 9, 2)
    condition = torch.randn(2, 4, dtype=torch.float64)
    found = causal_conv1d(x, weight, bias, gate="glu", condition=condition)[0]
    assert torch.equal(found, causal_conv1d(x, weight, bias, gate="glu", condition=condition[:, :, None])[0])


def test_wrong_arguments_are_named():
    x, weight, bias = made(2, 3, 5, 9, 2)
    with pytest.raises(ValueError, match=r"gate must be None or one of.*, got 'tanh'"):
        causal_conv1d(x, weight, gate="tanh")
    with pytest.raises(ValueError, match=r"weight must have an even number of.*, got 5"):
        causal_conv1d(x, weight, gate="glu")
    with pytest.raises(ValueError, match="dilation must be 1 or more, got 0"):
        causal_conv1d(x, weight, dilation=0)
    with pytest.raises(TypeError, match="x must be floating point"):
        causal_conv1d(x.long(), weight)
    with pytest.raises(ValueError, match=r"x and weight must have shapes \[N, C,.*, got \(2, 2, 9\) and \(5, 3, 2\)"):
        causal_conv1d(x[:, :2], weight)
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(4,\)"):
        causal_conv1d(x, weight, bias[:4])
    with pytest.raises(ValueError, match=r"condition must have shape \(2, 5, 9\), got \(2, 5, 4\)"):
        causal_conv1d(x, weight, condition=x.new_zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 3, 4\), got \(2, 3, 1\)"):
        causal_conv1d(x, weight, dilation=4, state=x.new_zeros(2, 3, 1))
    with pytest.raises(ValueError, match=r"residual_bias must be None without.*, got a tensor"):
        causal_conv1d(x, weight, residual_bias=bias)
    with pytest.raises(ValueError, match="skip must be None without skip_weight, got a tensor"):
        causal_conv1d(x, weight, residual_weight=x.new_zeros(3, 5), skip=x)
    with pytest.raises(ValueError, match=r"residual_weight must have shape \(3, 5\), got \(4, 5\)"):
        causal_conv1d(x, weight, residual_weight=x.new_zeros(4, 5))
    with pytest.raises(ValueError, match=r"skip_weight must have shape \[S, 5\], got \(7, 4\)"):
        causal_conv1d(x, weight, skip_weight=x.new_zeros(7, 4))
    with pytest.raises(ValueError, match=r"skip must have shape \(2, 7, 9\), got \(2, 7, 1\)"):
        causal_conv1d(x, weight, skip_weight=x.new_zeros(7, 5), skip=x.new_zeros(2, 7, 1))


@pytest.mark.needs_extension
@pytest.mark.parametrize("channels", [64, 300])
def test_many_products_are_summed_as_exactly_as_the_library_does(channels):
    x, weight, bias = (t.float() for t in made(1, channels, 48, 700, 3))
    grad = torch.randn(1, 48, 700)

    def found(function, *given):
        leaves = [t.clone().requires_grad_() for t in given]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y))]

    def plain(x, weight, bias):
        return F.conv1d(F.pad(x, (10, 0)), weight, bias, dilation=5)

    exact = found(plain, x.double(), weight.double(), bias.double())
    single = found(plain, x, weight, bias)
    ours = found(lambda *given: causal_conv1d(*given, dilation=5)[0], x, weight, bias)
    for mine, theirs, true in zip(ours, single, exact, strict=True):
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max()
