"""A baseline: one sample of a WaveNet by ring buffers in PyTorch, written with care."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.models.autoregressive import WaveNet


class RingStep:
    """A step of a WaveNet that batches over layers: taps on the past, skip outputs, reads and writes of the rings.

    All rings are one tensor [sum of dilations, N, channels], preallocated; layer l keeps its last ``dilation`` inputs.
    ``step`` has no data-dependent control flow, so that ``torch.compile(fullgraph=True)`` takes it.
    """

    def __init__(self, model: WaveNet, batch: int) -> None:
        blocks = model.blocks
        half = model.config.gate_channels // 2
        weights = torch.stack([block.conv.weight for block in blocks]).detach()
        assert weights.shape[-1] == 2, "the step is written for kernels of width 2"
        nothing = torch.zeros(1, model.config.residual_channels)
        newer, older = model.first.taps.weight.detach().chunk(2, dim=1)
        self.newer, self.older = torch.cat([newer, nothing]), torch.cat([older, nothing])
        self.first_bias = model.first.bias.detach()[:, 0]
        self.past = weights[..., 0].transpose(1, 2).contiguous()
        self.current = weights[..., 1].transpose(1, 2).contiguous()
        self.gate_bias = torch.stack([block.conv.bias for block in blocks]).detach()[:, None]
        self.residual = torch.stack([block.residual.weight[..., 0].T for block in blocks[:-1]]).detach().contiguous()
        self.residual_bias = torch.stack([block.residual.bias for block in blocks[:-1]]).detach()
        self.skip = torch.cat([block.skip.weight[..., 0].T for block in blocks]).detach().contiguous()
        self.skip_bias = sum(block.skip.bias.detach() for block in blocks)
        self.hidden, self.hidden_bias = model.hidden.weight.detach()[..., 0].T.contiguous(), model.hidden.bias.detach()
        self.output, self.output_bias = model.output.weight.detach()[..., 0].T.contiguous(), model.output.bias.detach()
        self.half, self.batch, self.levels = half, batch, model.config.levels
        dilations = torch.tensor(model.config.dilations)
        first = dilations.cumsum(0) - dilations
        self.period = int(dilations.max())
        self.slots = [first + t % dilations for t in range(self.period)]
        self.ring = torch.zeros(int(dilations.sum()), batch, model.config.residual_channels)
        self.older_tap = torch.zeros(batch, model.config.residual_channels)
        self.reset()

    def reset(self) -> None:
        """Returns to the state before the first sample."""
        self.ring.zero_()
        self.older_tap.zero_()
        self.level = torch.full((self.batch,), self.levels)
        self.time = 0

    def step(self, level: Tensor, slots: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next level int64 [N] and its logits [N, L] from the last level, ring slots and uniforms [N]."""
        past = torch.baddbmm(self.gate_bias, self.ring[slots], self.past).unbind()
        h = self.newer[level] + self.older_tap + self.first_bias
        self.older_tap.copy_(self.older[level])
        inputs, activations = [], []
        current, residual, bias = self.current.unbind(), self.residual.unbind(), self.residual_bias.unbind()
        for layer, of_past in enumerate(past):
            inputs.append(h)
            gates = torch.addmm(of_past, h, current[layer])
            z = torch.tanh(gates[:, : self.half]) * torch.sigmoid(gates[:, self.half :])
            activations.append(z)
            if layer < len(residual):
                h = torch.addmm(h, z, residual[layer]) + bias[layer]
        self.ring.index_copy_(0, slots, torch.stack(inputs))
        skips = torch.addmm(self.skip_bias, torch.cat(activations, 1), self.skip)
        hidden = torch.addmm(self.hidden_bias, torch.relu(skips), self.hidden)
        logits = torch.addmm(self.output_bias, torch.relu(hidden), self.output)
        cdf = logits.softmax(-1).cumsum(-1)
        drawn = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
        return drawn.clamp_max(self.levels - 1), logits

    @torch.no_grad()
    def advance(self, uniforms: Tensor, step: Callable, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Steps through uniforms float32 [T, N]; returns the levels [N, T] and the logits [N, T, L].

        ``step`` is ``self.step``, or what ``torch.compile`` made of it; ``levels`` int64 [N, T] are fed instead of the
        draws.
        """
        drawn, logits = [], []
        for t, uniform in enumerate(uniforms.unbind()):
            level, scores = step(self.level, self.slots[self.time % self.period], uniform)
            self.level = level if levels is None else levels[:, t]
            self.time += 1
            drawn.append(level)
            logits.append(scores)
        return torch.stack(drawn, 1), torch.stack(logits, 1)
