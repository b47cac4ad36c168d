from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastgen
from fastgen.ops import philox_uniform
from fastgen.reference.philox_uniform import CASES, philox4x32_10

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
INDICES = st.lists(INT64, max_size=5)
UINT16 = st.integers(0, 0xFFFF)
CASE = st.tuples(INT64, INDICES, INDICES, UINT16, UINT16)


def tensors(seed, samples, positions, channel, draw):
    return seed, torch.tensor(samples, dtype=torch.int64), torch.tensor(positions, dtype=torch.int64), channel, draw


def reference(*arguments):
    with fastgen.backend("reference"):
        return philox_uniform(*arguments)


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    assert tuple(int(word) for word in philox4x32_10(words(*counter), words(*key))) == expected


@pytest.mark.parametrize("case", CASES)
def test_default_backend_is_bitwise_the_reference(case):
    arguments = tensors(*case)
    assert torch.equal(philox_uniform(*arguments), reference(*arguments))


@pytest.mark.needs_extension
@given(CASE)
def test_compiled_kernel_is_bitwise_the_reference(case):
    arguments = tensors(*case)
    with fastgen.backend("cpu"):
        assert torch.equal(philox_uniform(*arguments), reference(*arguments))


@pytest.mark.interpreter
@pytest.mark.parametrize("case", CASES)
def test_triton_kernel_is_bitwise_the_reference(case):
    assert os.environ["TRITON_INTERPRET"] == "1"
    arguments = tensors(*case)
    with fastgen.backend("triton-interpret"):
        assert torch.equal(philox_uniform(*arguments), reference(*arguments))


@pytest.mark.interpreter
def test_triton_kernel_writes_nothing_outside_its_output():
    from fastgen.triton_kernels.philox_uniform import BLOCK, philox_uniform_kernel

    samples, positions = torch.arange(2), torch.arange(BLOCK + 3)
    guarded = torch.full((4, BLOCK + 3), -1.0, dtype=torch.float64)
    philox_uniform_kernel[(4,)](guarded[1:], samples, positions, 1, BLOCK + 3, 2, 0, 0, block=BLOCK)
    assert torch.equal(guarded[1:3], reference(1, samples, positions, 0, 0))
    assert (guarded[[0, 3]] == -1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_kernel_is_bitwise_the_reference(case):
    arguments = tensors(*case)
    on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
    assert torch.equal(philox_uniform(*on_gpu).cpu(), reference(*arguments))


@given(CASE)
def test_every_number_depends_on_its_own_coordinates_only(case):
    seed, samples, positions, channel, draw = tensors(*case)
    noise = philox_uniform(seed, samples, positions, channel, draw)
    for b in range(len(samples)):
        for p in range(len(positions)):
            alone = philox_uniform(seed, samples[b : b + 1], positions[p : p + 1], channel, draw)
            assert torch.equal(alone[0, 0], noise[b, p])


@given(INT64, st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 48) - 1), UINT16, UINT16, st.data())
def test_a_change_of_any_coordinate_changes_the_number(seed, sample, position, channel, draw, data):
    case = [seed, sample, position, channel, draw]
    which = data.draw(st.integers(0, 4))
    bit = data.draw(st.integers(0, (62, 47, 47, 15, 15)[which]))
    other = list(case)
    other[which] ^= 1 << bit
    first, second = (philox_uniform(*tensors(c[0], [c[1]], [c[2]], c[3], c[4])) for c in (case, other))
    assert not torch.equal(first, second)


def test_moments_are_those_of_the_uniform_distribution():
    noise = philox_uniform(0, torch.arange(64), torch.arange(4096), 0, 0).flatten()
    n = noise.numel()
    # six standard deviations of the mean and of the mean square
    assert abs(noise.mean() - 1 / 2) < 6 * (1 / 12 / n) ** 0.5
    assert abs(noise.square().mean() - 1 / 3) < 6 * (4 / 45 / n) ** 0.5
    pairs = noise.view(64, 4096) - 0.5
    assert abs((pairs[:, 1:] * pairs[:, :-1]).mean()) < 6 / 12 / (n - 64) ** 0.5
    assert abs((pairs[1:] * pairs[:-1]).mean()) < 6 / 12 / (n - 4096) ** 0.5


def test_strided_and_overlapping_views():
    samples, positions = torch.arange(20)[::3], torch.tensor(5).expand(4)
    expected = reference(3, samples.clone(), positions.clone(), 1, 2)
    assert torch.equal(philox_uniform(3, samples, positions, 1, 2), expected)


@pytest.mark.needs_extension
def test_one_and_two_threads_are_bitwise_equal():
    arguments = (3, torch.arange(67), torch.arange(257), 0, 1)
    one = philox_uniform(*arguments)
    torch.set_num_threads(2)
    try:
        assert torch.equal(philox_uniform(*arguments), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    torch.library.opcheck(torch.ops.fastgen.philox_uniform.default, tensors(*case))


def test_compiles_without_a_graph_break():
    compiled = torch.compile(lambda s, p: philox_uniform(5, s, p, 0, 1) * 2, fullgraph=True, backend="aot_eager")
    samples, positions = torch.arange(3), torch.arange(4)
    assert torch.equal(compiled(samples, positions), 2 * reference(5, samples, positions, 0, 1))


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, None), (None, 1), (1, 1)])
def test_vmap(in_dims):
    samples, positions = torch.arange(9).view(3, 3), torch.arange(100, 109).view(3, 3)
    arguments = [t if dim is not None else t[0] for t, dim in zip((samples, positions), in_dims, strict=True)]
    result = torch.func.vmap(lambda s, p: philox_uniform(5, s, p, 1, 1), in_dims)(*arguments)
    for i in range(3):
        rows = [t if dim is None else t.select(dim, i) for t, dim in zip(arguments, in_dims, strict=True)]
        assert torch.equal(result[i], reference(5, *rows, 1, 1))


def test_is_declared_not_differentiable():
    from fastgen.ops.registry import OPS

    assert OPS["philox_uniform"].not_differentiable
    assert not philox_uniform(0, torch.arange(2), torch.arange(2), 0, 0).requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 1 << 63}, ValueError, "seed must .*, got 9223372036854775808"),
        ({"channel": -1}, ValueError, "channel must .*, got -1"),
        ({"draw": 1 << 16}, ValueError, "draw must .*, got 65536"),
        ({"samples": torch.zeros(2)}, TypeError, "samples must be .*, got torch.float32"),
        (
            {"positions": torch.zeros(2, 2, dtype=torch.int64)},
            ValueError,
            r"positions must have one dimension, got shape \(2, 2\)",
        ),
        (
            {"positions": torch.zeros(2, dtype=torch.int64, device="meta")},
            ValueError,
            "positions must be on the device of samples, cpu, got meta",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    right = {"seed": 0, "samples": torch.arange(2), "positions": torch.arange(2), "channel": 0, "draw": 0}
    with pytest.raises(error, match=message):
        philox_uniform(**(right | change))


@pytest.mark.needs_extension
@pytest.mark.parametrize(("channel", "draw"), [(-1, 0), (0, 1 << 16)])
def test_the_raw_op_refuses_what_would_collide(channel, draw):
    with pytest.raises(RuntimeError, match="at least 0 and less than 65536"):
        torch.ops.fastgen.philox_uniform(0, torch.arange(2), torch.arange(2), channel, draw)
