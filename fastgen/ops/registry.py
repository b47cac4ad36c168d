"""Registration of ops with PyTorch's dispatcher, and the choice of a backend."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastgen

BACKENDS = ("reference", "cpu", "triton", "triton-interpret")
OPS: dict[str, Op] = {}

_library = torch.library.Library("fastgen", "DEF")
_forced: str | None = None


class Backend(NamedTuple):
    """The backend that runs an op on a device, and the reason."""

    op: str
    device: str
    backend: str
    reason: str


@dataclass
class Op:
    """An op ``fastgen::<name>``: declared here, implemented on its floors under the same basename.

    PyTorch's dispatcher holds the reference for every device (``CompositeExplicitAutograd``). The compiled extension
    adds the CPU kernel, and the CUDA kernel where it was built with CUDA; elsewhere Triton, where installed, is the
    CUDA kernel.

    Attributes:
        schema: in the language of ``torch.library``, beginning with the name.
        reference: the plain PyTorch definition.
        fake: shapes and dtypes of the result.
        absent: floor ("cpu" or "triton") -> why the op has no kernel there.
        not_differentiable: why the op has no derivative; None if it has one.
        part_of: the public op whose files hold this one (a backward); None for a public op.
        composite: the op in terms of PyTorch's own, where no kernel of ours would be faster than theirs; every kind of
            differentiation and batching then is PyTorch's.
    """

    schema: str
    reference: Callable
    fake: Callable | None = None
    absent: dict[str, str] = field(default_factory=dict)
    not_differentiable: str | None = None
    part_of: str | None = None
    composite: Callable | None = None
    cuda: str = field(default="reference", init=False)
    """The backend that the dispatcher uses for CUDA tensors: "cuda", "triton" or "reference"."""

    def __post_init__(self) -> None:
        _library.define(self.schema)
        if self.composite is not None:
            _library.impl(self.name, self.composite, "CompositeImplicitAutograd")
            OPS[self.name] = self
            return
        _library.impl(self.name, self.reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastgen::{self.name}", self._checked_fake, lib=_library)
        if _has_kernel(self.name, "CUDA"):
            self.cuda = "cuda"
        elif self.refusal("triton", "cuda") is None:
            self.cuda = "triton"
            _library.impl(self.name, self._triton, "CUDA")
        OPS[self.name] = self

    @property
    def name(self) -> str:
        return self.schema.partition("(")[0]

    @property
    def file(self) -> str:
        """The basename of the op's files on every floor."""
        return self.part_of or self.name

    @property
    def outputs(self) -> int:
        result = self.schema.rpartition("->")[2]
        return result.count("Tensor")

    def __call__(self, *arguments):
        if self.composite is not None and _forced in (None, "cpu"):
            return self.composite(*arguments)
        if _forced is None:
            return getattr(torch.ops.fastgen, self.name).default(*arguments)
        device = next(a.device.type for a in arguments if isinstance(a, Tensor))
        if reason := self.refusal(_forced, device):
            raise RuntimeError(f"{self.name} on {device} cannot run on the forced backend {_forced!r}: {reason}")
        if _forced == "reference":
            return self.reference(*arguments)
        if _forced == "cpu":
            return getattr(torch.ops.fastgen, self.name).default(*arguments)
        return self._triton(*arguments)

    def refusal(self, backend: str, device: str) -> str | None:
        """Returns why the op cannot run on the backend with tensors of the device; None if it can."""
        if backend == "reference" or (backend == "cpu" and device == "cpu" and self.composite is not None):
            return None
        floor = "cpu" if backend == "cpu" else "triton"
        if floor in self.absent:
            return self.absent[floor]
        if backend == "cpu":
            if device != "cpu":
                return "the C++ kernels take tensors on the cpu"
            if fastgen.extension_error is None and not _has_kernel(self.name, "CPU"):
                return "the compiled extension was built without this op: build it again"
            return fastgen.extension_error
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if backend == "triton" and device != "cuda":
            return "Triton compiles for cuda devices only"
        if backend == "triton-interpret" and os.environ.get("TRITON_INTERPRET") != "1":
            return "the interpreter needs TRITON_INTERPRET=1 in the environment before Triton is first imported"
        return None

    def chosen(self, device: str) -> Backend:
        """Returns the backend that the dispatcher uses on the device ("cpu" or "cuda"), and the reason."""
        if self.composite is not None and (device == "cpu" or torch.cuda.is_available()):
            return Backend(self.name, device, "composite", self.absent["cpu" if device == "cpu" else "triton"])
        if device == "cpu":
            refusal = self.refusal("cpu", device)
            return Backend(self.name, device, "reference" if refusal else "cpu", refusal or "compiled C++ kernel")
        if not torch.cuda.is_available():
            reason = "torch finds no CUDA device" if torch.version.cuda else "torch is built without CUDA"
            return Backend(self.name, device, "none", reason)
        reasons = {"cuda": "compiled CUDA kernel", "triton": "Triton kernel"}
        return Backend(self.name, device, self.cuda, reasons.get(self.cuda) or self.refusal("triton", device) or "")

    def _checked_fake(self, *arguments):
        """Checks devices, since PyTorch also calls the fake where only some tensors are on the meta device."""
        devices = {tensor.device for tensor in tree_leaves(arguments) if isinstance(tensor, Tensor)}
        if len(devices) > 1 and torch.device("meta") in devices:
            raise RuntimeError(
                f"{self.name}: tensors must be on one device, got {', '.join(sorted(map(str, devices)))}"
            )
        return self.fake(*arguments)

    def _triton(self, *arguments):
        if any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in arguments):  # the kernels compute in float32
            return self.reference(*arguments)
        module = importlib.import_module(f"fastgen.triton_kernels.{self.file}")
        kernel = getattr(module, self.name)
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        # Triton launches on the current device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return kernel(*arguments)


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastgen::{name}", key)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every op on one backend within the block; for tests and debugging.

    The choice holds for the whole process, not only for the calling thread.

    Args:
        name: "reference", "cpu" (compiled C++), "triton" or "triton-interpret" (Triton's interpreter, on CPU tensors).

    Raises:
        ValueError: unknown name.
        RuntimeError: from an op in the block that cannot run there; it says why.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def backends() -> list[Backend]:
    """Returns, for every op and device, the backend that runs it and the reason."""
    return [op.chosen(device) for op in OPS.values() if not op.part_of for device in ("cpu", "cuda")]
