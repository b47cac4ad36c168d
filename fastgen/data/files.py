"""Files of one kind in a folder, with the split and the class that their sub-folders say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastgen.data.dataset import SPLITS, partition

_SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class Files:
    """``paths`` sorted; ``labels`` None, or indices into ``classes``; ``parts`` maps a split to indices of paths."""

    paths: list[Path]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    parts: dict[str, np.ndarray]


def visible(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, but hidden ones and those in hidden folders."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def find(folder: Path, suffixes: tuple[str, ...]) -> Files:
    """Every file below ``folder`` that is ``visible`` and whose suffix is one of ``suffixes`` (lower case).

    ``folder/file`` has no class, ``folder/<class>/file`` has one. If ``folder`` has a sub-folder ``train``, then the
    first level names the split (train, validation or val, test) and the class comes below it; a split that is absent
    is cut from train. Otherwise the files are split 80 / 10 / 10, always in the same way. Raises ValueError for a
    folder without such files, or where some files have a class and others none.
    """
    paths = sorted(path for path in visible(folder) if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"no {' or '.join(suffixes)} file in {folder}")
    places = [path.relative_to(folder).parts[:-1] for path in paths]
    declared = any(place[:1] == ("train",) for place in places)
    if declared:
        named = [_SPLIT_FOLDERS.get(place[0] if place else "") for place in places]
        if None in named:
            stray = paths[named.index(None)]
            raise ValueError(f"{stray} is in no split: beside a train folder only {', '.join(_SPLIT_FOLDERS)} are read")
        parts = _parts(np.array(named))
        places = [place[1:] for place in places]
    else:
        parts = partition(len(paths))
    classes = tuple(sorted({place[0] for place in places if place}))
    if classes and not all(places):
        stray = paths[next(i for i, place in enumerate(places) if not place)]
        raise ValueError(
            f"{stray} has no class, other files lie in class folders ({', '.join(classes[:5])}): move it or them"
        )
    labels = np.array([classes.index(place[0]) for place in places]) if classes else None
    return Files(paths, labels, classes, parts)


def _parts(named: np.ndarray) -> dict[str, np.ndarray]:
    parts = {name: np.flatnonzero(named == name) for name in SPLITS}
    absent = [name for name in SPLITS if not len(parts[name])]
    if absent:
        cut = partition(len(parts["train"]))
        train = parts["train"]
        kept = np.concatenate([cut[name] for name in SPLITS if name not in absent])
        parts |= {name: train[cut[name]] for name in absent} | {"train": train[np.sort(kept)]}
    return parts
