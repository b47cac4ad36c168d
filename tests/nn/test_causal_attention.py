from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen.nn import CausalAttention


@settings(deadline=None, max_examples=30)
@given(
    heads=st.integers(1, 3),
    strict=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 6)),
    length=st.integers(1, 9),
    n=st.integers(1, 3),
)
def test_forward_is_the_formula_and_step_is_forward(heads, strict, window, length, n):
    attend = CausalAttention(heads, strict=strict, window=window)
    query, key = torch.randn(2, n, length, 4 * heads, dtype=torch.float64)
    value = torch.randn(n, length, 3 * heads, dtype=torch.float64)
    wanted = torch.zeros_like(value)
    for t in range(length):
        end = t if strict else t + 1
        first = 0 if window is None else max(0, end - window)
        for head in range(heads if end > first else 0):
            keys, values = slice(4 * head, 4 * head + 4), slice(3 * head, 3 * head + 3)
            scores = torch.einsum("nc,nsc->ns", query[:, t, keys], key[:, first:end, keys]) / 2
            wanted[:, t, values] = torch.einsum("ns,nse->ne", scores.softmax(-1), value[:, first:end, values])
    torch.testing.assert_close(attend(query, key, value), wanted)
    state, steps = attend.initial_state(query[:, 0], value[:, 0]), []
    for t in range(length):
        y, state = attend.step(query[:, t], key[:, t], value[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), wanted)


def test_the_first_position_of_strict_attention_is_zero_and_has_a_gradient():
    attend = CausalAttention(2, strict=True)
    query, key, value = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(3))
    y = attend(query, key, value)
    assert bool((y[:, 0] == 0).all())
    y.square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (query, key, value))


def test_a_window_bounds_the_state():
    attend = CausalAttention(window=3)
    state = attend.initial_state(torch.zeros(1, 4), torch.zeros(1, 4))
    for _ in range(7):
        _, state = attend.step(*torch.randn(3, 1, 4).unbind(), state)
    assert state.keys.shape[2] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CausalAttention(0), "heads must be an integer of at least 1, got 0"),
        (lambda: CausalAttention(window=0), "window must be an integer of at least 1, got 0"),
        (
            lambda: CausalAttention(3)(*torch.zeros(3, 1, 2, 4).unbind()),
            "query must have channels that 3 heads divide, got 4",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
