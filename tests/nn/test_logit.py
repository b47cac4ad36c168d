from __future__ import annotations

import math

import pytest
import torch

from fastgen.nn import Logit


def test_values_inverse_and_log_determinant():
    layer, x = Logit(0.05), torch.rand(3, 2, 2, dtype=torch.float64)
    y, log_det = layer(x)
    torch.testing.assert_close(y, (0.05 + 0.9 * x).logit())
    back, back_log_det = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_log_det, -log_det)
    for n in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda row: layer(row[None])[0].flatten(), x[n])
        torch.testing.assert_close(jacobian.reshape(4, 4).slogdet()[1], log_det[n])


def test_the_ends_of_the_interval_are_finite_and_half_precision_sums_in_float32():
    y, log_det = Logit(1e-6)(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16))
    assert y.isfinite().all()
    assert log_det.dtype == torch.float32
    torch.testing.assert_close(log_det, torch.tensor([2 * (math.log(1 - 2e-6) - math.log(1e-6 * (1 - 1e-6)))]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_inverse_gives_is_taken(dtype):
    y = torch.linspace(-8, 8, 100, dtype=dtype)[None]
    x, log_det = Logit().inverse(y)
    assert x.amin() < 0
    assert x.amax() > 1
    back, back_log_det = Logit()(x)
    torch.testing.assert_close(back, y, rtol=1e-3, atol=0)
    torch.testing.assert_close(back_log_det, -log_det)


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match=r"alpha must be greater than 0 and less than 0\.5, got 0\.5"):
        Logit(0.5)
    for wrong in ([-0.1, 0.5], [0.5, 1.1], [math.nan, 0.5], [-0.05 / 0.9, 0.5], [math.inf, 0.5]):
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], or less than 0.0555556 .*, got numbers from"):
            Logit()(torch.tensor([wrong]))
