from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops import lu_conv1x1
from fastgen.reference import lu_conv1x1 as reference
from fastgen.reference.lu_conv1x1 import CASES

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
EPSILON = torch.finfo(torch.float32).eps


def arguments(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    given = CASES[name](torch.Generator().manual_seed(seed))
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def factors(channels: int) -> tuple[Tensor, ...]:
    """Of a random rotation, which has the condition number 1."""
    permutation, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels).double())[0])
    diagonal = upper.diag()
    return permutation.argmax(1), lower, upper, diagonal.abs().log(), diagonal.sign()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_definition(name, backend):
    given = arguments(name)
    with fastgen.backend(backend):
        ours = lu_conv1x1(**given)
    wanted = reference.lu_conv1x1(**{"bias": None, "log_scale": None} | given)
    for mine, true in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_inverse_after_forward_is_the_identity_and_the_log_determinants_cancel(name, backend):
    given = arguments(name)
    with fastgen.backend(backend):
        y, log_det = lu_conv1x1(**given)
        back, back_log_det = lu_conv1x1(**given | {"x": y, "inverse": not given["inverse"]})
    torch.testing.assert_close(back, given["x"], rtol=1e-8, atol=1e-8)
    assert torch.equal(back_log_det, -log_det)


def test_the_log_determinant_is_that_of_the_jacobian():
    for name in ("small", "small inverse", "small without actnorm"):
        given = arguments(name)
        _, log_det = lu_conv1x1(**given)
        for n, x in enumerate(given["x"]):

            def one(row, given=given):
                return lu_conv1x1(**given | {"x": row[None]})[0].flatten()

            jacobian = torch.autograd.functional.jacobian(one, x).flatten(1)
            torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[n])


