"""``fastgen verify``: a trained run, or a network of one's own in a Python file, is tried out."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Literal

from torch import nn
from tyro.conf import Positional

from fastgen.generate import Report, verify
from fastgen.generate.heads import Head, from_config
from fastgen.models.autoregressive.base import AutoregressiveModel
from fastgen.training.run import load_run


@dataclass(frozen=True)
class VerifyConfig:
    network: Positional[str]
    """Run directory that `fastgen train` wrote; or FILE.py:NAME: a module, or a function or class that makes one
    without arguments. The file is yours, and is executed."""
    event_shape: tuple[int, ...] | None = None
    """FILE.py: the shape of one event, as in `--event-shape 1 28 28`."""
    head: Literal["categorical", "bernoulli", "discretized_logistic_mixture", "gaussian"] = "categorical"
    """FILE.py: how the output is read."""
    levels: int | None = None
    """FILE.py: levels of a discrete head."""
    mixtures: int | None = None
    """FILE.py: mixtures of a head that has some."""
    to_input: Literal["index", "float", "unit", "symmetric"] | None = None
    """FILE.py: how a level is fed to the network; without it integers or floats, whichever it takes."""
    order: Literal["raster", "raster-subpixel", "time", "time-channels", "features"] = "raster"
    """FILE.py: the order of generation."""
    predicts: Literal["same", "next"] = "same"
    """FILE.py: the element that output t scores: t, or t + 1."""
    start: float = 0.0
    """FILE.py: the input before the first element, with `--predicts next`."""
    adapter: str | None = None
    """FILE.py: a function in it that brings the module's output to a layout that the head reads."""
    context: str | None = None
    """FILE.py: an example context in it, or a function that makes one without arguments."""
    samples: int = 4
    """Samples that are compared with the textbook loop's."""
    seed: int = 0
    threads: int | None = None
    """CPU threads of the sampler; without it what torch takes."""
    plot: Path | None = None
    """A PNG to write: what one output sees, and the outputs that leak."""

    def __post_init__(self) -> None:
        if self.plot is not None and not self.plot.absolute().parent.is_dir():
            raise FileNotFoundError(f"plot must be a file in a folder that exists, got {self.plot}")
        given = [f.name for f in fields(self) if f.name not in _OF_ANY and getattr(self, f.name) != f.default]
        if not self.in_file and given:
            raise ValueError(
                f"network must be FILE.py:NAME where {', '.join(given)} is given, got {self.network!r}; a run has its "
                "own"
            )
        if self.in_file and self.event_shape is None:
            raise ValueError("event_shape must be given for a network in a file, such as --event-shape 1 28 28")

    @property
    def in_file(self) -> bool:
        """Whether the network is in a Python file."""
        return ".py:" in self.network or self.network.endswith(".py")


_OF_ANY = ("network", "samples", "seed", "threads", "plot")
"""Options that a run takes, too."""


def verify_network(config: VerifyConfig) -> Report:
    """Returns the report; see ``fastgen.generate.verify``.

    Raises:
        ValueError: an argument is wrong, the file does not run or has no such name, or the run is of a flow.
        OSError: the file or the run cannot be read.
        CompileError: the network cannot be called.
    """
    tried = {"samples": config.samples, "seed": config.seed, "threads": config.threads}
    if not config.in_file:
        model = load_run(Path(config.network)).model
        if not isinstance(model, AutoregressiveModel):
            raise ValueError(f"network must be autoregressive, got a {model.name}, which is a {model.family}")
        return verify(
            model, model.config.event_shape, model.head, model.order, model.predicts,
            example_context=model.example_context(), **tried,
        )  # fmt: skip
    assert config.event_shape is not None
    file, _, name = config.network.rpartition(".py:")
    if not name or not file:
        raise ValueError(f"network must be FILE.py:NAME, got {config.network!r}")
    head = _head(config)
    found = _executed(Path(f"{file}.py"))
    module = _named(found, "network", name, made=True)
    if not isinstance(module, nn.Module):
        raise ValueError(f"network must name a torch.nn.Module, or what makes one, got a {type(module).__name__}")
    adapter = None if config.adapter is None else _named(found, "adapter", config.adapter)
    context = None if config.context is None else _named(found, "context", config.context, made=True)
    return verify(
        module, config.event_shape, head, config.order, config.predicts, adapter, context, config.start, **tried
    )


def _head(config: VerifyConfig) -> Head:
    given = {"levels": config.levels, "mixtures": config.mixtures, "to_input": config.to_input}
    return from_config({"kind": config.head} | {name: value for name, value in given.items() if value is not None})


def _executed(path: Path) -> ModuleType:
    """Executes a Python file; it can import what lies beside it."""
    if not path.is_file():
        raise FileNotFoundError(f"network must be in a file that exists, got {path}")
    name = f"_verified_{path.stem}"  # of no library
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"network must be in a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises
        raise ValueError(f"{path} must run, got {_told(error, path)}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def _told(error: Exception, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{type(error).__name__}{f' in line {lines[-1]}' if lines else ''}: {error}"


def _named(found: ModuleType, argument: str, name: str, made: bool = False):
    """Returns what the file calls so; where ``made``, a function or class is called."""
    if not hasattr(found, name):
        raise ValueError(f"{argument} must name something in {found.__file__}, got {name!r}")
    value = getattr(found, name)
    if not made or isinstance(value, nn.Module) or not callable(value):
        return value
    try:
        return value()
    except Exception as error:  # whatever it raises
        raise ValueError(f"{argument} must be made by {name}(), got {_told(error, Path(found.__file__))}") from error
