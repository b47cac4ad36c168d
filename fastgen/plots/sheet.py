"""Images laid out on a sheet."""

from __future__ import annotations

from math import ceil, sqrt
from pathlib import Path

import numpy as np
from torch import Tensor

BACKGROUND = 255


def to_pixels(levels: Tensor, count: int) -> np.ndarray:
    """Levels ``[N, C, H, W]`` with C = 1 or 3 to uint8 ``[N, H, W, 3]``: level 0 is black, level ``count - 1`` full."""
    scaled = (levels.double() * 255 / (count - 1)).round().byte().cpu()
    return scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def arrange(pixels: np.ndarray, columns: int | None = None, scale: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 ``[N, H, W, 3]`` as one picture, row by row; nearly square by default, small images enlarged."""
    count, height, width, _ = pixels.shape
    columns = columns or ceil(sqrt(count))
    scale = scale or max(1, 48 // max(height, width))
    rows = ceil(count / columns)
    tall, wide = height * scale + gap, width * scale + gap
    sheet = np.full((rows * tall + gap, columns * wide + gap, 3), BACKGROUND, np.uint8)
    for i, image in enumerate(pixels.repeat(scale, axis=1).repeat(scale, axis=2)):
        top, left = (i // columns) * tall + gap, (i % columns) * wide + gap
        sheet[top : top + height * scale, left : left + width * scale] = image
    return sheet


def save_sheet(path: Path, levels: Tensor, count: int, columns: int | None = None) -> None:
    """Writes levels ``[N, C, H, W]`` as a PNG sheet."""
    from PIL import Image

    Image.fromarray(arrange(to_pixels(levels, count), columns)).save(path)


def save_panels(path: Path, panels: dict[str, Tensor], count: int, title: str) -> None:
    """Sheets of levels ``[N, C, H, W]`` side by side, each under its caption, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 4.9), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=12)
    for axis, (caption, levels) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axis.imshow(arrange(to_pixels(levels, count), gap=6), interpolation="none")
        axis.set_title(caption, fontsize=11)
        axis.axis("off")
    figure.savefig(path)
