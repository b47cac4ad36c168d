"""FFJORD (Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud 2019, "FFJORD: free-form continuous dynamics")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from fastgen.models.base import batch_parts
from fastgen.models.context import Context
from fastgen.models.flows.base import FlowConfig, FlowModel
from fastgen.models.registry import register
from fastgen.nn import (
    ActNorm,
    ContinuousFlow,
    ConvNetField,
    FlowBatchNorm,
    FlowSequential,
    Logit,
    MLPField,
    MultiScale,
    Squeeze2d,
)
from fastgen.nn.continuous.continuous_flow import GRADIENTS

_EXACT = 64
"""Numbers in a vector at most whose trace is exact in eval mode, unless the config says otherwise."""
NORMS = ("none", "act", "batch")


@dataclass(frozen=True)
class FFJORDConfig(FlowConfig):
    """The defaults are the paper's for 2-d toys; the preset "image" has those for CIFAR-10."""

    hidden: tuple[int, ...] = (64, 64, 64)
    """Widths of the hidden layers of a field, of images their channels."""
    flows: int = 1
    """Continuous flows in a row; of images, at each resolution of each scale."""
    scales: int = 2
    """Scales of images; but for the last, each ends by halving the resolution, and half of its channels are final."""
    kernel: int = 3
    """Kernel size of the convolutions of images."""
    activation: str = "tanh"
    """Activation of the fields: "tanh", "softplus" or "swish"."""
    time: str = "concat-squash"
    """How the fields depend on the time: "none", "concat" or "concat-squash"."""
    end_time: float = 0.5
    """End of each flow, which begins at 0."""
    norm: str = "none"
    """Before the first flow and after each: "none", "act" (ActNorm) or "batch" (FlowBatchNorm)."""
    trace: str = "rademacher"
    """"rademacher", "gaussian", "hutch++", "exact" or "closed-form"."""
    evaluation_trace: str | None = None
    """Trace in eval mode; None: exact for vectors of at most 64 numbers, else as in training."""
    probes: int = 1
    """Probes of an estimated trace."""
    solver: str = "dopri5"
    """As of ``fastgen.nn.OdeSolver``."""
    rtol: float = 1e-5
    atol: float = 1e-5
    step_size: float | None = None
    """Step size of solvers of fixed steps."""
    max_evaluations: int = 10_000
    """Most evaluations of a field in one solve."""
    gradient: str = "steps"
    """How the gradient is found: "steps", "adjoint" or "autograd"; see ``ContinuousFlow``."""
    kinetic: float = 0.0
    """Weight of the integral of |f|^2 in the loss; the paper's regularizers are those of Finlay et al. 2020."""
    jacobian: float = 0.0
    """Weight of the integral of the Jacobian's squared Frobenius norm, estimated, in the loss."""
    alpha: float = 0.05
    """``alpha`` of the logit that discrete data go through first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "flows", "scales")
        self.at_least(0, "kinetic", "jacobian")
        self.one_of("norm", NORMS)
        self.one_of("gradient", GRADIENTS)
        if not isinstance(self.hidden, tuple) or not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must be a tuple of one width at least, each 1 or more, got {self.hidden}")
        if len(self.event_shape) not in (1, 3):
            raise ValueError(f"event_shape must be (features,) or (channels, height, width), got {self.event_shape}")
        factor = 2 ** (self.scales - 1)
        if any(size % factor for size in self.event_shape[1:]):
            raise ValueError(
                f"event_shape must have a height and a width that are multiples of {factor} (scales={self.scales} "
                f"halve them {self.scales - 1} times), got {self.event_shape}"
            )

    @property
    def regularizers(self) -> tuple[str, ...]:
        return tuple(name for name in ("kinetic", "jacobian") if getattr(self, name))


_IMAGE = {"activation": "softplus", "time": "concat", "end_time": 1.0}


@register(
    "ffjord",
    presets={
        "tiny": {"hidden": (64, 64), "rtol": 1e-4, "atol": 1e-4},
        "image": _IMAGE | {"event_shape": (3, 32, 32), "levels": 256, "flows": 2, "scales": 4},
        "tiny_image": _IMAGE | {"event_shape": (1, 8, 8), "levels": 17, "hidden": (16, 16), "rtol": 1e-3, "atol": 1e-3},
    },
)
class FFJORD(FlowModel):
    """FFJORD: a field is integrated from the data at time 0 to the noise, with the trace of its Jacobian.

    The field of a vector is a multilayer perceptron. An image goes through several scales, as in RealNVP: through
    continuous flows with convolutional fields, a squeeze, and flows again; then half of the channels is final. The last
    scale has no squeeze. Discrete data go through a logit first.

    ``forward(x, context=None)`` maps x [N, *event_shape] to (z [N, D], log_det [N]); ``inverse`` maps back. For levels
    x is (v + u) / levels. An estimated log_det is that of one draw of noise, which ``seed`` decides.

    Example:
        >>> model = FFJORD(FFJORDConfig((3,), hidden=(16,), vector=2))
        >>> model.sample(4, seed=0, context=torch.randn(4, 2)).shape
        torch.Size([4, 3])
    """

    Config = FFJORDConfig
    config: FFJORDConfig

    def __init__(self, config: FFJORDConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        layers: list[nn.Module] = [Logit(config.alpha)] if config.levels else []
        layers += self._norm(config.event_shape[0])
        if len(config.event_shape) == 3:
            self.flow = FlowSequential(*layers, self._image_flow())
        else:
            self.flow = FlowSequential(*layers, *self._flows(config.event_shape[0]))

    def loss(self, batch: Tensor | tuple[Tensor, Context]) -> Tensor:
        """Mean negative ``score`` in nats of a batch, x or (x, context); in training mode with weighted regularizers.

        Divided by D it is the loss of Finlay et al. 2020.
        """
        x, context = batch_parts(batch)
        loss = -self.score(x, context).mean()
        for layer in self._continuous_flows():
            for name, penalty in layer.penalties.items():
                loss = loss + getattr(self.config, name) * penalty.mean()
        return loss

    def progress(self) -> dict[str, float]:
        """Evaluations of the fields in the latest pass: forward, and backward of its gradient."""
        counts = [layer.evaluations for layer in self._continuous_flows()]
        return {
            "evaluations": sum(count.forward for count in counts),
            "backward evaluations": sum(count.backward for count in counts),
        }

    def _continuous_flows(self) -> list[ContinuousFlow]:
        return [layer for layer in self.flow.modules() if isinstance(layer, ContinuousFlow)]

    def _image_flow(self) -> MultiScale:
        (channels, height, width), scales, shapes = self.config.event_shape, [], []
        for _ in range(self.config.scales - 1):
            layers = [*self._flows(channels), Squeeze2d()]
            channels, height, width = 4 * channels, height // 2, width // 2
            scales.append(FlowSequential(*layers, *self._flows(channels)))
            shapes.append((channels, height, width))
            channels //= 2
        scales.append(FlowSequential(*self._flows(channels)))
        return MultiScale(scales, [*shapes, (channels, height, width)])

    def _flows(self, channels: int) -> list[nn.Module]:
        config, layers = self.config, []
        sizes, rest = (channels, *config.hidden, channels), (config.activation, config.time, config.context_features)
        for _ in range(config.flows):
            image = len(config.event_shape) == 3
            field = ConvNetField(sizes, config.kernel, *rest) if image else MLPField(sizes, *rest)
            layers += [self._continuous(field), *self._norm(channels)]
        return layers

    def _continuous(self, field: nn.Module) -> ContinuousFlow:
        config = self.config
        small = len(config.event_shape) == 1 and prod(config.event_shape) <= _EXACT
        return ContinuousFlow(
            field,
            end_time=config.end_time,
            trace=config.trace,
            evaluation_trace=config.evaluation_trace or ("exact" if small else config.trace),
            probes=config.probes,
            solver=config.solver,
            rtol=config.rtol,
            atol=config.atol,
            step_size=config.step_size,
            max_evaluations=config.max_evaluations,
            gradient=config.gradient,
            regularizers=config.regularizers,
        )

    def _norm(self, channels: int) -> list[nn.Module]:
        kind = self.config.norm
        return [] if kind == "none" else [ActNorm(channels) if kind == "act" else FlowBatchNorm(channels)]
