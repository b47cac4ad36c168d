"""The options of ``fastgen train``, and their file in the run directory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastgen.data import DataConfig
from fastgen.fields import check_fields, one_line, parse_object

RUN_TIME = {
    *("output", "steps", "samples", "checkpoint_interval", "resume", "overwrite", "progress"),
    *("devices", "accelerator", "strategy", "threads"),
}
"""Fields that a resumed run may change; the rest decide what is learned and logged."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with gradient clipping, linear warm-up, and decay to ``final_rate`` at the last step."""

    rate: float = 1e-3
    """Learning rate after warm-up."""
    final_rate: float = 1e-5
    """Learning rate at the last step."""
    warmup: int = 100
    """Steps over which the rate rises linearly from 0."""
    decay: Literal["cosine", "exponential", "constant"] = "cosine"
    """Decay of the rate after warm-up; constant keeps it."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: float = 0.999
    """Decay of the exponential moving average of the weights, which is what is evaluated and saved."""


@dataclass(frozen=True)
class TrainConfig:
    output: Path
    """Run directory; it is created."""
    model: str = "pixelcnn_pp"
    """Name of a model; `fastgen info` lists them."""
    preset: str = "tiny"
    """Preset of the model."""
    set: tuple[str, ...] = ()
    """Fields of the model's config, as name=value."""
    conditional: bool = False
    """Condition the model on the labels of the data."""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 2000
    batch_size: int = 32
    """Examples a step, over all devices."""
    seed: int = 0
    """Decides initial weights, data order, dropout and dequantization."""
    log_interval: int = 20
    evaluate_interval: int = 250
    """Steps between evaluations on the validation split."""
    evaluate_examples: int = 512
    """At most this many validation examples; the final test takes the whole test split."""
    checkpoint_interval: int = 250
    """Steps between checkpoints: the most that is lost if the process is killed."""
    samples: int | None = None
    """Samples drawn at the end, 0 for none; without it 64 images, 8 recordings or 4096 vectors."""
    devices: int = 1
    """Processes on this machine, one a device; under torchrun its own number is taken."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = None
    """CPU threads of each process; without it what torch takes."""
    resume: bool = False
    """Continue the run in the output directory from its last checkpoint."""
    overwrite: bool = False
    """Replace the run in the output directory."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "log_interval",
            "evaluate_interval",
            "evaluate_examples",
            "checkpoint_interval",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if (self.samples or 0) < 0 or self.devices < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"samples must be 0 or more, devices and threads 1 or more, got {self.samples}, {self.devices} and "
                f"{self.threads}"
            )
        rate = self.optimizer
        if not rate.rate > 0 or not 0 < rate.final_rate <= rate.rate or rate.warmup < 0:
            raise ValueError(
                f"final_rate must be above 0 and at most rate, and warmup 0 or more, got {rate.final_rate}, "
                f"{rate.rate} and {rate.warmup}"
            )
        if not all(0 <= beta < 1 for beta in rate.betas) or self.seed < 0:
            raise ValueError(f"betas must be from 0 to below 1, and seed 0 or more, got {rate.betas} and {self.seed}")
        if not 0 <= rate.ema < 1 or rate.clip < 0 or rate.weight_decay < 0:
            raise ValueError(
                f"ema must be from 0 to below 1, clip and weight_decay 0 or more, got {rate.ema}, {rate.clip} and "
                f"{rate.weight_decay}"
            )
        if self.resume and self.overwrite:
            raise ValueError(
                "overwrite must be False with resume (one continues the run, the other replaces it), got True"
            )

    @property
    def model_overrides(self) -> dict[str, Any]:
        """``set`` as keyword arguments: values are JSON where they parse as such, otherwise text."""
        return dict(_override(item) for item in self.set)

    def to_json(self) -> str:
        """Everything but what belongs to one invocation only."""
        values = dataclasses.asdict(self)
        for name in ("output", "resume", "overwrite", "progress"):
            del values[name]
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, output: Path) -> TrainConfig:
        """The config that ``to_json`` wrote. Raises ValueError for another text."""
        try:
            values = parse_object(text, "it")
            values["data"] = DataConfig(**check_fields(DataConfig, values.get("data")))
            values["optimizer"] = OptimizerConfig(**check_fields(OptimizerConfig, values.get("optimizer")))
            return cls(**check_fields(cls, values | {"output": output}))
        except ValueError as error:
            raise ValueError(f"what {output} was asked for cannot be read: {one_line(error)}") from error

    def check_resumes(self, stored: TrainConfig) -> None:
        """Raises ValueError if this config would continue ``stored`` as another run."""
        differing = [
            f.name
            for f in dataclasses.fields(self)
            if f.name not in RUN_TIME and getattr(self, f.name) != getattr(stored, f.name)
        ]
        if differing:
            raise ValueError(
                f"the run in {self.output} was started with another {', '.join(differing)}; "
                f"a resumed run may change only {', '.join(sorted(RUN_TIME))}"
            )


def _override(item: str) -> tuple[str, Any]:
    name, equals, value = item.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"set must have items name=value, such as filters=40, got {item!r}")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return name, value
    return name, tuple(parsed) if isinstance(parsed, list) else parsed
