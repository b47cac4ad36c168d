"""Residual Flow (Chen, Behrmann, Duvenaud & Jacobsen 2019, "Residual flows for invertible generative modeling")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.registry import register
from fastgen.nn import (
    ActNorm,
    Flatten,
    FlowSequential,
    Inverse,
    InvertibleResidual,
    LipschitzConvNet,
    LipschitzMLP,
    Logit,
    MultiScale,
    Squeeze2d,
)
from fastgen.nn.residual.lipschitz import LipschitzLayer


@dataclass(frozen=True)
class ResidualFlowConfig(FlowConfig):
    """The defaults are those of the authors' CIFAR-10 model of 3.28 bits a dimension.

    They search the norms anew after every update; here 5 power iterations follow each.
    """

    event_shape: tuple[int, ...] = (3, 32, 32)
    levels: int = 256
    scales: int = 3
    """Scales of an image: blocks, then a squeeze after all but the last."""
    blocks: int = 16
    """Blocks of each scale, or of vectors."""
    kernels: tuple[int, ...] = (3, 1, 3)
    """Kernel sizes of the convolutions of an image's block."""
    hidden: int = 512
    """Channels between them, or width of the hidden layers of a vector's block."""
    hidden_layers: int = 4
    """Hidden layers of a vector's block."""
    dense_blocks: int = 4
    """Blocks of two hidden layers on the numbers of an image's last scale, at the end."""
    dense_hidden: int = 128
    activation: str = "lip_swish"
    """"lip_swish", "elu", "softplus" or "tanh"; see ``LipschitzMLP``."""
    act_norm: bool = True
    """An ``ActNorm`` before the first block and after each."""
    factor_out: bool = False
    """Half of the channels are final after each scale."""
    alpha: float = 0.05
    """``alpha`` of the ``Logit`` of data with levels; 0 takes them as they are."""
    coefficient: float = 0.98
    """Bound of each layer's Lipschitz constant, less than 1."""
    norm: float = 2.0
    """Exponent of the norm that the bound is in: 1, 2 or infinity."""
    iterations: int | None = 5
    """Iterations of the power method in each training step; None searches until the norm is right to 0.05 %."""
    log_det: str = "russian-roulette"
    """"exact", "power-series" or "russian-roulette"; see ``InvertibleResidual``, also for what follows."""
    trace: str = "hutchinson"
    gradient: str = "neumann"
    terms: int = 5
    exact_terms: int = 2
    exact_terms_evaluation: int = 20
    exact_features: int = 2
    distribution: str = "poisson"
    parameter: float | None = None
    tolerance: float = 1e-5
    max_iterations: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "scales", "blocks", "hidden", "hidden_layers", "dense_hidden")
        self.at_least(0, "dense_blocks")
        if not 0 < self.coefficient < 1:
            raise ValueError(f"coefficient must be greater than 0 and less than 1, got {self.coefficient}")
        if len(self.event_shape) == 1:
            return
        self.check_image()
        if not 0 <= self.alpha < 0.5:
            raise ValueError(f"alpha must be at least 0 and less than 0.5, got {self.alpha}")
        factor = 2 ** (self.scales - 1)
        if any(size % factor for size in self.event_shape[1:]):
            raise ValueError(
                f"event_shape must have a height and a width that are multiples of {factor} (scales={self.scales} "
                f"halve them {self.scales - 1} times), got {self.event_shape}"
            )


TINY = {"event_shape": (2,), "levels": 0, "blocks": 16, "hidden": 32, "hidden_layers": 2}
TINY_IMAGE = {
    "event_shape": (1, 8, 8),
    "levels": 17,
    "scales": 2,
    "blocks": 4,
    "hidden": 32,
    "dense_blocks": 2,
    "dense_hidden": 64,
}


