"""A folder of audio files, and the fixed mu-law windows that recordings of any source are cut into."""

from __future__ import annotations

import re
from math import gcd
from pathlib import Path

import numpy as np
import torch

from fastgen.data import mulaw
from fastgen.data.dataset import SPLITS, Dataset, Split
from fastgen.data.files import find

SUFFIXES = (".wav", ".flac", ".ogg", ".aiff", ".aif", ".mp3")
_SHORTENED = re.compile(r"(?:data|SSND) : (\d+) \(should be (\d+)\)")
"""Pattern of libsndfile's report that a WAV or AIFF file declares more bytes of samples than it has."""
_UNKNOWN_SIZE = 0x7FFFF000
"""Programs that write to a pipe declare this many bytes or more, since they do not know the number."""


def load_audio_folder(folder: Path, window: int, sample_rate: int | None = None, levels: int = 256) -> Dataset:
    """Every audio file (WAV, FLAC, OGG, AIFF, MP3) below ``folder``, mixed to one channel; sub-folders as in
    ``files.find``.

    ``sample_rate``: every file is resampled to it; without it all files must have one rate. Raises ValueError for a
    file that cannot be read, is cut short, is empty or holds NaN or infinity, and for rates that differ.
    """
    files = find(folder, SUFFIXES)
    recordings = [read(path) for path in files.paths]
    if sample_rate is None:
        sample_rate = recordings[0][1]
        for path, (_, rate) in zip(files.paths, recordings, strict=True):
            if rate != sample_rate:
                raise ValueError(
                    f"sample rates differ ({sample_rate} Hz and {rate} Hz, {path}): give a sample rate to resample to"
                )
    samples = [resample(wave, rate, sample_rate) for wave, rate in recordings]
    return windowed(folder.name, samples, files.labels, files.classes, files.parts, sample_rate, window, levels)


def windowed(
    name: str,
    recordings: list[np.ndarray],
    labels: np.ndarray | None,
    classes: tuple[str, ...],
    parts: dict[str, np.ndarray],
    sample_rate: int,
    window: int,
    levels: int,
) -> Dataset:
    """Recordings (floats in [-1, 1]) as a dataset of mu-law windows; ``parts`` splits recordings, never one recording.

    A recording gives as many whole windows as fit, one after the other from its start; what is left over is dropped.
    One that is shorter than a window is padded with silence at its end.
    """
    if window < 1:
        raise ValueError(f"window must be a positive number of samples, got {window}")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be from 2 to 256, got {levels}")
    splits = {}
    for split in SPLITS:
        cut = [_windows(mulaw.encode(recordings[i], levels), window, mulaw.silence(levels)) for i in parts[split]]
        owners = np.repeat(parts[split], [len(c) for c in cut])
        chosen = None if labels is None else torch.from_numpy(labels[owners].astype(np.int64))
        splits[split] = Split(torch.from_numpy(np.concatenate(cut)), chosen)
    return Dataset(name, "audio", (window,), levels, splits, classes, sample_rate)


def read(path: Path) -> tuple[np.ndarray, int]:
    """The samples of an audio file, mixed to one channel, float32 in [-1, 1], and its sample rate in Hz."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            declared, shortened = file.frames, _SHORTENED.search(file.extra_info)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from error
    if len(samples) < declared:
        raise ValueError(f"{path} is cut short: it declares {declared} samples and holds {len(samples)}")
    if shortened is not None and int(shortened[2]) < int(shortened[1]) < _UNKNOWN_SIZE:
        raise ValueError(f"{path} is cut short: it declares {shortened[1]} bytes of samples and holds {shortened[2]}")
    if not len(samples):
        raise ValueError(f"{path} holds no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} holds samples that are not finite")
    return samples.mean(axis=1), rate


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """``samples`` at ``rate`` Hz as samples at ``target`` Hz (polyphase, anti-aliased)."""
    from scipy.signal import resample_poly

    if target < 1:
        raise ValueError(f"sample_rate must be a positive number of Hz, got {target}")
    if rate == target:
        return samples
    common = gcd(rate, target)
    return resample_poly(samples, target // common, rate // common)


def _windows(recording: np.ndarray, window: int, silence: int) -> np.ndarray:
    whole = len(recording) // window
    if whole:
        return recording[: whole * window].reshape(whole, window)
    return np.pad(recording, (0, window - len(recording)), constant_values=silence)[None]
