"""Real vectors: tables of numbers, standardised by their training split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgen.data.dataset import Dataset, Split, partition
from fastgen.data.standardization import Standardization


def vectors(
    name: str,
    values: np.ndarray,
    parts: dict[str, np.ndarray],
    columns: tuple[str, ...] = (),
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    log_density: Callable[[Tensor], Tensor] | None = None,
    standardization: Standardization | None = None,
) -> Dataset:
    """Float values ``[N, D]`` as a dataset of standardised vectors; ``parts`` maps a split to its rows.

    Mean and scale (the standard deviation) of a column are those of its training rows, unless ``standardization`` is
    given. ``columns`` names the columns; without it they are x0, x1, ... Raises ValueError naming the column and the
    row (from 0 on) of a value that is not finite, and naming a column that is constant on the training split or spreads
    over more than float64 holds, or where ``standardization`` is of another number of columns.
    """
    columns = columns or tuple(f"x{i}" for i in range(values.shape[1]))
    if len(wrong := np.argwhere(~np.isfinite(values))):
        row, column = wrong[0]
        raise ValueError(
            f"data {name!r}: numbers must be finite, got {values[row, column]} in row {row}, column "
            f"{columns[column]!r} ({len(wrong)} are not)"
        )
    if standardization is None:
        standardization = _standardization(name, values[parts["train"]].astype(np.float64), columns)
    elif len(standardization.mean) != values.shape[1]:
        raise ValueError(
            f"data {name!r} must have {len(standardization.mean)} columns, as the run standardises, got "
            f"{values.shape[1]}"
        )
    standardised = standardization.apply(torch.from_numpy(values))
    codes = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    splits = {
        part: Split(standardised[rows], None if codes is None else codes[rows])
        for part, rows in ((part, torch.from_numpy(rows)) for part, rows in parts.items())
    }
    return Dataset(
        name,
        "vector",
        (values.shape[1],),
        0,
        splits,
        classes,
        columns=columns,
        standardization=standardization,
        log_density=log_density,
    )


def _standardization(name: str, train: np.ndarray, columns: tuple[str, ...]) -> Standardization:
    """Mean and standard deviation of each column of ``train``, also where squares would over- or underflow."""
    largest = np.abs(train).max(0)
    power = np.exp2(np.frexp(largest)[1] - 1.0)  # dividing by a power of two rounds nothing
    scaled = train / power
    mean, scale = power * scaled.mean(0), power * scaled.std(0)
    if len(constant := np.flatnonzero(np.ptp(scaled, axis=0) == 0)):
        raise ValueError(
            f"data {name!r}: column {columns[constant[0]]!r} is {train[0, constant[0]]:g} in every training row; "
            "a constant has no density: remove it"
        )
    limits = np.finfo(np.float64)
    if len(wide := np.flatnonzero((np.ptp(train / 2, axis=0) >= limits.max / 2) | (scale < limits.tiny))):
        raise ValueError(
            f"data {name!r}: column {columns[wide[0]]!r} holds numbers up to {largest[wide[0]]:g}, whose spread is "
            "outside the range of float64: rescale it"
        )
    return Standardization(tuple(mean.tolist()), tuple(scale.tolist()))


def load_csv(path: Path, label: str = "labels", standardization: Standardization | None = None) -> Dataset:
    """A table of comma-separated numbers, one example a line, split 80 / 10 / 10, always in the same way.

    A first line that holds anything but numbers names the columns; the column called ``label``, if there is one, is
    the class of the example, any text. Raises ValueError that names the line and the column of what is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    named = bool(lines) and any(_number(cell) is None for cell in lines[0][1])
    header = tuple(cell.strip() for cell in lines.pop(0)[1]) if named else ()
    if not lines:
        raise ValueError(f"{path} holds no line of numbers")
    width = len(header) or len(lines[0][1])
    names = header or tuple(f"x{i}" for i in range(width))
    kept = [i for i in range(width) if not named or names[i] != label]
    if not kept:
        raise ValueError(f"{path} has no column of numbers")
    values = np.empty((len(lines), len(kept)))
    for row, (line, cells) in enumerate(lines):
        if len(cells) != width:
            raise ValueError(f"{path}, line {line}: a line must have {width} values, as those before, got {len(cells)}")
        for place, i in enumerate(kept):
            number = _number(cells[i])
            if number is None or not isfinite(number):
                raise ValueError(
                    f"{path}, line {line}, column {i + 1} ({names[i]}): a cell must be a finite number, got "
                    f"{cells[i]!r}"
                )
            values[row, place] = number
    labels = None
    classes: tuple[str, ...] = ()
    if len(kept) < width:
        texts = [cells[names.index(label)].strip() for _, cells in lines]
        classes = tuple(sorted(set(texts)))
        labels = np.array([classes.index(text) for text in texts])
    columns = tuple(names[i] for i in kept) if named else ()
    return vectors(path.stem, values, partition(len(values)), columns, labels, classes, standardization=standardization)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
