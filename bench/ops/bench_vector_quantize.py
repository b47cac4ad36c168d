"""Nearest code of 16,384 rows among 512 codes of width 64: the kernel against the matrix of distances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgen import _C
from fastgen.ops import vector_quantize
from fastgen.reference import vector_quantize as reference

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

pytestmark = pytest.mark.needs_extension
ROWS, CODES, WIDTH, ROUNDS = size(16384, 40), size(512, 9), size(64, 5), size(9, 1)


def distance_matrix(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantizes as public code does: all distances, their argmin, and one-hot rows for the statistics."""
    distances = x.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * x @ codebook.t()
    codes = distances.argmin(1)
    chosen = torch.nn.functional.one_hot(codes, len(codebook)).to(x.dtype)
    return codes, codebook[codes], chosen.sum(0), chosen.t() @ x


@torch.no_grad()
@pytest.mark.benchmark(group="vector_quantize")
def bench_vector_quantize(benchmark):
    torch.manual_seed(0)
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    x, codebook = torch.randn(ROWS, WIDTH), torch.randn(CODES, WIDTH)
    exact = reference.vector_quantize(x.double(), codebook.double())[0]
    found, textbook = vector_quantize(x, codebook), distance_matrix(x, codebook)
    for codes, quantized, counts, sums in (found, textbook):
        assert (codes != exact).sum() <= 1e-3 * ROWS  # ties within rounding
        assert torch.equal(quantized, codebook[codes])
        torch.testing.assert_close(counts, torch.bincount(codes, minlength=CODES).float())
        torch.testing.assert_close(sums, torch.zeros_like(codebook).index_add(0, codes, x), rtol=1e-4, atol=1e-4)
    compiled = torch.compile(distance_matrix, fullgraph=True, dynamic=False)
    least = 2 * ROWS * CODES * WIDTH
    providers = [
        Provider("distance matrix, eager", lambda: distance_matrix(x, codebook), 1, threads),
        Provider("distance matrix, compiled", lambda: compiled(x, codebook), 1, threads),
        Provider("reference", lambda: reference.vector_quantize(x, codebook), 1, threads),
        Provider(
            "fastgen",
            lambda: vector_quantize(x, codebook),
            1,
            threads,
            floor=lambda: least / _C.fma_peak(threads) / 1e9,
        ),
    ]
    interleave(benchmark, providers, ROUNDS)
    part = Part("vector_quantize", f"vector_quantize, {ROWS:,} rows, {CODES} codes of {WIDTH}", "call")
    part.add(providers, compared_with=providers[0])
    if not QUICK:
        fastest = min(providers[:3], key=lambda p: p.seconds)
        part.bars = [Bar(f"over the fastest other ({fastest.name})", 1, providers[3].speedup_over(fastest))]
    publish(part, benchmark)
