"""fastgen: compiled kernels for likelihood-based generative models in PyTorch.

``import fastgen`` works without the compiled extension, without Triton and without a GPU; ``fastgen.backends()`` says
what runs where and why, and ``fastgen.extension_error`` why the extension is missing (None if it is there).
"""

from __future__ import annotations

import importlib
import os
import sys

import torch  # noqa: F401  (loads libtorch, which the extension needs)

from fastgen.version import __version__

__all__ = [
    "Sampler",
    "__version__",
    "accelerate",
    "accelerated",
    "backend",
    "backends",
    "create_model",
    "extension_error",
    "heads",
    "list_models",
    "restore",
]

_LAZY = {
    "Sampler": ("fastgen.generate.sampler", "Sampler"),
    "accelerate": ("fastgen.interop", "accelerate"),
    "accelerated": ("fastgen.interop", "accelerated"),
    "backend": ("fastgen.ops", "backend"),
    "backends": ("fastgen.ops", "backends"),
    "create_model": ("fastgen.models", "create_model"),
    "heads": ("fastgen.generate.heads", None),
    "list_models": ("fastgen.models", "list_models"),
    "restore": ("fastgen.interop", "restore"),
}
_SUBPACKAGES = (
    "data",
    "distributions",
    "generate",
    "interop",
    "metrics",
    "models",
    "nn",
    "ops",
    "plots",
    "reference",
    "training",
)


def _load_extension() -> str | None:
    """Imports ``fastgen._C`` and returns None, or the reason why that cannot be done."""
    if os.environ.get("FASTGEN_NO_EXTENSION", "0") not in ("", "0"):
        sys.modules["fastgen._C"] = None  # type: ignore[assignment]  # so that importing it raises ImportError
        return "FASTGEN_NO_EXTENSION is set"
    try:
        importlib.import_module("fastgen._C")
    except ImportError as error:
        return str(error)
    return None


extension_error: str | None = _load_extension()


def __getattr__(name: str):
    if name in _LAZY:
        module_name, attribute = _LAZY[name]
        module = importlib.import_module(module_name)
        value = module if attribute is None else getattr(module, attribute)
        globals()[name] = value
        return value
    if name in _SUBPACKAGES:
        return importlib.import_module(f"fastgen.{name}")
    if name == "_C":
        raise ImportError(f"the compiled extension fastgen._C is not available: {extension_error}")
    raise AttributeError(f"module 'fastgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBPACKAGES})
