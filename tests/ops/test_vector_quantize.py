from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgen
from fastgen.ops import vector_quantize
from fastgen.reference.vector_quantize import CASES

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]


def arguments(name: str, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    made = CASES[name](torch.Generator().manual_seed(0))
    return made["x"].to(dtype), made["codebook"].to(dtype)


def check(x: torch.Tensor, codebook: torch.Tensor, found: tuple[torch.Tensor, ...]) -> None:
    """A code within rounding of the nearest one, and everything else exactly what follows from the codes."""
    codes, quantized, counts, sums = found
    assert codes.dtype == torch.int64
    assert codes.shape == x.shape[:1]
    wide, book = x.double(), codebook.double()
    distances = (wide[:, None] - book).square().sum(-1)
    scale = wide.square().sum(1) + book.square().sum(1).max()
    if len(x):
        excess = distances.gather(1, codes[:, None])[:, 0] - distances.min(1).values
        assert (excess <= 4 * x.shape[1] ** 0.5 * torch.finfo(x.dtype).eps * scale).all()
    assert torch.equal(quantized, codebook[codes])
    assert torch.equal(counts, torch.bincount(codes, minlength=len(codebook)).to(counts.dtype))
    wanted = torch.zeros_like(book).index_add(0, codes, wide)
    largest = torch.zeros_like(book).index_add(0, codes, wide.abs())
    assert ((sums - wanted).abs() <= 2 * torch.finfo(sums.dtype).eps * counts[:, None].clamp(min=1) * largest).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_every_row_gets_its_nearest_code(name, dtype, backend):
    x, codebook = arguments(name, dtype)
    with fastgen.backend(backend):
        check(x, codebook, vector_quantize(x, codebook))


@pytest.mark.interpreter
@pytest.mark.parametrize("name", CASES)
def test_the_triton_kernel_finds_the_nearest_code(name):
    x, codebook = arguments(name)
    with fastgen.backend("triton-interpret"):
        check(x, codebook, vector_quantize(x, codebook))


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_cuda_kernel_finds_the_nearest_code(name):
    x, codebook = arguments(name)
    check(x, codebook, tuple(t.cpu() for t in vector_quantize(x.cuda(), codebook.cuda())))


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(0, 40), codes=st.integers(1, 70), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_size(rows, codes, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x, codebook = torch.randn(rows, width, generator=generator), torch.randn(codes, width, generator=generator)
    check(x, codebook, vector_quantize(x, codebook))


@pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton-interpret", marks=pytest.mark.interpreter)])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4, torch.tensor([1e4, 0.0, -1e3, 1.0, 1e4])])
def test_an_offset_that_all_data_have_costs_no_precision(offset, backend):
    """reports_vq_offset"""
    generator = torch.Generator().manual_seed(0)
    x, codebook = (offset + torch.randn(rows, 5, generator=generator) for rows in (300, 40))
    with fastgen.backend(backend):
        codes = vector_quantize(x, codebook)[0]
    distances = (x.double()[:, None] - codebook.double()).square().sum(-1)
    assert (distances.gather(1, codes[:, None])[:, 0] <= distances.min(1).values * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_code_far_away_costs_no_precision(backend):
    x, codebook = torch.randn(300, 5), torch.randn(40, 5)
    codebook[7] = 1e6
    with fastgen.backend(backend):
        codes = vector_quantize(x, codebook)[0]
    distances = (x.double()[:, None] - codebook.double()).square().sum(-1)
    assert (distances.gather(1, codes[:, None])[:, 0] <= distances.min(1).values * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equally_near_codes_the_first_is_taken(backend):
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).repeat(40, 1)
    with fastgen.backend(backend):
        codes, *_ = vector_quantize(torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), codebook)
    assert codes.tolist() == [0, 1, 0]


def test_a_code_of_the_codebook_is_its_own_nearest():
    codebook = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    assert vector_quantize(codebook, codebook)[0].tolist() == list(range(50))


@pytest.mark.needs_extension
def test_one_and_two_threads_are_bitwise_equal():
    x, codebook = torch.randn(1000, 37), torch.randn(130, 37)
    one = vector_quantize(x, codebook)
    torch.set_num_threads(2)
    try:
        two = vector_quantize(x, codebook)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_strided_rows_and_half_precision():
    x, codebook = torch.randn(20, 6), torch.randn(9, 6)
    wanted = vector_quantize(x, codebook)
    wide = torch.full((20, 12), torch.nan)
    wide[:, ::2] = x
    assert all(
        torch.equal(a, b)
        for a, b in zip(vector_quantize(wide[:, ::2], codebook.t().contiguous().t()), wanted, strict=True)
    )
    half = vector_quantize(x.bfloat16(), codebook.bfloat16())
    assert half[1].dtype == torch.bfloat16
    assert half[2].dtype == half[3].dtype == torch.float32
    assert torch.equal(half[0], vector_quantize(x.bfloat16().float(), codebook.bfloat16().float())[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_code_under_autocast_is_that_of_float32(backend):
    x, codebook = torch.randn(2000, 64), torch.randn(300, 64)
    with fastgen.backend(backend):
        codes = vector_quantize(x, codebook)[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(vector_quantize(x, codebook)[0], codes)


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name):
    torch.library.opcheck(torch.ops.fastgen.vector_quantize.default, arguments(name))


def test_vmap_and_compile():
    x, codebook = torch.randn(3, 11, 4), torch.randn(7, 4)
    batched = torch.func.vmap(vector_quantize, (0, None))(x, codebook)
    for i in range(3):
        assert all(torch.equal(a[i], b) for a, b in zip(batched, vector_quantize(x[i], codebook), strict=True))
    compiled = torch.compile(vector_quantize, fullgraph=True, backend="aot_eager")
    assert all(
        torch.equal(a, b) for a, b in zip(compiled(x[0], codebook), vector_quantize(x[0], codebook), strict=True)
    )


def test_the_triton_kernel_refuses_more_rows_than_it_counts():
    pytest.importorskip("triton")
    from fastgen.triton_kernels.vector_quantize import vector_quantize as launch

    with pytest.raises(ValueError, match="x has 2147483648 rows"):
        launch(torch.empty(1 << 31, 1, device="meta"), torch.empty(2, 1, device="meta"))


@pytest.mark.parametrize(
    ("x", "codebook", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 3), TypeError, "x must be .*, got torch.int64"),
        (torch.zeros(2, 3), torch.zeros(4, 2), ValueError, r"x and codebook must have rows of the.*, got 3 and 2"),
        (torch.zeros(2, 3, 1), torch.zeros(4, 3), ValueError, r"x must have two dimensions, got shape \(2, 3, 1\)"),
        (torch.zeros(2, 3), torch.zeros(0, 3), ValueError, "codebook must have at least one code, got none"),
    ],
)
def test_wrong_arguments_are_named(x, codebook, error, message):
    with pytest.raises(error, match=message):
        vector_quantize(x, codebook)
