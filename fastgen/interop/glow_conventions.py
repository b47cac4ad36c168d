"""Conventions of public implementations of Glow: names, orders, signs and factors of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

HALVES = ("interleaved", "shift_first", "scale_first")
ALLOWED = {
    "squeeze": ("channel_major", "corner_major"),
    "kept": ("first", "second"),
    "coupling": HALVES,
    "split_prior": HALVES,
    "top_prior": HALVES,
    "norm_scale": ("log", "linear"),
    "norm_bias": ("added", "subtracted", "after_scale"),
    "padding": ("zeros", "ones"),
    "condition": ("class", "vector"),
}


@dataclass(frozen=True)
class GlowNames:
    """Names in the state dict; {scale} and {step} count from 0.

    {layer} counts squeezes, steps and splits in one list, each scale having one squeeze, its steps and one split.
    """

    step: str
    """Prefix of the names of a step; those down to ``last_log_scale`` follow it."""
    norm_bias: str
    norm_scale: str
    weight: str
    """Weight of the 1x1 convolution, where it is not factored."""
    permutation: str
    """The matrix P of P L U; then L, U, and the logarithm and sign of U's diagonal."""
    lower: str
    upper: str
    log_s: str
    sign: str
    first: str
    """The convolutions of the conditioner network."""
    second: str
    last: str
    last_log_scale: str
    split: str
    """The convolution of the prior at the end of a scale."""
    split_log_scale: str
    top: str
    """The convolution of the prior of the last latents."""
    top_log_scale: str
    condition: str | None = None
    """The linear map of a class or vector that is added to the prior of the last latents; None if there is none."""
    condition_log_scale: str | None = None
    first_norm: tuple[str, str] | None = None
    """Bias and scale of the actnorm after it; None if the convolution has a bias instead."""
    second_norm: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()
    """Endings of names that are ignored."""


@dataclass(frozen=True)
class GlowConventions:
    """The meaning of the parameters of a checkpoint.

    Raises:
        ValueError: a value that is not among those named here.
    """

    names: GlowNames
    squeeze: str = "channel_major"
    """Channels after a squeeze: "channel_major", the four corners of channel 0, then of channel 1, row by row; or
    "corner_major", all channels of the upper left corner, of the upper right, of the lower left, of the lower right."""
    kept: str = "first"
    """The half that a coupling keeps and that goes on to the next scale: "first" or "second"."""
    coupling: str = "interleaved"
    """Outputs of the network: "interleaved" shift, scale, shift, ...; "shift_first", all shifts and then all scales;
    or "scale_first"."""
    split_prior: str = "interleaved"
    """Likewise, for mean and scale of the latents that leave at the end of a scale."""
    top_prior: str = "shift_first"
    """Likewise, for the last latents."""
    shift_before_scale: bool = True
    """The coupling is (x + shift) scale; the other way has no counterpart in ``fastgen.models.Glow``."""
    sigmoid_offset: float = 2.0
    """The coupling's scale is sigmoid(h + sigmoid_offset)."""
    norm_scale: str = "log"
    """ActNorm has the logarithm of its scale, "log", or the scale, of any sign, "linear"."""
    norm_bias: str = "added"
    """ActNorm is s (x + b), "added"; s (x - b), "subtracted"; or s x + b, "after_scale"."""
    norm_log_factor: float = 1.0
    """ActNorm's scale is exp(norm_log_factor logs), if it has the logarithm."""
    log_scale_factor: float = 3.0
    """Convolutions that begin at zero are multiplied with exp(log_scale_factor logs)."""
    padding: str = "zeros"
    """Padding of the convolutions that begin at zero: "zeros" or "ones"."""
    condition: str = "class"
    """Input of the linear map of a condition: "class", one label, or "vector", such as several attributes at once."""
    data_offset: float = 0.0
    """Offset subtracted from data in [0, 1) before the flow."""

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
        if not self.shift_before_scale:
            raise ValueError(
                "shift_before_scale must be True, as fastgen's Glow adds the shift before it scales, got False"
            )


ROSINALITY = GlowConventions(
    GlowNames(
        step="blocks.{scale}.flows.{step}.",
        norm_bias="actnorm.loc",
        norm_scale="actnorm.scale",
        weight="invconv.weight",
        permutation="invconv.w_p",
        lower="invconv.w_l",
        upper="invconv.w_u",
        log_s="invconv.w_s",
        sign="invconv.s_sign",
        first="coupling.net.0",
        second="coupling.net.2",
        last="coupling.net.4.conv",
        last_log_scale="coupling.net.4.scale",
        split="blocks.{scale}.prior.conv",
        split_log_scale="blocks.{scale}.prior.scale",
        top="blocks.{scale}.prior.conv",
        top_log_scale="blocks.{scale}.prior.scale",
        ignored=("actnorm.initialized", "invconv.u_mask", "invconv.l_mask", "invconv.l_eye"),
    ),
    coupling="scale_first",
    split_prior="shift_first",
    norm_scale="linear",
    padding="ones",
    data_offset=0.5,
)
"""github.com/rosinality/glow-pytorch."""

CHAIYUJIN = GlowConventions(
    GlowNames(
        step="flow.layers.{layer}.",
        norm_bias="actnorm.bias",
        norm_scale="actnorm.logs",
        weight="invconv.weight",
        permutation="invconv.p",
        lower="invconv.l",
        upper="invconv.u",
        log_s="invconv.log_s",
        sign="invconv.sign_s",
        first="f.0",
        second="f.2",
        last="f.4",
        last_log_scale="f.4.logs",
        split="flow.layers.{layer}.conv",
        split_log_scale="flow.layers.{layer}.conv.logs",
        top="learn_top",
        top_log_scale="learn_top.logs",
        condition="project_ycond",
        condition_log_scale="project_ycond.logs",
        first_norm=("f.0.actnorm.bias", "f.0.actnorm.logs"),
        second_norm=("f.2.actnorm.bias", "f.2.actnorm.logs"),
        ignored=("prior_h", "project_class.weight", "project_class.bias", "project_class.logs"),
    ),
)
"""github.com/chaiyujin/glow-pytorch, with ``y_condition`` or without; the classifier that is trained beside it is left.

Its LU factors are saved without P and the signs: give those.
"""

Y0AST = GlowConventions(
    GlowNames(
        step="flow.layers.{layer}.",
        norm_bias="actnorm.bias",
        norm_scale="actnorm.logs",
        weight="invconv.weight",
        permutation="invconv.p",
        lower="invconv.lower",
        upper="invconv.upper",
        log_s="invconv.log_s",
        sign="invconv.sign_s",
        first="block.0.conv",
        second="block.2.conv",
        last="block.4.conv",
        last_log_scale="block.4.logs",
        split="flow.layers.{layer}.conv.conv",
        split_log_scale="flow.layers.{layer}.conv.logs",
        top="learn_top_fn.conv",
        top_log_scale="learn_top_fn.logs",
        condition="project_ycond.linear",
        condition_log_scale="project_ycond.logs",
        first_norm=("block.0.actnorm.bias", "block.0.actnorm.logs"),
        second_norm=("block.2.actnorm.bias", "block.2.actnorm.logs"),
        ignored=("prior_h", "project_class.linear.weight", "project_class.linear.bias", "project_class.logs"),
    ),
    data_offset=0.5,
)
"""github.com/y0ast/Glow-PyTorch, with ``y_condition`` or without; the classifier that is trained beside it is left."""
