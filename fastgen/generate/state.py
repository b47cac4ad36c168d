"""A generation in progress, which can be forked, saved and resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgen.generate.arguments import as_tensor
from fastgen.generate.contexts import position_major
from fastgen.generate.machines import check_threads
from fastgen.generate.program import read_metadata
from fastgen.generate.run import Run, check_batch, sample_indices

if TYPE_CHECKING:
    from fastgen.generate.sampler import Sampler

_NUMBERS = ("seed", "position0", "temperature", "top_k", "top_p", "threads", "ahead")
AHEAD = 2
"""Up to so many samples a step is bound by reading weights, so that summing several cells at once pays."""
_TENSORS = ("state", "samples", "levels", "known", "log_prob", "proposal_log_prob")


@dataclass
class State:
    """Where ``batch`` generations stand after ``step`` steps. ``run.state`` is everything the network remembers."""

    run: Run
    step: int
    sampler: Sampler

    @property
    def batch(self) -> int:
        return self.run.state.shape[0]

    @property
    def levels(self) -> Tensor:
        """``[batch, *event_shape]``: what is drawn so far; later elements hold 0 (or their known values)."""
        return self.sampler._levels_out(self.run.levels)

    def fork(self, indices: Sequence[int], same_noise: bool = False, first_sample: int | None = None) -> State:
        """New generations that continue from those at ``indices``.

        They take the sample indices ``first_sample, first_sample + 1, ...`` (by default those after the highest in
        use), so that forks of one state differ; ``same_noise=True`` keeps the indices of their origins.

        Raises:
            ValueError: an index is outside the batch, or ``first_sample`` is no sample index.
        """
        chosen = as_tensor("indices", indices)
        listed = chosen.dim() == 1 and len(chosen) and not chosen.is_floating_point() and chosen.dtype != torch.bool
        if not listed or chosen.min() < 0 or chosen.max() >= self.batch:
            raise ValueError(f"indices must be one or more of 0 .. {self.batch - 1}, got {indices!r}")
        chosen = chosen.long()
        run = self.run
        samples = run.samples[chosen]
        if not same_noise:
            samples = sample_indices(int(run.samples.max()) + 1 if first_sample is None else first_sample, len(chosen))
        tensors = {
            name: getattr(run, name) for name in _TENSORS if getattr(run, name) is not None and name != "samples"
        }
        taken = {name: tensor[chosen].clone() for name, tensor in tensors.items()}
        contexts = [c[chosen].contiguous() for c in run.contexts]
        return State(replace(run, samples=samples, contexts=contexts, **taken), self.step, self.sampler)

    def save(self, path) -> None:
        """Write the state to a safetensors file; ``sampler.load_state(path)`` goes on from it, bitwise."""
        run = self.run
        tensors = {name: getattr(run, name).contiguous() for name in _TENSORS if getattr(run, name) is not None}
        tensors |= {f"context.{i}": c.contiguous() for i, c in enumerate(run.contexts)}
        numbers = {name: getattr(run, name) for name in _NUMBERS} | {"step": self.step}
        save_file(tensors, path, {"state": json.dumps(numbers), "program": self.sampler.fingerprint})


def load_state(path, sampler: Sampler) -> State:
    """The state that ``State.save`` wrote with the program of ``sampler``.

    Raises:
        ValueError: the file holds no state, or one of another program.
    """
    metadata = read_metadata(path)
    if "state" not in metadata:
        held = "a sampler, which Sampler.load reads" if "program" in metadata else "none"
        raise ValueError(f"{path} must hold a state, as State.save writes it, got {held}")
    if metadata.get("program") != sampler.fingerprint:
        raise ValueError(
            f"{path} is a state of another program ({metadata.get('program')}); this one is {sampler.fingerprint}"
        )
    tensors, numbers = load_file(path), json.loads(metadata["state"])
    step = numbers.pop("step")
    contexts = [tensors[f"context.{i}"] for i in range(sum(name.startswith("context.") for name in tensors))]
    run = Run(contexts=contexts, **{name: tensors.get(name) for name in _TENSORS}, **numbers)
    return State(run, step, sampler)


def start_state(
    sampler: Sampler, batch, seed, known, known_mask, *, context=None, temperature=1.0, top_k=0, top_p=1.0,
    log_prob=False, proposal_log_prob=False, threads=None, first_sample=0, window=None,
) -> State:  # fmt: skip
    """``Sampler.start`` for levels and masks ``[batch, C, positions]``; without them ``window`` positions are kept."""
    check_batch(batch, seed)
    sampler.head.check_sampling(temperature, top_k, top_p, scored=log_prob or proposal_log_prob)
    leaves = sampler._contexts(context, batch)
    program = sampler.program
    channels, positions = sampler.order.steps.shape
    stride = -(-program.state_size // 16) * 16 + 16
    run = Run(
        state=torch.zeros(batch, stride),
        contexts=[position_major(leaf) for leaf in leaves],
        seed=seed,
        samples=sample_indices(first_sample, batch),
        levels=torch.zeros(batch, channels, window or positions) if known is None else known,
        known=known_mask,
        log_prob=torch.zeros(batch, dtype=torch.float64) if log_prob else None,
        proposal_log_prob=torch.zeros(batch, dtype=torch.float64) if proposal_log_prob else None,
        temperature=float(temperature),
        top_k=int(top_k),
        top_p=float(top_p),
        threads=sampler.threads if threads is None else check_threads(threads),
        ahead=batch <= AHEAD,
    )
    if sampler.predicts == "next":
        draw = program.draws[0]
        buffer = program.buffers[program.operands[draw.input0].buffer]
        run.state[:, buffer.offset : buffer.offset + buffer.channels] = sampler.start_value
    sampler._machine.prologue(run)
    return State(run, 0, sampler)
