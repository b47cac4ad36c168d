from __future__ import annotations

import torch

from fastgen.nn import InvertibleResidual
from tests.models.flows.laws import CONTEXT, FlowLaws
from tests.models.flows.residual import EXACT, IMAGE, VECTOR, check_the_bound, trained, two_moons


class TestIResNet(FlowLaws):
    """The laws of an exact density hold for ``log_det="exact"``; what holds of the series comes after."""

    name = "i_resnet"
    cases = {"vector": VECTOR | CONTEXT, "image": IMAGE | {"dense_blocks": 0}}
    plane = VECTOR | {"event_shape": (2,)}
    discrete = cases["image"]


def test_the_series_is_within_its_bound_of_the_exact_density_and_converges_to_it():
    model = trained("i_resnet", 60, exact_features=0)
    check_the_bound(model)
    x = two_moons(64, 1)
    exact = trained("i_resnet", 0, **EXACT)
    exact.load_state_dict(model.state_dict())
    errors = []
    with torch.no_grad():
        expected = exact.eval().log_prob(x)
        blocks = [module for module in model.modules() if isinstance(module, InvertibleResidual)]
        lipschitz = model.config.coefficient ** len(blocks[0].net.layers)
        for terms in (1, 5, 40):
            for block in blocks:
                block.trace, block.terms = "exact", terms
            errors.append((model.log_prob(x) - expected).abs().max().item())
            bound = len(blocks) * 2 * lipschitz ** (terms + 1) / ((terms + 1) * (1 - lipschitz))
            assert errors[-1] <= bound + 1e-4
    assert errors[0] > 10 * errors[2]