def test_the_matrix_is_that_of_torch_linalg_lu():
    weight = torch.randn(7, 7, dtype=torch.float64)
    permutation, lower, upper = torch.linalg.lu(weight)
    x, diagonal = torch.randn(3, 7, 5, dtype=torch.float64), upper.diag()
    y, log_det = lu_conv1x1(x, permutation.argmax(1), lower, upper, diagonal.abs().log(), diagonal.sign())
    torch.testing.assert_close(y, weight @ x)
    torch.testing.assert_close(log_det, 5 * torch.linalg.slogdet(weight)[1].repeat(3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_the_other_halves_of_the_triangles_are_not_used(inverse, backend):
    given = arguments("prime") | {"inverse": inverse}
    poisoned = given | {
        "lower": torch.where(torch.ones(7, 7).tril(-1) == 1, given["lower"], float("nan")),
        "upper": torch.where(torch.ones(7, 7).triu(1) == 1, given["upper"], float("nan")),
    }
    with fastgen.backend(backend):
        for mine, theirs in zip(lu_conv1x1(**poisoned), lu_conv1x1(**given), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 12, 96, 333])
def test_a_rotation_is_undone_to_rounding(channels, backend):
    """Substitution errs by the condition of the factors, which partial pivoting of a rotation keeps near C."""
    torch.manual_seed(0)
    exact, x = factors(channels), torch.randn(3, channels, 50)
    single = [t.float() if t.is_floating_point() else t for t in exact]
    with fastgen.backend(backend):
        y, _ = lu_conv1x1(x, *single)
        back, _ = lu_conv1x1(y, *single, inverse=True)
    assert (back - x).abs().max() <= 4 * EPSILON * channels * x.abs().max()


@pytest.mark.needs_extension
@pytest.mark.parametrize("positions", [1, 2, 15, 16, 17, 64, 65, 129])
@pytest.mark.parametrize("samples", [1, 15, 16, 33])
def test_every_remainder_of_a_tile(samples, positions):
    torch.manual_seed(0)
    x, given = torch.randn(samples, 5, positions, dtype=torch.float64), factors(5)
    with fastgen.backend("reference"):
        wanted, _ = lu_conv1x1(x, *given, inverse=True)
    torch.testing.assert_close(lu_conv1x1(x, *given, inverse=True)[0], wanted)
    single, _ = lu_conv1x1(x.float(), *given[:1], *(t.float() for t in given[1:]), inverse=True)
    torch.testing.assert_close(single, wanted.float(), rtol=100 * EPSILON, atol=100 * EPSILON)


@pytest.mark.needs_extension
@pytest.mark.parametrize("shape", [(5, 33, 16, 17), (700, 33)])
def test_several_threads_share_the_tiles_and_change_no_bit(shape):
    torch.manual_seed(0)
    given = [t.float() if t.is_floating_point() else t for t in factors(shape[1])]
    x = torch.randn(shape, requires_grad=True)
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        y, _ = lu_conv1x1(x, *given, inverse=True)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.set_num_threads(before)
    for one, several in zip(*found, strict=True):
        assert torch.equal(one, several)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_does_not_see_the_others(backend):
    x, given = torch.randn(4, 6, 37), [t.float() if t.is_floating_point() else t for t in factors(6)]
    with fastgen.backend(backend):
        y, _ = lu_conv1x1(x, *given, inverse=True)
        x[2, :, 20] = float("nan")
        spoilt, _ = lu_conv1x1(x, *given, inverse=True)
    same = torch.ones(4, 37, dtype=torch.bool)
    same[2, 20] = False
    torch.testing.assert_close(spoilt.transpose(1, 2)[same], y.transpose(1, 2)[same])
    assert spoilt[2, :, 20].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_through_the_inverse_are_exact_under_autocast(backend):
    given = arguments("image, inverse", torch.float32)
    names = [name for name, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()]

    def gradients() -> tuple[Tensor, ...]:
        tensors = {name: given[name].clone().requires_grad_() for name in names}
        y, log_det = lu_conv1x1(**given | tensors)
        return torch.autograd.grad(y.square().sum() + log_det.sum(), list(tensors.values()))

    with fastgen.backend(backend):
        wanted = gradients()
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients()
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_scales_to_the_ends_of_the_range(inverse, backend):
    """Triangles of 0: every channel has its own scale, from e^-80 to e^80, and what float32 holds comes out."""
    log_s, x = torch.linspace(-80, 80, 17), torch.randn(3, 17, 5)
    zero = torch.zeros(17, 17)
    with fastgen.backend(backend):
        y, log_det = lu_conv1x1(x, torch.arange(17), zero, zero, log_s, torch.ones(17), inverse=inverse)
    wanted = x.double() * (-log_s if inverse else log_s).double().exp()[:, None]
    torch.testing.assert_close(y.double(), wanted, rtol=8 * EPSILON, atol=torch.finfo(torch.float32).tiny)
    assert (log_det.abs() <= 5 * 17 * 80 * EPSILON).all()


VALID = {
    "x": torch.zeros(2, 3, 4),
    "permutation": torch.arange(3),
    "lower": torch.zeros(3, 3),
    "upper": torch.zeros(3, 3),
    "log_s": torch.zeros(3),
    "sign": torch.ones(3),
}


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape .*, got \(3,\)"),
        ({"x": torch.zeros(2, 0, 4)}, ValueError, "C at least 1"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x must be .*, got torch.int64"),
        ({"permutation": torch.arange(3.0)}, TypeError, "permutation must be .*, got torch.float32"),
        ({"permutation": torch.tensor([0, 2, 2])}, ValueError, r"permutation must .*, got \[0, 2, 2\]"),
        ({"permutation": torch.tensor([0, 1, 3])}, ValueError, r"permutation must .*, got \[0, 1, 3\]"),
        ({"permutation": torch.arange(4)}, ValueError, "permutation must have shape"),
        ({"lower": torch.zeros(3)}, ValueError, r"lower must have shape .*\(3, 3\).*, got \(3,\)"),
        ({"upper": torch.zeros(3, 4)}, ValueError, "upper must have shape"),
        ({"log_s": torch.zeros(4)}, ValueError, "log_s must have shape"),
        ({"sign": torch.ones(3, dtype=torch.int64)}, TypeError, "sign must be floating point"),
        ({"bias": torch.zeros(3, 1)}, ValueError, "bias must have shape"),
        ({"log_scale": torch.zeros(1)}, ValueError, "log_scale must have shape"),
        (
            {"permutation": torch.arange(3, device="meta")},
            ValueError,
            "permutation must be on the device of x, cpu, got meta",
        ),
        ({"bias": torch.zeros(3, device="meta")}, ValueError, "bias must be on the device of x, cpu, got meta"),
    ],
)
@pytest.mark.parametrize("inverse", [False, True])
def test_wrong_arguments_are_named(changed, error, words, inverse):
    with pytest.raises(error, match=words):
        lu_conv1x1(**VALID | changed, inverse=inverse)


@pytest.mark.parametrize(("channels", "positions"), [(2, 1 << 30), (46341, 1)])
def test_the_triton_kernel_refuses_samples_that_its_offsets_do_not_reach(channels, positions):
    pytest.importorskip("triton")
    from fastgen.triton_kernels.lu_conv1x1 import lu_conv1x1 as launch

    y, square = torch.empty(1, channels, positions, device="meta"), torch.empty(channels, channels, device="meta")
    with pytest.raises(ValueError, match=f"{channels} channels and {positions} positions.*fewer than 2\\*\\*31"):
        launch(y, square[0].long(), square, square, square[0], square[0])


@pytest.mark.needs_extension
def test_the_op_itself_refuses_a_permutation_that_leaves_memory():
    y, square, vector = torch.zeros(1, 3, 2), torch.zeros(3, 3), torch.ones(3)
    for places in ([0, 1, 3], [-1, 0, 1], [0, 0, 1]):
        with pytest.raises(RuntimeError, match="permutation must have every number below 3 once"):
            torch.ops.fastgen.lu_conv1x1(y, torch.tensor(places), square, square, vector, vector)
