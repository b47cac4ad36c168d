"""NAF (Huang, Krueger, Lacoste & Courville 2018, "Neural autoregressive flows")."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen.models.flows.autoregressive import AutoregressiveConfig, AutoregressiveFlow
from fastgen.models.registry import register
from fastgen.nn import DeepDenseSigmoidal, DeepSigmoidal

TRANSFORMERS: dict[str, type[DeepSigmoidal | DeepDenseSigmoidal]] = {"dsf": DeepSigmoidal, "ddsf": DeepDenseSigmoidal}


@dataclass(frozen=True)
class NAFConfig(AutoregressiveConfig):
    """The defaults are the sizes of the authors' code for MINIBOONE, with the dense transformer.

    Two things differ: act norm follows every layer, where the authors have one affine layer at the end; and the
    conditioner's last layer makes the transformer's parameters, where the authors have a few numbers a feature and one
    more linear map, the same for all features.
    """

    hidden: tuple[int, ...] = (100,)
    activation: str = "elu"
    norm: str = "act_norm"
    transformer: str = "ddsf"
    """The monotone network: "dsf", deep sigmoidal, or "ddsf", deep dense sigmoidal."""
    sigmoids: int = 16
    """Units of every layer of the transformer."""
    depth: int = 1
    """Layers of the transformer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "sigmoids", "depth")
        self.one_of("transformer", TRANSFORMERS)


@register(
    "naf",
    presets={"tiny": {"event_shape": (2,), "layers": 2, "hidden": (64, 64), "sigmoids": 8}},
)
class NAF(AutoregressiveFlow):
    """NAF: autoregressive layers of monotone networks of sigmoids, ``DeepSigmoidal`` or ``DeepDenseSigmoidal``.

    ``forward`` and ``inverse`` are those of ``AutoregressiveFlow``.
    """

    Config = NAFConfig
    config: NAFConfig

    def transform(self) -> DeepSigmoidal | DeepDenseSigmoidal:
        return TRANSFORMERS[self.config.transformer](self.config.sigmoids, self.config.depth)
