from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.nn import CausalConv1d, GatedResidualBlock1d


@settings(deadline=None, max_examples=30)
@given(
    kernel=st.integers(1, 4),
    dilation=st.integers(1, 5),
    length=st.integers(1, 17),
    groups=st.sampled_from([1, 2]),
    n=st.integers(1, 3),
)
def test_forward_is_the_formula_and_step_is_forward(kernel, dilation, length, groups, n):
    layer = CausalConv1d(4, 6, kernel, dilation=dilation, groups=groups).double()
    x = torch.randn(n, 4, length, dtype=torch.float64)
    wanted = layer.bias[:, None].expand(n, 6, length).clone()
    for t in range(length):
        for k in range(kernel):
            at = t - (kernel - 1 - k) * dilation
            if at >= 0:
                parts = x[:, :, at].reshape(n, groups, -1)
                weight = layer.weight[:, :, k].reshape(groups, 6 // groups, -1)
                wanted[:, :, t] += torch.einsum("ngi,goi->ngo", parts, weight).flatten(1)
    torch.testing.assert_close(layer(x), wanted)
    state, steps = layer.initial_state(n), []
    for t in range(length):
        y, state = layer.step(x[:, :, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 2), wanted)


@pytest.mark.parametrize("conditions", [(0, 0), (3, 0), (0, 2), (3, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_block_step_is_forward(conditions, last):
    global_channels, local_channels = conditions
    block = GatedResidualBlock1d(
        5, 8, 7, 2, 3, global_channels=global_channels, local_channels=local_channels, last=last
    ).double()
    x = torch.randn(2, 5, 11, dtype=torch.float64)
    vector = torch.randn(2, 3, dtype=torch.float64) if global_channels else None
    local = torch.randn(2, 2, 11, dtype=torch.float64) if local_channels else None
    residual, skip = block(x, vector, local)
    state = block.initial_state(2)
    for t in range(11):
        r, s, state = block.step(x[:, :, t], state, vector, None if local is None else local[:, :, t])
        torch.testing.assert_close(r, residual[:, :, t])
        torch.testing.assert_close(s, skip[:, :, t])


def test_the_first_half_of_the_gate_is_the_tanh():
    block = GatedResidualBlock1d(2, 4, 2, 1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.conv.bias.copy_(torch.tensor([0.5, 0.5, 30.0, 30.0]))
        block.skip.weight.copy_(torch.eye(2)[:, :, None])
        _, skip = block(torch.zeros(1, 2, 1))
    torch.testing.assert_close(skip, torch.full((1, 2, 1), 0.5).tanh())


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: CausalConv1d(1, 1, 0), "kernel_size must be an integer of at least 1, got 0"),
        (lambda: CausalConv1d(1, 1, 2, dilation=0), "dilation must be an integer of at least 1, got 0"),
        (
            lambda: GatedResidualBlock1d(1, 3, 1),
            r"gate_channels must be even \(half for tanh, half for the sigmoid\), got 3",
        ),
    ],
)
def test_errors_name_the_argument(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize("name", ["conv", "residual", "skip"])
def test_hooks_of_the_blocks_layers_run(name):
    block = GatedResidualBlock1d(3, 4, 2)
    x = torch.randn(2, 3, 9)
    wanted = block(x)
    seen = []
    handle = getattr(block, name).register_forward_hook(lambda layer, given, result: seen.append(result.shape))
    for with_hook, without in zip(block(x), wanted, strict=True):
        torch.testing.assert_close(with_hook, without)
    assert seen == [(2, {"conv": 4, "residual": 3, "skip": 2}[name], 9)]
    handle.remove()


@pytest.mark.parametrize("last", [False, True])
def test_the_block_in_one_op_is_its_layers_and_so_are_its_gradients(last):
    block = GatedResidualBlock1d(3, 8, 5, 3, 4, global_channels=2, last=last).double()
    x = torch.randn(2, 3, 40, dtype=torch.float64, requires_grad=True)
    vector = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def everything():
        outputs = block(x, vector)
        given = (x, vector, *block.parameters())
        return *outputs, *torch.autograd.grad([(o * o.detach().cos()).sum() for o in outputs], given)

    in_one = everything()
    handle = block.conv.register_forward_hook(lambda *_: None)
    for mine, theirs in zip(in_one, everything(), strict=True):
        torch.testing.assert_close(mine, theirs)
    handle.remove()
