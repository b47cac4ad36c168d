"""A folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fastgen.data.dataset import Dataset, Split, quantise
from fastgen.data.files import find

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_DEEP_MODES = ("I;16", "I;16L", "I;16B")
_GREY_MODES = ("1", "L", "LA", *_DEEP_MODES)
_PALETTE_MODES = ("P", "PA")

Colour = Literal["auto", "grey", "rgb"]


def load_image_folder(folder: Path, size: int | None = None, colour: Colour = "auto", levels: int = 256) -> Dataset:
    """Every image below ``folder``; sub-folders as in ``files.find``.

    ``size``: the shorter side is resized to it and the centre cropped to a square; without it all images must have
    one size. ``colour``: "grey" gives (1, H, W), "rgb" (3, H, W), "auto" grey if every file is grey, one with a palette
    of greys included. Images are turned as their EXIF orientation says. Of 16-bit pixels the upper eight bits are read;
    transparency is dropped. Raises ValueError for an unreadable image, pixels of 32
    bits, or sizes that differ.
    """
    files = find(folder, SUFFIXES)
    if size is not None and size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size}")
    grey = colour == "grey" or (colour == "auto" and all(_is_grey(path) for path in files.paths))
    pixels = [_read(path, size, "L" if grey else "RGB") for path in files.paths]
    for path, image in zip(files.paths, pixels, strict=True):
        if image.shape != pixels[0].shape:
            sizes = " and ".join(f"{i.shape[1]} x {i.shape[0]}" for i in (pixels[0], image))
            raise ValueError(f"images of different sizes ({sizes}, {path}): give a size to resize and crop them to")
    stacked = (
        quantise(np.stack(pixels), levels)
        .reshape(len(pixels), *pixels[0].shape[:2], -1)
        .permute(0, 3, 1, 2)
        .contiguous()
    )
    labels = None if files.labels is None else torch.from_numpy(files.labels)
    splits = {name: Split(stacked[i], None if labels is None else labels[i]) for name, i in files.parts.items()}
    return Dataset(folder.name, "image", tuple(stacked.shape[1:]), levels, splits, files.classes)


def square(image, size: int):
    """A PIL image with its shorter side resized to ``size`` and its centre cropped to ``size`` x ``size``."""
    from PIL import ImageOps

    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), method=3)


def _is_grey(path: Path) -> bool:
    """Returns whether the file stores greys: by its mode, or by the colours of its palette that its pixels have."""
    with _opened(path) as image:
        if image.mode not in _PALETTE_MODES:
            return image.mode in _GREY_MODES
        colours = np.asarray(image.convert("RGB"))
    return bool((colours == colours[..., :1]).all())


def _read(path: Path, size: int | None, mode: str) -> np.ndarray:
    from PIL import ImageOps

    with _opened(path) as image:
        image.load()  # which turns a TIFF by itself
        converted = _eight_bits(ImageOps.exif_transpose(image)).convert(mode)
    return np.asarray(converted if size is None else square(converted, size))


def _eight_bits(image):
    from PIL import Image

    if image.mode in ("I", "F"):
        raise ValueError("pixels must have 8 or 16 bits, got 32")
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode in _DEEP_MODES else image


@contextmanager
def _opened(path: Path) -> Iterator:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
