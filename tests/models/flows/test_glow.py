from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from fastgen.models import create_model
from fastgen.models.flows import GlowConfig
from tests.models.flows.laws import CONTEXT, FlowLaws


class TestGlow(FlowLaws):
    name = "glow"
    noise = 0.05
    small = {"levels": 0, "hidden": 8, "steps": 1}
    cases = {
        "plain": small
        | {"event_shape": (3, 2, 2), "scales": 1, "coupling": "additive", "lu": False}
        | {"learn_top": False, "edge_bias": False},
        "context": small | CONTEXT | {"event_shape": (1, 4, 4)},
    }
    discrete = {"event_shape": (1, 4, 4), "hidden": 8, "steps": 1}

    @torch.no_grad()
    def test_the_priors_are_normal_densities(self):
        """With steps that do nothing the density is that of the split and the top prior, written out."""
        model = self.make(self.cases["context"] | {"coupling": "additive"})
        for name, parameter in model.named_parameters():
            if ".net." in name and ".layer.net." not in name:
                parameter.zero_()
        first, second = (scale.layers for scale in model.flow.scales)
        for layer in (first[1], second[1]):
            torch.nn.init.zeros_(layer.act_norm.bias)
            torch.nn.init.zeros_(layer.act_norm.log_scale)
            for parameter in (layer.lower, layer.upper, layer.log_s):
                torch.nn.init.zeros_(parameter)
            layer.sign.fill_(1)
            layer.permutation.copy_(torch.arange(layer.channels))
        x, context = self.data(model, 3)
        encoded = model.encode(context, len(context["class"]))
        kept, done = torch.nn.functional.pixel_unshuffle(x, 2).chunk(2, 1)
        split, top = first[-1].layer.net(kept, encoded), second[-1].layer.net(torch.zeros(3, 8, 1, 1).double(), encoded)
        wanted = Normal(split[:, ::2], split[:, 1::2].exp()).log_prob(done).flatten(1).sum(1)
        mean, log_scale = top.chunk(2, 1)
        rest = torch.nn.functional.pixel_unshuffle(kept, 2)
        wanted += Normal(mean, log_scale.exp()).log_prob(rest).flatten(1).sum(1)
        torch.testing.assert_close(model.log_prob(x, context), wanted)

    @torch.no_grad()
    @pytest.mark.parametrize("coupling", ["affine", "additive"])
    def test_the_first_batch_leaves_whitened(self, coupling):
        """Couplings begin as a factor of the second half, priors as the identity: the last ActNorm decides."""
        torch.manual_seed(0)
        model = create_model("glow", preset="tiny", levels=0, event_shape=(1, 4, 4), scales=1, coupling=coupling)
        z, _ = model(5 + 3 * torch.randn(200, 1, 4, 4))
        kept, changed = z.double().unflatten(1, (4, 4)).tensor_split(2, 1)
        z = torch.cat((kept, changed * (1 + math.exp(-2)) if coupling == "affine" else changed), 1)
        variance, mean = torch.var_mean(z, (0, 2), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
        torch.testing.assert_close(variance.sum().item(), 4.0, rtol=1e-4, atol=0)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"event_shape": (1, 6, 8)}, r"event_shape must have a height .* multiples of 4 .*, got \(1, 6, 8\)"),
            ({"event_shape": (8,)}, r"event_shape must be \(channels, height, width\), got \(8,\)"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"coupling": "cubic"}, "coupling must be one of 'affine', 'additive', got 'cubic'"),
        ],
    )
    def test_a_config_that_cannot_be_is_refused(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            GlowConfig(**{"event_shape": (1, 8, 8), "scales": 2} | wrong)
