"""Measures the error of every flow's log-density in float32 and under bfloat16 autocast.

``python -m bench.flow_precision`` measures it and writes the table in docs/flows.md.

Each tiny model is trained for some steps on scikit-learn's digits or on two moons in float32, and scores held-out data
in float64, in float32 and under autocast. Log-determinants are float32 under autocast: the error is of the networks.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch import Tensor

import fastgen
from fastgen.data import DataConfig, load
from fastgen.models.flows import FlowModel

STEPS, BATCH, RATE, HELD_OUT = 100, 64, 1e-3, 256
PAGE = Path(__file__).parents[1] / "docs" / "flows.md"
BEGIN, END = "<!-- written by `python -m bench.flow_precision` -->", "<!-- end -->"


def trained(name: str) -> tuple[FlowModel, Tensor]:
    """Returns a tiny model after some steps, and the data to score, dequantized where there are levels."""
    torch.manual_seed(0)
    model = fastgen.create_model(name, preset="tiny")
    data = load(DataConfig("digits" if len(model.config.event_shape) == 3 else "two_moons"))
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(STEPS):
        values, _ = data.splits["train"].batch(torch.randint(len(data.splits["train"]), (BATCH,)))
        optimizer.zero_grad()
        model.loss(values).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50)
        optimizer.step()
    values, _ = data.splits["test"].batch(torch.arange(HELD_OUT))
    levels = model.config.levels
    return model.eval(), (values + torch.rand(values.shape)) / levels if levels else values


@torch.no_grad()
def errors(model: FlowModel, x: Tensor) -> tuple[float, ...]:
    """Returns mean and largest error in float32 and under autocast, in nats per number of the event."""
    exact = copy.deepcopy(model).double().log_prob(x.double())
    found = [model.log_prob(x)]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(model.log_prob(x))
    size = math.prod(x.shape[1:])
    return tuple(float(f((each - exact).abs())) / size for each in found for f in (torch.mean, torch.max))


def main() -> None:
    torch.set_num_threads(1)  # the networks are small
    lines = ["| flow | data | float32: mean; largest | bfloat16 autocast: mean; largest |", "|---|---|---|---|"]
    for name in fastgen.list_models("flow"):
        model, x = trained(name)
        mean, most, mean_bf16, most_bf16 = (f"{error:.1e}" for error in errors(model, x))
        data = "digits" if model.config.levels else "two moons"
        lines.append(f"| {name} | {data} | {mean}; {most} | {mean_bf16}; {most_bf16} |")
        print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{rest.partition(END)[2]}"]))


if __name__ == "__main__":
    main()
