"""Where in a network an error was raised: the layer and the line of the user's code."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path

import torch
from torch import nn

_INSIDE = tuple(str(Path(folder).parent) for folder in (torch.__file__, Path(__file__).parent))
"""PyTorch, and the code that traces."""


def where_raised(error: BaseException, network: nn.Module) -> str:
    """Returns ``, at LAYER, File "...", line ..., in ...`` and the code of the user's last frame; "" without one."""
    names = {id(part): name.removeprefix("module").removeprefix(".") for name, part in network.named_modules()}
    chain = [error, error.__cause__, error.__context__]
    for raised in [e for e in chain if e is not None]:
        layer, place = "", ""
        for frame, line in traceback.walk_tb(raised.__traceback__):
            name = names.get(id(frame.f_locals.get("self")))
            layer = name or layer
            file = frame.f_code.co_filename
            if not file.startswith(_INSIDE) and "<" not in file:
                code = linecache.getline(file, line).strip()
                place = f'File "{file}", line {line}, in {frame.f_code.co_name} `{code}`'
        if place:
            return f", at {layer or 'forward'}, {place}"
    return ""
