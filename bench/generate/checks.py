"""Checks of correctness, made before anything is timed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastgen.generate.heads import Head

EPSILON = torch.finfo(torch.float32).eps


def _outputs(model: nn.Module, head: Head, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the network's output in float64 and in float32."""
    inputs = head.to_input(levels)
    return copy.deepcopy(model).double()(inputs.double() if inputs.is_floating_point() else inputs), model(inputs)


@torch.no_grad()
def parameters_of(model: nn.Module, head: Head, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the head's parameters [N, P, G, n] of finished events by the model in float64, and in float32."""
    return tuple(head.arrange(output, tuple(levels.shape[1:])) for output in _outputs(model, head, levels))


def check_parameters(candidate: Tensor, exact: Tensor, plain: Tensor) -> float:
    """Asserts that the candidate is no further from float64 than twice the float32 model is, plus a rounding floor.

    Returns the candidate's greatest error.
    """
    error, allowed = (candidate - exact).abs().max().item(), (plain - exact).abs().max().item()
    floor = 8 * EPSILON * exact.abs().max().item()
    assert error <= 2 * allowed + floor, f"error {error:.3g}; the float32 model's is {allowed:.3g}"
    return error


def check_draws(levels: Tensor, exact: Tensor, uniforms: Tensor, error: float) -> int:
    """Asserts that categorical draws invert the float64 cdf, but for uniforms within the error of an edge.

    Args:
        levels: int64 [...].
        exact: float64 logits [..., L].
        uniforms: float64 [...].
        error: of the logits that were drawn from.

    Returns the number of draws that differ from float64's.
    """
    cdf = exact.softmax(-1).cumsum(-1)
    slack = 2 * error + exact.shape[-1] * EPSILON  # of a probability, relative; of a float32 sum
    upper = cdf.gather(-1, levels[..., None])[..., 0]
    lower = upper - exact.softmax(-1).gather(-1, levels[..., None])[..., 0]
    assert bool(((lower - slack <= uniforms) & (uniforms <= upper + slack)).all()), "a draw is not the cdf's inverse"
    return int(((uniforms < lower) | (uniforms > upper)).sum())


@torch.no_grad()
def check_log_prob(model: nn.Module, head: Head, levels: Tensor, log_prob: Tensor) -> None:
    """Asserts that the log-probability of a sample is no further from float64 than twice the float32 model's is."""
    exact, plain = (head.log_prob(output, levels) for output in _outputs(model, head, levels))
    error, allowed = (log_prob - exact).abs().max().item(), (plain - exact).abs().max().item()
    floor = 8 * EPSILON * exact.abs().max().item()
    assert error <= 2 * allowed + floor, f"log-probability off by {error:.3g}; the float32 model's by {allowed:.3g}"


def check_rounded_weights(sampler, steps: int) -> None:
    """Asserts that the compiled machine with rounded weights scores what it draws as the reference machine does.

    Both run the sampler's program with the weights rounded alike; the reference one sums in float64.
    """
    from fastgen.generate.machines.reference import ReferenceMachine

    state = sampler.start(2, seed=1, log_prob=True)
    sampler.advance(state, steps)
    reference = ReferenceMachine(sampler.program, sampler.head, sampler.weights)
    again = sampler.start(2, seed=1, log_prob=True).run
    again.levels = state.run.levels.clone()
    again.known = torch.ones_like(again.levels, dtype=torch.bool)
    again.state.zero_()
    reference.prologue(again)
    reference.advance(again, 0, steps)
    floor = 64 * EPSILON * again.log_prob.abs().max().item()
    assert (state.run.log_prob - again.log_prob).abs().max().item() <= floor


class Shifted(nn.Module):
    """The module as it scores a sequence: it reads the start token and then the tokens, each one position late."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1))
