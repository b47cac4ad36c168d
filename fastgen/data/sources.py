"""From what the user names to a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastgen.data.audio import SUFFIXES as AUDIO_SUFFIXES
from fastgen.data.audio import load_audio_folder
from fastgen.data.dataset import Dataset, Description
from fastgen.data.digits import load_digits
from fastgen.data.files import visible
from fastgen.data.images import SUFFIXES as IMAGE_SUFFIXES
from fastgen.data.images import Colour, load_image_folder
from fastgen.data.npz import load_npz
from fastgen.data.standardization import Standardization
from fastgen.data.toys import TOYS, load_toy
from fastgen.data.vectors import load_csv

NAMED = ("digits", *TOYS)
"""Sources that need no file."""


@dataclass(frozen=True)
class DataConfig:
    source: str = "digits"
    """"digits", a 2-d toy (two_moons, eight_gaussians, checkerboard, rings, pinwheel, two_spirals), a folder of images
    or of audio files (WAV, FLAC, OGG, AIFF, MP3), an .npz archive, or a .csv table of numbers."""
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


def load(config: DataConfig, like: Description | None = None) -> Dataset:
    """The dataset that ``config`` describes.

    ``like``: how the same source was read before, by a run that is evaluated or resumed. Vectors are then standardised
    as they were, whatever the table holds by now.

    Raises ValueError or FileNotFoundError that says what is allowed, ValueError too where the source is not ``like``
    it was: in its kind, the shape of an event, levels, classes, sample rate or columns.
    """
    dataset = _load(config, None if like is None else like.standardization)
    if like is not None:
        dataset.description.check_like(like, config.source)
    return dataset


def _load(config: DataConfig, standardization: Standardization | None) -> Dataset:
    if config.source == "digits":
        return load_digits()
    if config.source in TOYS:
        return load_toy(config.source, config.examples, standardization)
    path = Path(config.source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"data source must be one of {', '.join(NAMED)} or an existing folder, .npz or .csv file, got "
            f"{config.source!r}"
        )
    if path.is_dir():
        suffixes = {file.suffix.lower() for file in visible(path)}
        images, audio = suffixes.intersection(IMAGE_SUFFIXES), suffixes.intersection(AUDIO_SUFFIXES)
        if images and audio:
            raise ValueError(
                f"{path} must hold files of one kind, got images ({', '.join(sorted(images))}) and audio files "
                f"({', '.join(sorted(audio))})"
            )
        if not images and not audio:
            raise ValueError(
                f"{path} must hold images ({', '.join(IMAGE_SUFFIXES)}) or audio files ({', '.join(AUDIO_SUFFIXES)}), "
                "got neither"
            )
        if audio:
            return load_audio_folder(path, config.window, config.sample_rate, config.levels)
        return load_image_folder(path, config.size, config.colour, config.levels)
    if path.suffix.lower() == ".npz":
        return load_npz(
            path, config.size, config.colour, config.levels, config.window, config.sample_rate, config.label,
            standardization,
        )  # fmt: skip
    if path.suffix.lower() == ".csv":
        return load_csv(path, config.label, standardization)
    raise ValueError(
        f"data source {path} must be a folder, an .npz or a .csv file, got a {path.suffix or 'plain'} file"
    )