@register("residual_flow", presets={"tiny": TINY, "tiny_image": TINY_IMAGE})
class ResidualFlow(FlowModel):
    """Residual Flow: blocks x + g(x) with a g of Lipschitz constant below 1, ActNorm between, the log-determinant
    estimated without bias.

    On images g is a small convolutional network, with dense blocks at the end; on vectors a multilayer perceptron. A
    class or vector in the context moves the input of each block's first activation.

    ``forward(x, context=None, seed=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]), ``inverse`` maps back;
    the seed is of the estimate. In eval mode the weights' norms are right to 0.05 %, 20 terms of the series are always
    there, and the log-determinant in the plane is exact. For levels x is (v + u) / levels.

    Example:
        >>> model = ResidualFlow(ResidualFlowConfig((3,), levels=0, blocks=2, hidden=16)).eval()
        >>> x = torch.randn(5, 3)
        >>> torch.equal(model.log_prob(x, seed=1), model.log_prob(x, seed=1))
        True
    """

    Config = ResidualFlowConfig
    config: ResidualFlowConfig

    def __init__(self, config: ResidualFlowConfig | None = None) -> None:
        super().__init__(config)
        self.flow = self._vector_flow() if len(self.config.event_shape) == 1 else self._image_flow()

    def estimates(self) -> tuple[str, ...]:
        return super().estimates() if prod(self.config.event_shape) > self.config.exact_features else ()

    def refresh(self) -> None:
        """Computes the norms of the weights anew, to the precision that they have in eval mode."""
        for layer in self.modules():
            if isinstance(layer, LipschitzLayer):
                layer.refresh()

    def _vector_flow(self) -> nn.Module:
        config, features = self.config, self.config.event_shape[0]
        layers = self._norm(features)
        for i in range(config.blocks):
            layers += self._dense_block(features, [config.hidden] * config.hidden_layers, pre_activation=i > 0)
        return FlowSequential(*layers)

    def _image_flow(self) -> nn.Module:
        config = self.config
        scales, shapes = [], []
        channels, height, width = config.event_shape
        for scale in range(config.scales):
            layers: list[nn.Module] = []
            if scale == 0:
                layers += [Logit(config.alpha)] if config.levels and config.alpha else []
                layers += self._norm(channels)
            for i in range(config.blocks):
                layers += self._conv_block(channels, (height, width), pre_activation=scale + i > 0)
            if scale < config.scales - 1:
                layers.append(Squeeze2d())
                channels, height, width = 4 * channels, height // 2, width // 2
            elif config.dense_blocks:
                shape = (channels, height, width)
                layers.append(Flatten(shape))
                for _ in range(config.dense_blocks):
                    layers += self._dense_block(prod(shape), [config.dense_hidden] * 2, pre_activation=True)
                layers.append(Inverse(Flatten(shape)))
            scales.append(FlowSequential(*layers))
            shapes.append((channels, height, width))
            channels = channels // 2 if config.factor_out else channels
        return MultiScale(scales, shapes) if config.factor_out else FlowSequential(*scales, Flatten(shapes[-1]))

    def _norm(self, channels: int) -> list[nn.Module]:
        return [ActNorm(channels)] if self.config.act_norm else []

    def _dense_block(self, features: int, hidden: list[int], pre_activation: bool) -> list[nn.Module]:
        net = LipschitzMLP(features, hidden, pre_activation=pre_activation, **self._of_nets())
        return [self._residual(net), *self._norm(features)]

    def _conv_block(self, channels: int, size: tuple[int, int], pre_activation: bool) -> list[nn.Module]:
        config = self.config
        net = LipschitzConvNet(
            channels, size, config.hidden, config.kernels, pre_activation=pre_activation, **self._of_nets()
        )
        return [self._residual(net), *self._norm(channels)]

    def _of_nets(self) -> dict:
        names = ("activation", "norm", "coefficient", "iterations", "context_features")
        return {name: getattr(self.config, name) for name in names}

    def _residual(self, net: nn.Module) -> InvertibleResidual:
        names = ["log_det", "trace", "gradient", "terms", "exact_terms", "exact_terms_evaluation"]
        names += ["exact_features", "distribution", "parameter", "tolerance", "max_iterations"]
        return InvertibleResidual(net, **{name: getattr(self.config, name) for name in names})
