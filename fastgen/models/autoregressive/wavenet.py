"""WaveNet (van den Oord et al. 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.generate.heads import Categorical, DiscretizedLogisticMixture
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.models.base import ModelConfig
from fastgen.models.context import Condition, Context
from fastgen.models.registry import register
from fastgen.nn import CausalConv1d, GatedResidualBlock1d


@dataclass(frozen=True)
class WaveNetConfig(ModelConfig):
    """The default is the paper's: 30 layers, dilations 1 to 512 three times, 256 mu-law levels, at 16 kHz."""

    event_shape: tuple[int, ...] = (16000,)
    """(T,): the length that training windows and samples have unless another is asked for; the network takes any."""
    output: str = "categorical"
    """"categorical": a softmax over the levels; "mixture": a mixture of discretized logistics on the levels."""
    mixtures: int = 10
    cycles: int = 3
    layers_per_cycle: int = 10
    """Layer i of a cycle has dilation 2 ** i; the dilations restart with each cycle."""
    kernel_size: int = 2
    residual_channels: int = 64
    gate_channels: int = 128
    """Both halves together: half for tanh, half for the sigmoid."""
    skip_channels: int = 256
    head_channels: int = 256
    classes: int = 0
    """Number of labels (speakers, digits) that the context "class" takes; 0: none."""
    vector: int = 0
    """Length of the context "vector", a global condition; 0: none."""
    frames: int = 0
    """Channels of the context "frames" [N, frames, F], a local condition; 0: none."""
    upsampling: tuple[int, ...] = ()
    """A frame lasts their product in samples; with learned upsampling, strides of its transposed convolutions."""
    learned_upsampling: bool = True
    """Upsample by transposed convolutions; otherwise repeat each frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.event_shape) != 1:
            raise ValueError(f"event_shape must be (length,), got {self.event_shape}")
        if self.output not in ("categorical", "mixture"):
            raise ValueError(f"output must be 'categorical' or 'mixture', got {self.output!r}")
        self.at_least(1, "mixtures", "cycles", "layers_per_cycle", "kernel_size")
        self.at_least(1, "residual_channels", "gate_channels", "skip_channels", "head_channels")
        self.at_least(0, "classes", "vector", "frames")
        if self.gate_channels % 2:
            raise ValueError(f"gate_channels must be even, got {self.gate_channels}")
        if bool(self.frames) != bool(self.upsampling) or any(stride < 1 for stride in self.upsampling):
            raise ValueError(
                f"upsampling must be a tuple of positive factors with frames={self.frames}, got {self.upsampling}"
            )

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsampling)

    @property
    def dilations(self) -> list[int]:
        return [2**layer for _ in range(self.cycles) for layer in range(self.layers_per_cycle)]

    @property
    def receptive_field(self) -> int:
        """Number of samples before it that a sample's distribution depends on."""
        return 2 + (self.kernel_size - 1) * sum(self.dilations)


