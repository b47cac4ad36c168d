"""Imports fastgen, prints what runs where and why, compares an op with its reference, and generates.

Fails where the extension does not load, but for FASTGEN_NO_EXTENSION=1.
"""

from __future__ import annotations

import os

import torch

import fastgen
import fastgen.bench
from fastgen import heads, nn, ops

print("fastgen", fastgen.__version__, "from", fastgen.__path__[0], "with torch", torch.__version__)
print("extension:", fastgen.extension_error or "loaded")
if fastgen.extension_error and not os.environ.get("FASTGEN_NO_EXTENSION"):
    raise SystemExit("the extension does not load")
for row in fastgen.backends():
    print(f"  {row.op:20} {row.device:5} {row.backend:10} {row.reason}")

arguments = (1, torch.arange(3), torch.arange(5), 0, 0)
noise = ops.philox_uniform(*arguments)
with fastgen.backend("reference"):
    if not torch.equal(noise, ops.philox_uniform(*arguments)):
        raise SystemExit("philox_uniform differs from its reference")
print("philox_uniform: bitwise equal to its reference")

torch.manual_seed(0)
network = torch.nn.Sequential(nn.MaskedConv2d(1, 8, 3, mask="A"), torch.nn.ReLU(), nn.MaskedConv2d(8, 4, 1, mask="B"))
sampler = fastgen.Sampler(network, event_shape=(1, 4, 4), head=heads.Categorical(4))
if not torch.equal(sampler.sample(2, seed=0), sampler.sample_naive(2, seed=0)):
    raise SystemExit("the sampler does not draw what the textbook loop draws")
print("Sampler: draws what the textbook loop draws")
