from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.ops import affine_coupling, philox_uniform
from fastgen.ops.registry import OPS


def draw():
    return philox_uniform(0, torch.arange(2), torch.arange(3), 0, 0)


def test_backends_names_every_op_on_both_devices():
    rows = fastgen.backends()
    names = [name for name, op in OPS.items() if not op.part_of]
    assert [(row.op, row.device) for row in rows] == [(name, device) for name in names for device in ("cpu", "cuda")]
    assert all(row.reason for row in rows)


def test_the_cpu_row_says_whether_the_extension_is_there():
    row = next(row for row in fastgen.backends() if (row.op, row.device) == ("philox_uniform", "cpu"))
    if fastgen.extension_error:
        assert (row.backend, row.reason) == ("reference", fastgen.extension_error)
    else:
        assert row.backend == "cpu"


def test_unknown_backend_is_named_with_the_known_ones():
    known = "'reference', 'cpu', 'triton', 'triton-interpret'"
    with pytest.raises(ValueError, match=f"backend must be one of {known}, got 'gpu'"), fastgen.backend("gpu"):
        pass


def test_a_forced_backend_that_cannot_run_says_why():
    with fastgen.backend("triton"), pytest.raises(RuntimeError, match=r"'triton': (Triton compiles for|Triton is not)"):
        draw()


def test_the_interpreter_says_what_it_needs():
    with fastgen.backend("triton-interpret"), pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1|not installed"):
        draw()


def test_the_forced_backend_ends_with_its_block_even_after_an_error():
    before = draw()
    with pytest.raises(RuntimeError), fastgen.backend("reference"), fastgen.backend("triton"):
        draw()
    assert torch.equal(draw(), before)


def test_a_composition_says_what_it_is_of():
    row = next(row for row in fastgen.backends() if (row.op, row.device) == ("masked_conv2d", "cpu"))
    assert row.backend == "composite"
    assert "oneDNN" in row.reason


@pytest.mark.gpu
def test_a_kernel_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x, parameters = torch.randn(3, 4), torch.randn(3, 8)
    wanted = affine_coupling(x, parameters)
    for device in ("cuda:1", "cuda:0"):
        found = affine_coupling(x.to(device), parameters.to(device))
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.device == torch.device(device)
            torch.testing.assert_close(ours.cpu(), theirs)
