from __future__ import annotations

import pytest
import torch

from fastgen.models import create_model
from fastgen.models.flows import RealNVPConfig
from fastgen.nn import AffineCoupling, Squeeze2d
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestRealNVP(FlowLaws):
    name = "realnvp"
    noise = 0.1
    small = {"levels": 0, "hidden": 8, "couplings": 2}
    cases = {
        "vector": small | CONTEXT | {"event_shape": (5,)},
        "image": {"hidden": 4, "event_shape": (1, 4, 2)},
        "context": small | CONTEXT | {"hidden": 4, "event_shape": (2, 2, 3), "scales": 1, "batch_norm": False},
    }
    plane = small
    discrete = {"hidden": 4, "event_shape": (1, 4, 4), "scales": 1} | CONTEXT

    def test_compiles_without_a_break(self, case):
        if case == "image":
            pytest.skip('"context" has the same networks, 4 of them instead of 10; compiling all takes minutes')
        super().test_compiles_without_a_break(case)

    def test_the_layers_are_those_of_the_paper(self):
        """Three couplings by checkerboard, a squeeze, three by channels; four by checkerboard at the last scale."""
        model = create_model("realnvp", preset="tiny", levels=0, event_shape=(1, 8, 8), scales=3, batch_norm=False)
        (flow,) = model.flow.layers
        *earlier, last = ([*scale.layers] for scale in flow.scales)
        assert flow.shapes == [(4, 4, 4), (8, 2, 2), (4, 2, 2)]
        for layers in earlier:
            assert [type(layer) for layer in layers] == [AffineCoupling] * 3 + [Squeeze2d] + [AffineCoupling] * 3
            assert [layer.mask is None for layer in layers[:3] + layers[4:]] == [False] * 3 + [True] * 3
            assert [layer.swap for layer in layers[4:]] == [False, True, False]
        assert [layer.mask[0, 0, 0].item() for layer in last] == [True, False, True, False]
        widths = [layers[0].net.last.in_channels for layers in (*earlier, last)]
        assert widths == [16, 32, 64]
        assert all(layers[4].net.last.in_channels == 2 * width for layers, width in zip(earlier, widths, strict=False))

    @torch.no_grad()
    def test_it_begins_as_a_normalisation(self):
        """Couplings begin as the identity, so the first batch leaves every scale with mean 0 and variance 1."""
        torch.manual_seed(0)
        model = create_model("realnvp", preset="tiny", levels=0, event_shape=(2, 4, 4), scales=1)
        z, _ = model(5 + 3 * torch.randn(100, 2, 4, 4))
        variance, mean = torch.var_mean(z.double().unflatten(1, (2, 16)), (0, 2), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        epsilon = model.flow.layers[0].scales[0].layers[1].epsilon
        torch.testing.assert_close(variance, torch.ones_like(variance), rtol=0, atol=4 * epsilon)

    @torch.no_grad()
    def test_levels_go_through_the_logit(self):
        model = self.make(self.cases["image"])
        x, _ = self.data(model, 3)
        p = 0.05 + 0.9 * x
        logit, log_det = torch.logit(p), (0.9 / (p * (1 - p))).log().flatten(1).sum(1)
        z, rest = model.flow.layers[1](logit)
        for mine, wanted in zip(model(x), (z, rest + log_det), strict=True):
            torch.testing.assert_close(mine, wanted)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"event_shape": (1, 6, 8)}, r"event_shape must have a height .* multiples of 4 .*, got \(1, 6, 8\)"),
            ({"event_shape": (1,)}, r"event_shape must be \(channels, height, width\) .*, got \(1,\)"),
            ({"event_shape": (8, 8)}, r"event_shape must be \(channels, height, width\) .*, got \(8, 8\)"),
            ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ],
    )
    def test_a_config_that_cannot_be_is_refused(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            RealNVPConfig(**{"event_shape": (1, 8, 8), "scales": 3} | wrong)
