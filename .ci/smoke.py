"""Imports fastgen, prints what runs where and why, and runs an op on its default backend and on the reference."""

from __future__ import annotations

import torch

import fastgen
import fastgen.bench
from fastgen import ops

print("fastgen", fastgen.__version__, "from", fastgen.__path__[0])
print("extension:", fastgen.extension_error or "loaded")
for row in fastgen.backends():
    print(f"  {row.op:20} {row.device:5} {row.backend:10} {row.reason}")

arguments = (1, torch.arange(3), torch.arange(5), 0, 0)
noise = ops.philox_uniform(*arguments)
with fastgen.backend("reference"):
    if not torch.equal(noise, ops.philox_uniform(*arguments)):
        raise SystemExit("philox_uniform differs from its reference")
print("philox_uniform: bitwise equal to its reference")
