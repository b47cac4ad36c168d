"""From what the user names to a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.data.audio import SUFFIXES as AUDIO_SUFFIXES
from fastgen.data.audio import load_audio_folder
from fastgen.data.dataset import Dataset
from fastgen.data.digits import load_digits
from fastgen.data.files import visible
from fastgen.data.images import SUFFIXES as IMAGE_SUFFIXES
from fastgen.data.images import Colour, load_image_folder
from fastgen.data.npz import load_npz
from fastgen.data.toys import TOYS, load_toy
from fastgen.data.vectors import load_csv

NAMED = ("digits", *TOYS)
"""Sources that need no file."""


@dataclass(frozen=True)
class DataConfig:
    source: str = "digits"
    """"digits", a 2-d toy (two_moons, eight_gaussians, checkerboard, rings, pinwheel, two_spirals), a folder of images
    or of WAV files, an .npz archive, or a .csv table of numbers."""
    size: int | None = None
    """Images: resize the shorter side to this and crop the centre; without it all must have one size."""
    colour: Colour = "auto"
    """Images: grey, rgb, or what the files are."""
    levels: int = 256
    """Number of levels a value is quantised to (digits have 17)."""
    window: int = 2048
    """Audio: number of samples in a training window."""
    sample_rate: int | None = None
    """Audio: resample to this many Hz; without it all must have one rate. An archive that says no rate has this one."""
    label: str = "labels"
    """.npz, .csv: the array or column with the class of each example (labels, speakers, ...)."""
    examples: int = 50_000
    """2-d toys: number of training points."""

    def __post_init__(self) -> None:
        path = Path(self.source).expanduser()
        if self.source not in NAMED and path.exists():  # the run's file then names it wherever it is read from
            object.__setattr__(self, "source", str(path.resolve()))


def load(config: DataConfig) -> Dataset:
    """The dataset that ``config`` describes. Raises ValueError or FileNotFoundError that says what is allowed."""
    if config.source == "digits":
        return load_digits()
    if config.source in TOYS:
        return load_toy(config.source, config.examples)
    path = Path(config.source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"data source {config.source!r} is neither {', '.join(NAMED)} nor an existing folder, .npz or .csv file"
        )
    if path.is_dir():
        suffixes = {file.suffix.lower() for file in visible(path)}
        images, audio = suffixes.intersection(IMAGE_SUFFIXES), suffixes.intersection(AUDIO_SUFFIXES)
        if images and audio:
            raise ValueError(
                f"{path} holds images ({', '.join(sorted(images))}) and WAV files: name a folder with one kind"
            )
        if audio:
            return load_audio_folder(path, config.window, config.sample_rate, config.levels)
        return load_image_folder(path, config.size, config.colour, config.levels)
    if path.suffix.lower() == ".npz":
        return load_npz(
            path, config.size, config.colour, config.levels, config.window, config.sample_rate, config.label
        )
    if path.suffix.lower() == ".csv":
        return load_csv(path, config.label)
    raise ValueError(
        f"data source {path} is a {path.suffix or 'plain'} file; a folder, an .npz or a .csv file is allowed"
    )
