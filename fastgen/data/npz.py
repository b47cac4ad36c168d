"""``.npz`` archives of images, of recordings or of vectors."""

from __future__ import annotations

import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from fastgen.data.audio import resample, windowed
from fastgen.data.dataset import SPLITS, Dataset, Split, partition, quantise
from fastgen.data.images import Colour, square
from fastgen.data.standardization import Standardization
from fastgen.data.vectors import vectors

_MOST_CLASSES = 1 << 16


def load_npz(
    path: Path,
    size: int | None = None,
    colour: Colour = "auto",
    levels: int = 256,
    window: int = 2048,
    sample_rate: int | None = None,
    label: str = "labels",
    standardization: Standardization | None = None,
) -> Dataset:
    """An archive of one of three layouts (no pickled objects).

    Images: ``images`` uint8 ``[N, H, W]`` or ``[N, H, W, C]`` with 1 or 3 channels, or ``train_images`` and
    ``test_images`` (``validation_images`` too, or it is cut from train); optional ``labels`` or ``train_labels``, ...
    integers ``[N]``.

    Speech: ``waveform`` signed integers or float ``[samples]``, ``offsets`` ``[N + 1]``, so that recording i is
    ``waveform[offsets[i]:offsets[i + 1]]``, optional ``labels``, ``speakers``, ``sample_rate``. It is resampled to the
    ``sample_rate`` that is asked for, which an archive that says none is taken to have.
    Integers wider than 16 bits are taken as samples of 16, 24 or 32 bits: the fewest that hold all of them.

    Vectors: ``data`` float ``[N, D]``, or ``train`` and ``test`` (``validation`` too, or cut from train); optional
    ``columns``, their D names, and ``labels`` or ``train_labels``, ... ``standardization``: see ``vectors``.

    Numbers may be of either byte order; long doubles are read as float64.

    ``label`` names the array that says the class of an example. Raises ValueError that says what is missing or wrong.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is damaged, or of another kind")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _native(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz archive: {error}") from error
    if "waveform" in arrays:
        return _speech(path, arrays, window, sample_rate, levels, label)
    if "images" in arrays or "train_images" in arrays:
        return _images(path, arrays, size, colour, levels, label)
    if "data" in arrays or "train" in arrays:
        return _vectors(path, arrays, label, standardization)
    raise ValueError(
        f"{path} must have one of the arrays images, train_images, waveform, data and train, got "
        f"{', '.join(sorted(arrays))}"
    )


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, and in a type that torch has."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _split(
    path: Path, arrays: dict[str, np.ndarray], whole: str, declared: str, label: str
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """The array called ``whole``, or those called ``declared`` after their splits; their labels, and the splits."""
    given = [name for name in SPLITS if declared.format(name) in arrays]
    found = [arrays[name] for name in ([whole] if whole in arrays else map(declared.format, given))]
    if not all(array.ndim for array in found):
        raise ValueError(f"{path}: arrays must have shape [N, ...], got a single number")
    if len(shapes := {array.shape[1:] for array in found}) > 1:
        raise ValueError(
            f"{path}: the splits must have examples of one shape, got {' and '.join(map(str, sorted(shapes)))}"
        )
    if whole in arrays:
        return arrays[whole], arrays.get(label), partition(len(arrays[whole]))
    examples = np.concatenate(found)
    with_labels = all(f"{name}_{label}" in arrays for name in given)
    labels = np.concatenate([arrays[f"{name}_{label}"] for name in given]) if with_labels else None
    ends = np.cumsum([0, *map(len, found)])
    parts = {name: np.arange(ends[i], ends[i + 1]) for i, name in enumerate(given)}
    if absent := set(SPLITS) - set(given):
        cut = partition(len(parts["train"]))
        for name in absent:
            parts[name] = cut[name]
            parts["train"] = np.setdiff1d(parts["train"], cut[name])
    return examples, labels, parts


def _images(
    path: Path, arrays: dict[str, np.ndarray], size: int | None, colour: Colour, levels: int, label: str
) -> Dataset:
    images, labels, parts = _split(path, arrays, "images", "{}_images", label)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{path}: images must be uint8 [N, H, W] or [N, H, W, 1 or 3], got {images.dtype} {images.shape}"
        )
    if not images[:1].size:
        raise ValueError(f"{path}: images must be at least one of at least 1 x 1 pixels, got {images.shape}")
    images = images if images.ndim == 4 else images[..., None]
    if size is not None or (colour == "grey" and images.shape[-1] == 3) or (colour == "rgb" and images.shape[-1] == 1):
        images = _convert(images, size, colour)
    stacked = quantise(images, levels).permute(0, 3, 1, 2).contiguous()
    codes, classes = _classes(path, labels, len(images), arrays, label)
    splits = {
        name: Split(stacked[i], None if codes is None else torch.from_numpy(codes[i])) for name, i in parts.items()
    }
    return Dataset(path.stem, "image", tuple(stacked.shape[1:]), levels, splits, classes)


def _convert(images: np.ndarray, size: int | None, colour: Colour) -> np.ndarray:
    from PIL import Image

    mode = {"grey": "L", "rgb": "RGB", "auto": "L" if images.shape[-1] == 1 else "RGB"}[colour]
    pillow = (Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert(mode) for image in images)
    converted = np.stack([np.asarray(image if size is None else square(image, size)) for image in pillow])
    return converted if converted.ndim == 4 else converted[..., None]


def _speech(
    path: Path, arrays: dict[str, np.ndarray], window: int, sample_rate: int | None, levels: int, label: str
) -> Dataset:
    if "offsets" not in arrays:
        raise ValueError(f"{path} has waveform but not offsets: recording i is waveform[offsets[i]:offsets[i + 1]]")
    waveform, offsets = arrays["waveform"], arrays["offsets"]
    kinds = waveform.dtype, offsets.dtype
    signed = np.issubdtype(kinds[0], np.signedinteger)
    if waveform.ndim != 1 or not (signed or np.issubdtype(kinds[0], np.floating)):
        raise ValueError(
            f"{path}: waveform must be signed integers or floats [samples], got {kinds[0]} {waveform.shape}"
        )
    if offsets.ndim != 1 or not np.issubdtype(kinds[1], np.integer):
        raise ValueError(f"{path}: offsets must be integers [N + 1], got {kinds[1]} {offsets.shape}")
    if not np.isfinite(waveform).all():
        raise ValueError(f"{path}: waveform holds samples that are not finite")
    if len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(waveform) or (np.diff(offsets) < 1).any():
        raise ValueError(f"{path}: offsets must increase from 0 to at most {len(waveform)}, the length of waveform")
    stored = arrays.get("sample_rate", np.array(sample_rate or 0))
    if stored.size != 1 or stored.dtype.kind not in "iuf" or stored < 1:
        raise ValueError(f"{path} does not say its sample rate: give it")
    rate = int(stored.item())
    target = rate if sample_rate is None else sample_rate
    scale = _full_scale(path, waveform) if signed else 1.0
    recordings = [resample(waveform[a:b] / scale, rate, target) for a, b in pairwise(offsets)]
    codes, classes = _classes(path, arrays.get(label), len(recordings), arrays, label)
    return windowed(path.stem, recordings, codes, classes, partition(len(recordings)), target, window, levels)


def _full_scale(path: Path, waveform: np.ndarray) -> float:
    """The integer that stands for an amplitude of 1: of int8 and int16 their largest, of wider integers that of the
    fewest of 16, 24 and 32 bits that hold all samples."""
    if waveform.dtype.itemsize <= 2:
        return -float(np.iinfo(waveform.dtype).min)
    lowest, highest = (int(waveform.min()), int(waveform.max())) if len(waveform) else (0, 0)
    for bits in (16, 24, 32):
        if -(1 << bits - 1) <= lowest and highest < 1 << bits - 1:
            return float(1 << bits - 1)
    raise ValueError(f"{path}: waveform must have samples of at most 32 bits, got integers from {lowest} to {highest}")


def _vectors(path: Path, arrays: dict[str, np.ndarray], label: str, standardization: Standardization | None) -> Dataset:
    values, labels, parts = _split(path, arrays, "data", "{}", label)
    if not np.issubdtype(values.dtype, np.floating) or values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"{path}: data must be float [N, D], got {values.dtype} {values.shape}")
    columns = tuple(map(str, arrays.get("columns", ())))
    if columns and len(columns) != values.shape[1]:
        raise ValueError(f"{path}: columns must have {values.shape[1]} names, one a column, got {len(columns)}")
    codes, classes = _classes(path, labels, len(values), arrays, label)
    return vectors(path.stem, values, parts, columns, codes, classes, standardization=standardization)


def _classes(
    path: Path, labels: np.ndarray | None, count: int, arrays: dict[str, np.ndarray], label: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    if labels is None:
        return None, ()
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"{path}: {label} must be {count} integers from 0 on, got {labels.dtype} {labels.shape}")
    if labels.max() >= _MOST_CLASSES:
        raise ValueError(f"{path}: {label} must be from 0 to {_MOST_CLASSES - 1} at most, got {labels.max()}")
    for key in (f"{label.removesuffix('s')}_names", "names", "classes"):
        if key in arrays and len(arrays[key]) > labels.max():
            return labels.astype(np.int64), tuple(str(name) for name in arrays[key])
    return labels.astype(np.int64), tuple(str(i) for i in range(int(labels.max()) + 1))
