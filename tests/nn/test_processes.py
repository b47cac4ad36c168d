"""Layers whose state a batch sets: all processes of torch.distributed keep the same."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastgen.nn import ActNorm, AffineCoupling, FlowBatchNorm, FlowSequential, InvertibleConv1x1, VectorQuantizer

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")


def flow() -> FlowSequential:
    coupling = AffineCoupling(nn.Conv2d(2, 4, 3, padding=1))
    return FlowSequential(ActNorm(4), InvertibleConv1x1(4, act_norm=True), coupling, FlowBatchNorm(4, affine=True))


def images(rank: int) -> torch.Tensor:
    """Batches of two sizes."""
    return 3 + 2 * torch.randn(8 - 3 * rank, 4, 4, 4, generator=torch.Generator().manual_seed(rank))


def rows(rank: int) -> torch.Tensor:
    """Far from the first codebook, so that most codes stay unused."""
    return 5 + torch.randn(64, 2, generator=torch.Generator().manual_seed(rank))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    alone, trained = ActNorm(4), flow()
    alone(images(rank) if rank else images(rank)[:0])  # one process has no example
    model, first = DistributedDataParallel(trained), None
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(3):
        z, log_det = model(images(rank))
        first = {name: value.clone() for name, value in trained.state_dict().items()} if first is None else first
        optimizer.zero_grad()
        (z.square().sum((1, 2, 3)) / 2 - log_det).mean().backward()
        optimizer.step()
    quantizer = VectorQuantizer(8, 2, decay=0.5)
    for _ in range(8):
        quantizer(rows(rank))
    unused = quantizer.restart_unused(rows(rank), below=1.0, seed=3 + rank)
    quantizer(rows(rank))
    found = {"alone": alone.state_dict(), "first": first, "trained": trained.state_dict()}
    torch.save(found | {"quantizer": quantizer.state_dict(), "unused": unused}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of two processes has."""
    folder = str(tmp_path_factory.mktemp("processes"))
    mp.spawn(work, (folder,), 2)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["alone", "first", "trained", "quantizer"])
def test_all_processes_have_the_same_state(name, found):
    """robustness_actnorm_ddp, reports_vq_restart_ddp"""
    one, two = (of[name] for of in found)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_actnorm_is_set_by_the_batches_of_all_processes(found):
    torch.manual_seed(0)
    ActNorm(4), (layer := ActNorm(4))(torch.cat([images(0), images(1)]))
    assert found[0]["first"]["layers.0.initialized"]
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(found[0]["first"][f"layers.0.{name}"], value)
    (layer := ActNorm(4))(images(1))
    torch.testing.assert_close(found[0]["alone"], layer.state_dict())


def test_flow_batch_norm_averages_over_all_processes(found):
    torch.manual_seed(0)
    ActNorm(4)
    layers, first = flow().layers, found[0]["first"]
    x = torch.cat([images(0), images(1)])
    for layer in layers[:-1]:
        x, _ = layer(x)
    layers[-1](x)
    for name in ("mean", "variance", "batches"):
        torch.testing.assert_close(first[f"layers.3.{name}"], getattr(layers[-1], name), rtol=1e-4, atol=1e-4)


def test_codes_were_restarted(found):
    assert torch.equal(found[0]["unused"], found[1]["unused"])
    assert found[0]["unused"].any()
