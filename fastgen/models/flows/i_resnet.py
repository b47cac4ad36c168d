"""i-ResNet (Behrmann, Grathwohl, Chen, Duvenaud & Jacobsen 2019, "Invertible residual networks")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.residual_flow import TINY, TINY_IMAGE, ResidualFlow, ResidualFlowConfig
from fastgen.models.registry import register


@dataclass(frozen=True)
class IResNetConfig(ResidualFlowConfig):
    """The defaults are those of the authors' CIFAR-10 model of 3.45 bits a dimension."""

    dense_blocks: int = 0
    activation: str = "elu"
    factor_out: bool = True
    alpha: float = 0.0
    coefficient: float = 0.9
    log_det: str = "power-series"


@register(
    "i_resnet",
    presets={"tiny": TINY, "tiny_image": TINY_IMAGE | {"dense_blocks": 0, "alpha": 0.05}},
)
class IResNet(ResidualFlow):
    """i-ResNet: a ``ResidualFlow`` whose log-determinant is a power series cut off, with ELU networks.

    But for data in the plane, in eval mode, its log-probability is an estimate, biased by the terms that are left out:
    at most ``D L^(terms + 1) / ((terms + 1) (1 - L))`` nats a block, L the Lipschitz constant of the block's network.

    ``forward(x, context=None, seed=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]), ``inverse`` maps back.
    For levels x is (v + u) / levels.

    Example:
        >>> model = IResNet(IResNetConfig((1, 8, 8), levels=17, scales=2, blocks=1, hidden=8)).eval()
        >>> model.sample(3, seed=0).shape
        torch.Size([3, 1, 8, 8])
    """

    Config = IResNetConfig
    config: IResNetConfig
