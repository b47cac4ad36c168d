"""Calls of ``torch.ops.fastgen.*`` with arguments that do not fit; ``python -m tests.ops.raw_calls 2000`` makes 2,000.

What the public functions call for their cases is recorded, and each recorded call is repeated with a few arguments
replaced. A call must end, without a crash, in an exception that says something or in results on the device of the op.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import fastgen.ops
import fastgen.ops.soft_clip
from fastgen.ops.registry import OPS

INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 5, 2**31, 2**32 + 1, 2**61, 2**62, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e-308, 1e308)
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.cfloat,
)
PATIENCE = 60
"""Seconds for one call."""
MEMORY = 12 << 30

Call = tuple[str, tuple]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name.startswith("fastgen::"):
            self.calls.append((name.removeprefix("fastgen::"), args))
        return func(*args, **(kwargs or {}))


def recorded() -> list[Call]:
    """Every op with arguments that fit, forwards and backwards; up to three calls of each."""
    found: dict[str, list[Call]] = {}
    with _Recorder() as recorder:
        for op in OPS.values():
            if op.part_of or op.not_differentiable:
                continue
            for name, make in importlib.import_module(f"fastgen.reference.{op.name}").CASES.items():
                if name.startswith("small"):
                    given = make(torch.Generator().manual_seed(0))
                    given = {
                        k: v.float().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
                        for k, v in given.items()
                    }
                    results = getattr(fastgen.ops, op.name)(**given)
                    results = results if isinstance(results, tuple) else (results,)
                    loss = sum(r.sum() for r in results if r.requires_grad)
                    if isinstance(loss, Tensor):
                        loss.backward()
    for name, arguments in recorder.calls:
        if len(found.setdefault(name, [])) < 3:
            found[name].append((name, tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, arguments)))
    called = torch.ops.fastgen
    x, weight = torch.randn(2, 16, 6, 16), torch.randn(16, 16, 2, 3)
    taps = (x, weight, torch.randn(16), weight > 0, 1)
    a, tangents = torch.randn(3, 4), torch.randn(2, 3, 4)
    field = [torch.randn(5, 4), torch.randn(5), torch.randn(4, 5), torch.randn(4)]
    kept = called.dense_trace(1, True, a, tangents, tangents, field)[2]
    given = {
        "affine_coupling_": found["affine_coupling"][0][1],
        "masked_conv2d_taps": taps,
        "masked_conv2d_taps_backward": (torch.randn(2, 16, 6, 16), *taps),
        "philox_uniform": (5, torch.arange(3), torch.arange(4), 1, 2),
        "soft_clip": (torch.randn(3, 8), 5, 1e-3, 1e-12),
        "soft_clip_backward": (torch.randn(3, 8), torch.randn(3, 8), 5, 1e-3, 1e-12),
        "vector_quantize": (torch.randn(7, 3), torch.randn(5, 3)),
        "tangent_activation": (1, a, tangents),
        "tangent_activation_backward": (1, a, *called.tangent_activation(1, a, tangents)[:2], tangents, a, tangents),
        "tangent_contraction": (a, tangents, tangents.clone()),
        "dense_trace": (1, True, a, tangents, tangents, field),
        "dense_trace_backward": (1, a, torch.randn(3), kept, a, tangents, tangents, field),
        "dense_powers": (1, 3, a, tangents, field),
    }
    for name, arguments in given.items():
        found.setdefault(name, [(name, arguments)])
    return [call for calls in found.values() for call in calls]


def _other_tensor(tensor: Tensor, choose: random.Random) -> Tensor | None:
    kind = choose.randrange(13)
    dims = tensor.dim()
    d = choose.randrange(dims) if dims else 0
    if kind == 0:
        return tensor.to(choose.choice(DTYPES))
    if kind == 1:
        return tensor.unsqueeze(choose.randrange(dims + 1))
    if kind == 2 and dims:
        return tensor.select(d, 0) if tensor.shape[d] else tensor.sum(d)
    if kind == 3 and dims:  # another size
        index = torch.arange(choose.choice((0, 1, 2, 3, tensor.shape[d] + 1))) % max(1, tensor.shape[d])
        return tensor.index_select(d, index) if tensor.shape[d] else tensor
    if kind == 4 and dims > 1:
        return tensor.transpose(d, choose.randrange(dims))
    if kind == 5 and dims:  # the same numbers, not contiguous
        return torch.stack([tensor, tensor], -1)[..., 0]
    if kind == 6 and dims:  # of few numbers, huge
        return tensor.narrow(d, 0, min(1, tensor.shape[d])).expand(
            *[-1 if i != d or tensor.shape[i] == 0 else choose.choice((2**31, 2**33, 2**62)) for i in range(dims)]
        )
    if kind == 7:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if kind == 8:  # no numbers, but sizes
        sizes = [choose.choice((0, 1, 2, 2**20, 2**31)) for _ in range(dims)]
        return torch.empty([*sizes[:-1], 0] if dims else [0], dtype=tensor.dtype)
    if kind == 9:
        filler = choose.choice(NUMBERS) if tensor.is_floating_point() else choose.choice((-(2**62), -1, 2**62))
        return torch.full_like(tensor, filler) if tensor.dtype not in (torch.bool, torch.uint8) else ~tensor
    if kind == 10:
        return None
    if kind == 11 and tensor.is_floating_point() and dims:
        return tensor.to_sparse()
    if kind == 12 and dims:
        return tensor.flip(d).t() if dims == 2 else tensor.flatten()
    return torch.zeros(())


def _other(argument, choose: random.Random):
    if isinstance(argument, Tensor):
        return _other_tensor(argument, choose)
    if isinstance(argument, bool):
        return not argument
    if isinstance(argument, int):
        return choose.choice((*INTEGERS, argument + 1, argument - 1))
    if isinstance(argument, float):
        return choose.choice(NUMBERS)
    if isinstance(argument, (list, tuple)) and argument:
        items, i = list(argument), choose.randrange(len(argument))
        kind = choose.randrange(4)
        if kind == 0:
            return items[:i]
        if kind == 1:
            return [*items, items[i]]
        return [*items[:i], _other(items[i], choose), *items[i + 1 :]]
    return choose.choice((None, torch.zeros(2), 1))


def changed(call: Call, choose: random.Random) -> Call:
    name, arguments = call
    while True:
        with contextlib.suppress(RuntimeError):  # of torch, which cannot make such a tensor
            given = list(arguments)
            for _ in range(choose.choice((1, 1, 1, 2, 3))):
                i = choose.randrange(len(given))
                given[i] = _other(given[i], choose)
            return name, tuple(tree_map(lambda a: a.clone() if _is_small(a) else a, tuple(given)))


def _is_small(value) -> bool:
    """Whether it may be copied, so that no call finds what another wrote: nothing expanded."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.is_contiguous()


