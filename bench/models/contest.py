"""Compares one flow across libraries, as they are and accelerated: density, training step, sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import fastgen

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish

WAYS = ("log_prob", "training step", "sampling")
ROUNDS = size(7, 1)
_ROUNDING = 2e-3  # of a log-density of 64 numbers through the layers, in single precision


@dataclass
class Contender:
    """A flow.

    Attributes:
        log_prob: x [N, ...] to [N].
        sample: from a number of samples.
        peer: the library, which ``fastgen.accelerate`` knows; None for fastgen's own model.
    """

    name: str
    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    peer: str | None = None


def job(contender: Contender, what: str, x: Tensor) -> Callable[[], object]:
    """Returns the call that is timed. A training step uses PyTorch's fastest Adam, the same for all."""
    if what == "training step":
        optimizer = torch.optim.Adam(contender.module.parameters(), 1e-5, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            (-contender.log_prob(x).mean()).backward()
            optimizer.step()

        return step

    @torch.no_grad()
    def call() -> Tensor:
        return contender.log_prob(x) if what == "log_prob" else contender.sample(len(x))

    return call


def run(
    benchmark, key: str, title: str, contenders: list[Contender], what: str, x: Tensor, bars: dict[str, float]
) -> None:
    """Times one way of all contenders, the first of which is fastgen's, and publishes it.

    An accelerated library must have the log-densities that it has without. ``bars`` are of ours over the fastest
    library ("fastest"), and of each accelerated one over itself ("accelerated").
    """
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    ours, *peers = contenders
    for peer in peers:
        with torch.no_grad():
            plain = peer.log_prob(x)
            with fastgen.accelerated(peer.peer):
                fast = peer.log_prob(x)
        assert (plain - fast).abs().max() <= _ROUNDING * (1 + plain.abs().max()), peer.name
    providers = {c.name: Provider(c.name, job(c, what, x), 1, threads) for c in contenders}
    for peer in peers:
        name = f"{peer.name}, accelerated"
        within = partial(fastgen.accelerated, peer.peer)
        providers[name] = Provider(name, job(peer, what, x), 1, threads, within=within)
    order = [*(providers[c.name] for c in peers), *(p for n, p in providers.items() if n.endswith("accelerated"))]
    order.append(providers[ours.name])
    interleave(benchmark, order, ROUNDS)
    part = Part(f"{key}-{what.replace(' ', '-')}", f"{title}, {what}", "call")
    part.add(order, compared_with=order[0])
    if not QUICK:
        fastest = min((providers[peer.name] for peer in peers), key=lambda p: p.seconds)
        part.bars = [
            Bar(
                f"over the fastest library ({fastest.name})",
                bars["fastest"],
                providers[ours.name].speedup_over(fastest),
            )
        ]
        for peer in peers:
            gained = providers[f"{peer.name}, accelerated"].speedup_over(providers[peer.name])
            part.bars.append(Bar(f"{peer.name}, accelerated over itself", bars["accelerated"], gained))
    publish(part, benchmark)