class FirstConv1d(nn.Module):
    """Causal convolution of width 2 over one-hot samples, as a lookup: ``h[t] = A[x[t - 1]] + B[x[t - 2]] + bias``."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.taps = nn.Embedding(levels, 2 * channels)
        self.bias = nn.Parameter(torch.zeros(channels, 1))
        nn.init.normal_(self.taps.weight, std=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        newer, older = self.taps(x).transpose(1, 2).chunk(2, dim=1)
        length = x.shape[1]
        return F.pad(newer, (1, 0))[:, :, :length] + F.pad(older, (2, 0))[:, :, :length] + self.bias


@register(
    "wavenet",
    presets={
        "tiny": {
            "event_shape": (2000,),
            "cycles": 2,
            "layers_per_cycle": 8,
            "residual_channels": 24,
            "gate_channels": 48,
            "skip_channels": 48,
            "head_channels": 64,
        },
    },
)
class WaveNet(AutoregressiveModel):
    """WaveNet: dilated causal convolutions with gated units, residual and skip connections.

    ``forward(x, context=None)`` takes x int64 [N, T] (categorical output) or float [N, T] in [-1, 1] (mixture
    output), of any length T, and returns the logits [N, levels, T] or the mixture's parameters [N, 3 M, T]: position
    t scores sample t from the samples before it. The shift by one is inside: the first convolution, of width 2, sees
    x[t - 1] and x[t - 2]. Before the first sample there is nothing: a tap that would read there adds zero (a one-hot
    vector without a one, not the silence level), in training as in sampling.

    Context: "class" int64 [N] and "vector" float [N, D] are global conditions; "frames" float [N, C, F] with ``F *
    hop >= T`` is a local one, frame ``t // hop`` (and with learned upsampling its neighbours) conditioning sample t.

    Raises:
        ValueError: a context other than the config's, or too few frames.
    """

    Config = WaveNetConfig
    config: WaveNetConfig

    def __init__(self, config: WaveNetConfig | None = None) -> None:
        super().__init__(config)
        config = self.config
        channels = config.residual_channels
        self._head: Categorical | DiscretizedLogisticMixture
        self.first: FirstConv1d | CausalConv1d
        if config.output == "categorical":
            self._head = Categorical(config.levels, to_input="index")
            self.first = FirstConv1d(config.levels, channels)
        else:
            self._head = DiscretizedLogisticMixture(config.mixtures, levels=config.levels, channels=1)
            self.first = CausalConv1d(1, channels, 2)
        self.class_embedding = nn.Embedding(config.classes, channels) if config.classes else None
        self.upsampling = self._make_upsampling() if config.frames and config.learned_upsampling else None
        last = len(config.dilations) - 1
        self.blocks = nn.ModuleList(
            GatedResidualBlock1d(
                channels,
                config.gate_channels,
                config.skip_channels,
                config.kernel_size,
                dilation,
                global_channels=(channels if config.classes else 0) + config.vector,
                local_channels=config.frames,
                last=layer == last,
            )
            for layer, dilation in enumerate(config.dilations)
        )
        self.hidden = nn.Conv1d(config.skip_channels, config.head_channels, 1)
        outputs = config.levels if config.output == "categorical" else 3 * config.mixtures
        self.output = nn.Conv1d(config.head_channels, outputs, 1)

    @property
    def head(self) -> Categorical | DiscretizedLogisticMixture:
        return self._head

    @property
    def order(self) -> str:
        return "time"

    @property
    def conditions(self) -> dict[str, Condition]:
        config = self.config
        conditions = {"class": Condition(classes=config.classes)} if config.classes else {}
        if config.vector:
            conditions["vector"] = Condition((config.vector,))
        if config.frames:
            conditions["frames"] = Condition((config.frames, None))
        return conditions

    def context_sizes(self, event_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
        sizes = super().context_sizes(event_shape)
        if self.config.frames:
            length = (event_shape or self.config.event_shape)[0]
            sizes["frames"] = (self.config.frames, -(-length // self.config.hop))
        return sizes

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        x, context = self.inputs(x, context)
        global_condition = self._global_condition(context)
        local_condition = self._local_condition(context, x.shape[-1])
        h = self.first(x) if self.config.output == "categorical" else self.first(F.pad(x[:, None, :-1], (1, 0)))
        skips = None
        for block in self.blocks:
            h, skip = block(h, global_condition, local_condition)
            skips = skip if skips is None else skips + skip
        return self.output(F.relu(self.hidden(F.relu(skips))))  # type: ignore[arg-type]  # there is a block

    def _global_condition(self, context: dict[str, Tensor]) -> Tensor | None:
        parts = [] if self.class_embedding is None else [self.class_embedding(context["class"])]
        if "vector" in context:
            parts.append(context["vector"])
        return torch.cat(parts, dim=1) if parts else None

    def _local_condition(self, context: dict[str, Tensor], length: int) -> Tensor | None:
        if "frames" not in context:
            return None
        frames, hop = context["frames"], self.config.hop
        if frames.shape[2] * hop < length:
            wanted = -(-length // hop)
            raise ValueError(
                f"context 'frames' must have at least {wanted} frames for {length} samples, got {frames.shape[2]}"
            )
        if self.upsampling is not None:
            return self.upsampling(frames)[:, :, :length]
        return frames[:, :, :, None].expand(-1, -1, -1, hop).flatten(2)[:, :, :length]

    def _make_upsampling(self) -> nn.Sequential:
        """Transposed convolutions, each seeing a frame and its two neighbours."""
        channels = self.config.frames
        return nn.Sequential(
            *(nn.ConvTranspose1d(channels, channels, 3 * s, stride=s, padding=s) for s in self.config.upsampling)
        )
