"""The compiled sampler computes what the module computes, and draws what the textbook loop draws."""

from __future__ import annotations

import pytest
import torch

from fastgen.generate.contexts import context_leaves
from fastgen.generate.noise import Noise
from tests.generate.compiled import CASES, CONTINUOUS, FAST, MACHINES, case, parameters_at, sampler
from tests.generate.teacher import EPSILON, exact_log_prob, taught

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")


def some_steps(compiled) -> int:
    """Steps that show every phase of strides up to 4: four rows of an image and more, 32 steps of a sequence."""
    row_length = compiled.program.row_length
    return min(compiled.steps, 32 if row_length >= compiled.steps else 4 * row_length + 5)


def at_step(compiled, parameters: torch.Tensor, step: int) -> list[torch.Tensor]:
    """``[N, groups, n]`` for each draw of a step: what of ``arrange``'s result it reads."""
    coupled = compiled.order.channels // parameters.shape[2]
    return [
        parameters[:, position, first // coupled : (first + count) // coupled]
        for first, count, position in compiled.order.draws[step]
    ]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_the_float64_forward(name, machine):
    compiled, exact = sampler(name, machine), taught(name)
    everything = torch.ones_like(exact.levels, dtype=torch.bool)
    state = compiled.start(len(exact.levels), known=exact.levels, known_mask=everything, context=exact.context)
    for step in range(compiled.steps if machine == FAST else some_steps(compiled)):
        compiled.advance(state, 1)
        wanted = torch.cat([part.flatten(1) for part in at_step(compiled, exact.parameters, step)], 1)
        error = (parameters_at(compiled, state) - wanted).abs().max()
        assert error <= exact.bound, (step, float(error), exact.bound)


@pytest.mark.parametrize("name", CASES)
def test_log_prob_of_known_elements_is_that_of_the_float64_forward(name):
    compiled, levels, context = sampler(name), taught(name).levels, taught(name).context
    exact, bound = exact_log_prob(compiled, levels, context)
    kept, log_prob = compiled.sample(
        len(levels), known=levels, known_mask=levels == levels, context=context, return_log_prob=True
    )
    assert torch.equal(kept, levels)
    assert ((log_prob - exact).abs() <= bound).all()
    assert ((compiled.log_prob(levels, context) - exact).abs() <= bound).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", CASES)
def test_log_prob_of_a_sample_is_the_module_s_whatever_the_temperature(name, temperature):
    compiled, context = sampler(name), case(name).contexts(5)
    drawn, log_prob, proposal = compiled.sample(
        5, seed=3, temperature=temperature, context=context, return_log_prob=True, return_proposal_log_prob=True
    )
    exact, bound = exact_log_prob(compiled, drawn, context)
    assert ((log_prob - exact).abs() <= bound).all()
    assert torch.allclose(log_prob, proposal, rtol=1e-12, atol=0) == (temperature == 1)


def explained(compiled, drawn, naive, index: int, step: int, seed: int, context, bound: float, mask=None) -> bool:
    """Whether the first difference of sample ``index`` stems from a uniform number at the edge of a cdf.

    Given the elements before it (and those that ``mask`` says are known), the machine's and the module's parameters
    differ by the bound at most, and the same draw with the same noise gives the one sample from the machine's and the
    other from the module's.
    """
    order = compiled.order
    before = torch.from_numpy(order.steps < step).reshape(1, *compiled.event_shape)
    mask, n = torch.zeros_like(naive, dtype=torch.bool) if mask is None else mask, len(naive)
    state = compiled.start(n, seed, known=naive, known_mask=before | mask, context=context)
    compiled.advance(state, step + 1)
    inputs = compiled.head.to_input(torch.where(before, naive, torch.zeros_like(naive)))
    with torch.no_grad():
        output = compiled.request.forward(inputs, context_leaves(compiled.request.layout, context, n))
    of_module = at_step(compiled, compiled.head.arrange(output, compiled.event_shape), step)
    sizes = [part[0].numel() for part in of_module]
    of_machine = parameters_at(compiled, state).split(sizes, 1)
    for (first, count, position), module, machine in zip(order.draws[step], of_module, of_machine, strict=True):
        machine = machine.reshape(module.shape)
        if not (module - machine).abs()[index].max() <= bound:
            return False
        noise, at = Noise(seed, torch.arange(n), position, first), (slice(None), slice(first, first + count), position)
        known = mask.reshape(n, order.channels, -1)[at]
        for parameters, result in ((machine, drawn), (module, naive)):
            levels = result.reshape(n, order.channels, -1)[at]
            again = compiled.head.draw(parameters, noise, levels, known)
            if not torch.equal(again.levels[index].to(levels.dtype), levels[index]):
                return False
    return True


def first_differences(compiled, drawn, naive, steps: int) -> dict[int, int]:
    """Sample -> the first of the steps at which the two differ."""
    order = torch.from_numpy(compiled.order.steps).reshape(compiled.event_shape)
    found = {}
    for index in range(len(drawn)):
        differs = (drawn[index] != naive[index]) & (order < steps)
        if differs.any():
            found[index] = int(order[differs].min())
    return found


@pytest.mark.parametrize(
    ("name", "partly_known"),
    [(name, False) for name in CASES if name not in CONTINUOUS]
    + [
        (name, True)
        for name in ("masked_stack", "pixelcnn_colour", "pixelcnn_pp_colour", "made_permuted", "causal_unet")
    ],
)
def test_samples_are_the_textbook_loop_s_but_at_the_edges_of_a_cdf(name, partly_known):
    compiled, n, seed = sampler(name), 2, 11
    context, bound, steps = case(name).contexts(n), 2 * taught(name).bound, some_steps(compiled)
    options, mask = {"context": context}, None
    if partly_known:
        mask = torch.rand((n, *compiled.event_shape), generator=torch.Generator().manual_seed(0)) < 0.4
        options |= {"known": case(name).levels(n), "known_mask": mask}
    drawn = compiled.sample(n, seed, **options)
    naive = compiled.sample_naive(n, seed, steps=steps, **options)
    differences = first_differences(compiled, drawn, naive, steps)
    for index, step in differences.items():
        assert explained(compiled, drawn, naive, index, step, seed, context, bound, mask), (index, step)
    edges = 2 * (compiled.head.levels + 2 * compiled.head.mixtures) * drawn.numel()
    assert len(differences) <= 1 + edges * bound
    print(f"{name}: {len(differences)} of {n} samples meet the edge of a cdf")


def test_the_rule_of_edges_refuses_any_other_difference():
    compiled = sampler("masked_stack")
    drawn, naive = compiled.sample(4, seed=1), compiled.sample_naive(4, seed=2)
    differences = first_differences(compiled, drawn, naive, compiled.steps)
    assert len(differences) == 4
    bound = taught("masked_stack").bound
    assert not any(explained(compiled, drawn, naive, i, s, 1, None, bound) for i, s in differences.items())


@pytest.mark.parametrize(
    ("name", "machine"),
    [(name, m) for name in CONTINUOUS for m in MACHINES] + [("pixelcnn_colour", FAST), ("wavenet_mixture", FAST)],
)
def test_a_machine_draws_what_the_head_draws_from_its_parameters(name, machine):
    compiled, n = sampler(name, machine), 3
    state = compiled.start(n, seed=5, context=case(name).contexts(n))
    for step in range(some_steps(compiled)):
        compiled.advance(state, 1)
        read, begin = parameters_at(compiled, state).unflatten(1, (-1, compiled.head.parameters_per_group)), 0
        for first, count, position in compiled.order.draws[step]:
            end = begin + count // compiled.head.coupled
            drawn = compiled.head.draw(read[:, begin:end], Noise(5, torch.arange(n), position, first))
            got, begin = state.run.levels[:, first : first + count, position], end
            exact = {"rtol": 0, "atol": 0} if compiled.head.levels else {"rtol": EPSILON, "atol": EPSILON}
            torch.testing.assert_close(got, drawn.levels, **exact)
        assert begin == read.shape[1]


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_before_it_is_written(name):
    compiled = sampler(name)
    context = case(name).contexts(2)
    clean, poisoned = (compiled.start(2, seed=4, context=context) for _ in range(2))
    start = poisoned.run.state.clone()
    poisoned.run.state.fill_(torch.nan)
    if compiled.request.predicts == "next":
        draw = compiled.program.draws[0].body
        buffer = compiled.program.buffers[compiled.program.operands[draw.input0].buffer]
        first = slice(buffer.offset, buffer.offset + buffer.channels)
        poisoned.run.state[:, first] = start[:, first]
    compiled.machine.prologue(poisoned.run)
    everything = compiled.steps
    assert torch.equal(compiled.advance(poisoned, everything).levels, compiled.advance(clean, everything).levels)
