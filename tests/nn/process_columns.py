"""Columns of ``docs/pytorch.md`` that need several processes: two of them try every layer, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.nn.layer_cases import CASES, Case
from tests.nn.pytorch_columns import assert_near, bound, gradients

WORLD = 2


def _part(case: Case, rank: int) -> tuple[Tensor, ...]:
    inputs, count = case.inputs(8), len(case.shapes)
    return (*(t.chunk(WORLD)[rank] for t in inputs[:count]), *inputs[count:])


def _try(case: Case, rank: int, spread: Callable[[nn.Module], nn.Module]) -> None:
    """In training mode every process has its part of the batch; gradients are the mean over the processes'."""
    module = bound(case).train()
    if not any(p.requires_grad for p in module.parameters()):
        return
    count = len(list(module.parameters()))
    plain = []
    for other in range(WORLD):  # all processes compute all parts: layers may talk to each other
        alone = bound(case).train()
        plain.append(gradients(alone, alone, _part(case, other)))
    found = gradients(spread(module), module, _part(case, rank))
    found = [t.full_tensor() if isinstance(t, DTensor) else t for t in found]
    mean = [sum(column) / WORLD for column in zip(*plain, strict=True)][-count:]
    assert_near([*found[:-count], *found[-count:]], [*plain[rank][:-count], *mean])


def _ddp(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


def _fsdp(module: nn.Module) -> nn.Module:
    return fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))


class ProcessColumn(NamedTuple):
    """What a process makes of the module, and what the page says of it."""

    spread: Callable[[nn.Module], nn.Module]
    says: str


PROCESS_COLUMNS: dict[str, ProcessColumn] = {
    "DDP": ProcessColumn(_ddp, "`DistributedDataParallel` in two processes (gloo), each with half of the batch"),
    "FSDP2": ProcessColumn(_fsdp, "`fully_shard` over two processes on the CPU, likewise"),
}


def _work(rank: int, folder: str, names: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=120)
    )
    failures = {}
    for name in names:
        for column, (spread, _) in PROCESS_COLUMNS.items():
            try:
                _try(CASES[name], rank, spread)
            except Exception as error:  # of any kind: it is the cell's
                failures[name, column] = f"{type(error).__name__}: {error}"
    torch.save(failures, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def failures_in_two_processes(folder: str, names: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """(layer, column) -> the error of the first process that met one."""
    mp.spawn(_work, (folder, names), WORLD)
    parts = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]
    return {**parts[1], **parts[0]}