def described(call: Call) -> str:
    def one(value) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        strides = f", strides {value.stride()}" if value.layout == torch.strided else f", {value.layout}"
        return f"Tensor({list(value.shape)}, {value.dtype}, {value.device}{strides})"

    return f"torch.ops.fastgen.{call[0]}({', '.join(str(tree_map(one, a)) for a in call[1])})"


def check(call: Call) -> bool:
    """Makes the call; whether it gave a result. Raises AssertionError for a result or an exception of a wrong kind."""
    name, arguments = call
    try:
        results = getattr(torch.ops.fastgen, name)(*arguments)
    except Exception as error:
        if isinstance(error, SystemError) or not str(error) or "parallel_for" in str(error):
            raise AssertionError(f"an exception that says nothing: {error!r}") from error
        return False
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    results = results if isinstance(results, (tuple, list)) else (results,)
    assert len({t.device for t in tensors}) <= 1, "devices are mixed"
    assert all(r.device == tensors[0].device for r in results), "the result is on another device"
    return True


def run(count: int, seed: int, report: Callable[[str], None]) -> int:
    """Makes as many calls, each reported before it is made; how many gave a result."""
    calls, choose, accepted = recorded(), random.Random(seed), 0
    for i in range(count):
        call = changed(calls[i % len(calls)], choose)
        report(described(call))
        accepted += check(call)
    return accepted


def outcome(count: int, seed: int) -> str:
    """ "done: ..." or how the child that made the calls ended, and at which call."""
    with tempfile.TemporaryDirectory() as folder:
        last = Path(folder) / "last"
        child = os.fork()
        if not child:
            code = 1
            try:
                if "LD_PRELOAD" not in os.environ:  # a sanitizer, which reserves addresses and has a limit of its own
                    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                accepted = run(count, seed, lambda text: last.write_text(text) and None)
                last.write_text(f"done: {count} calls, {accepted} with a result")
                code = 0
            except BaseException as error:
                last.write_text(f"{type(error).__name__}: {error}\nat {last.read_text()}")
            finally:
                os._exit(code)
        seen, since = "", time.monotonic()
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            now = last.read_text() if last.exists() else ""
            if done:
                code = os.waitstatus_to_exitcode(status)
                return now if code >= 0 else f"killed by signal {-code} at {now}"
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > PATIENCE * (4 if not seen else 1):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"hangs at {now}"
            time.sleep(0.02)


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = outcome(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(result)
    sys.exit(not result.startswith("done"))
