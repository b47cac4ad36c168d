"""Neural spline flows (Durkan, Bekasov, Murray & Papamakarios 2019) of coupling and of autoregressive layers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.flows.dequantized import TINY, DequantizedFlowConfig
from fastgen.models.registry import register
from fastgen.nn import (
    CubicSpline,
    Flatten,
    FlowSequential,
    InvertibleConv1x1,
    MaskedSplineAutoregressive,
    MultiScale,
    RationalQuadraticSpline,
    ResidualConvNet,
    ResidualMLP,
    SplineCoupling,
    SplineTransform,
    Squeeze2d,
)

UNCONDITIONAL = {"rational-quadratic": RationalQuadraticSpline, "cubic": CubicSpline}


@dataclass(frozen=True)
class NeuralSplineConfig(FlowConfig):
    """The defaults are the paper's for POWER; those of couplings and of autoregressive layers are the same."""

    event_shape: tuple[int, ...] = (6,)
    transform: str = "rational-quadratic"
    """"rational-quadratic" or "cubic" (Durkan et al., "Cubic-spline flows", 2019)."""
    steps: int = 10
    """Each is a linear map and a layer of splines; of images for each scale."""
    bins: int = 8
    bound: float = 3.0
    """The splines are the identity outside [-bound, bound]."""
    width: int = 256
    """Hidden units of a conditioner's layer, or its channels."""
    blocks: int = 2
    """Residual blocks of a conditioner."""
    dropout: float = 0.0
    """Within the residual blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("transform", UNCONDITIONAL)
        self.at_least(1, "steps", "bins", "width")
        self.at_least(0, "blocks")
        self.check_dropout()
        if not self.bound > 0:
            raise ValueError(f"bound must be greater than 0, got {self.bound}")


@dataclass(frozen=True)
class NeuralSplineCouplingConfig(NeuralSplineConfig, DequantizedFlowConfig):
    """Events of three dimensions are images, (channels, height, width); others are flattened."""

    unconditional: bool = True
    """Splines on what a coupling keeps, too, with parameters of their own; of vectors."""
    scales: int = 3
    """How often the height and width of images are halved."""
    batch_norm: bool = True
    """Normalise within the residual blocks, for images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "scales")
        if len(self.event_shape) == 3:
            if any(size % 2**self.scales for size in self.event_shape[1:]):
                raise ValueError(
                    f"event_shape must have a height and a width that {2**self.scales} divides, with "
                    f"scales={self.scales}, got {self.event_shape}"
                )
        elif prod(self.event_shape) < 2:
            raise ValueError(f"event_shape must have 2 numbers at least, to be split, got {self.event_shape}")


@register(
    "nsf_coupling",
    presets={
        "tiny": {"event_shape": (2,), "steps": 4, "width": 64},
        "image": {
            "event_shape": (3, 32, 32),
            "levels": 256,
            "steps": 7,
            "bins": 4,
            "width": 96,
            "blocks": 3,
            "dropout": 0.2,
        },
        "tiny_image": {
            "event_shape": (1, 8, 8),
            "levels": 17,
            "steps": 4,
            "bins": 4,
            "width": 32,
            "blocks": 1,
            "scales": 2,
            **TINY,
        },
    },
)
class NeuralSplineCoupling(FlowModel):
    """RQ-NSF (C): linear maps by LU factors and spline couplings in turn.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back, at the same
    cost. Vectors have residual conditioners. Images (channels, height, width) go through ``scales`` scales, as in Glow:
    each squeezes, takes its steps with act norm before the linear maps and residual convolutional conditioners, and is
    done with half of the channels; the preset "image" has the paper's sizes for CIFAR-10. For levels x is
    (v + u) / levels.
    """

    Config = NeuralSplineCouplingConfig
    config: NeuralSplineCouplingConfig

    def __init__(self, config: NeuralSplineCouplingConfig | None = None) -> None:
        super().__init__(config)
        self.flow = self._of_images() if len(self.config.event_shape) == 3 else self._of_vectors()
        self.dequantization = self.config.make_dequantization()

    def _spline(self) -> SplineTransform:
        return SplineTransform(self.config.bins, bound=self.config.bound, kind=self.config.transform)

    def _of_vectors(self) -> nn.Module:
        config, features = self.config, prod(self.config.event_shape)
        layers: list[nn.Module] = [Flatten(config.event_shape)]
        for i in range(config.steps):
            swap, spline = i % 2 == 1, self._spline()
            kept = features // 2 if swap else features - features // 2
            net = ResidualMLP(
                kept,
                (features - kept) * spline.parameters_per_element,
                config.width,
                config.blocks,
                context_features=config.context_features,
                dropout=config.dropout,
            )
            unconditional = None
            if config.unconditional:
                unconditional = UNCONDITIONAL[config.transform]((kept,), config.bins, bound=config.bound)
            layers.append(InvertibleConv1x1(features))
            layers.append(SplineCoupling(net, spline, unconditional=unconditional, swap=swap))
        return FlowSequential(*layers, InvertibleConv1x1(features))

    def _of_images(self) -> nn.Module:
        config = self.config
        channels, height, width = config.event_shape
        scales, shapes = [], []
        for _ in range(config.scales):
            channels, height, width = 4 * channels, height // 2, width // 2
            kept = channels - channels // 2
            layers: list[nn.Module] = [Squeeze2d()]
            for _ in range(config.steps):
                spline = self._spline()
                net = ResidualConvNet(
                    kept,
                    (channels - kept) * spline.parameters_per_element,
                    config.width,
                    config.blocks,
                    context_features=config.context_features,
                    dropout=config.dropout,
                    batch_norm=config.batch_norm,
                )
                layers.append(InvertibleConv1x1(channels, act_norm=True))
                layers.append(SplineCoupling(net, spline))
            scales.append(FlowSequential(*layers, InvertibleConv1x1(channels)))
            shapes.append((channels, height, width))
            channels = kept
        return MultiScale(scales, shapes)


@register(
    "nsf_autoregressive",
    presets={"tiny": {"event_shape": (2,), "steps": 4, "width": 64}},
)
class NeuralSplineAutoregressive(FlowModel):
    """RQ-NSF (AR): linear maps by LU factors and masked autoregressive splines in turn.

    ``forward(x, context=None)`` maps x [N, *event_shape], flattened, to (z [N, D], log_det [N]) in one parallel pass a
    layer, so that the density is cheap. ``inverse`` goes number by number and computes every hidden unit once, in D
    small steps a layer. For levels x is (v + u) / levels.
    """

    Config = NeuralSplineConfig
    config: NeuralSplineConfig

    def __init__(self, config: NeuralSplineConfig | None = None) -> None:
        super().__init__(config)
        config, features = self.config, prod(self.config.event_shape)
        layers: list[nn.Module] = [Flatten(config.event_shape)]
        for _ in range(config.steps):
            layers.append(InvertibleConv1x1(features))
            layers.append(
                MaskedSplineAutoregressive(
                    features,
                    bins=config.bins,
                    bound=config.bound,
                    kind=config.transform,
                    width=config.width,
                    blocks=config.blocks,
                    context_features=config.context_features,
                    dropout=config.dropout,
                )
            )
        self.flow = FlowSequential(*layers, InvertibleConv1x1(features))
