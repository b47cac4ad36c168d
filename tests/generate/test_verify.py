"""``fastgen.generate.verify``: leaks, blind spots and wrong programs are found and named; what is right passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, Report, verify
from fastgen.generate.heads import Bernoulli, Categorical, DiscretizedLogisticMixture, Gaussian
from fastgen.generate.orders import make_order
from fastgen.generate.report import program_check
from fastgen.generate.report.outputs import Outputs
from fastgen.generate.report.perturbation import chosen_steps, find_leaks
from fastgen.generate.request import CompileRequest
from tests.generate.compiled import CASES, case
from tests.generate.seeded import built

LEVELS = 6
IMAGE = (1, 6, 5)


class Taps(nn.Module):
    """Output t is a mixture of the elements at t + offset, for some offsets, tokens in and logits out."""

    def __init__(self, *offsets: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(LEVELS, 8), nn.ModuleList(nn.Linear(8, LEVELS) for _ in offsets)
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        h, steps = self.embed(x), x.shape[1]
        total = 0
        for offset, mix in zip(self.offsets, self.mix, strict=True):
            moved = nn.functional.pad(h, (0, 0, max(-offset, 0), max(offset, 0)))[:, max(offset, 0) :][:, :steps]
            total = total + mix(torch.tanh(moved))
        return total.transpose(1, 2)


class TwoMasks(nn.Module):
    """The first convolutions of a PixelCNN, with the well-known blind spot to the right of the rows above."""

    def __init__(self, first: str = "A") -> None:
        super().__init__()
        self.first = fastgen.nn.MaskedConv2d(1, 8, 3, mask=first)
        self.second = fastgen.nn.MaskedConv2d(8, LEVELS, 3, mask="B")

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def of_tokens(*offsets: int, steps: int = 12, **options) -> Report:
    return verify(built(lambda: Taps(*offsets)), (steps,), Categorical(LEVELS), "time", **options)


def leaks_of(module: nn.Module, event_shape, head, order, rows: int = 256, **options):
    """The leak test alone, which compiles nothing."""
    arguments = {"predicts": "same", "adapter": None, "layout": None, "start": 0.0} | options
    request = CompileRequest.checked(module, event_shape, head, order, **arguments)
    return find_leaks(Outputs.of(request, 8), torch.Generator().manual_seed(0), rows)


# ---- leaks


@pytest.mark.parametrize("ahead", [0, 1, 5, 11])
def test_a_tap_ahead_is_found_at_every_output_that_has_it_and_named(ahead):
    leaks = leaks_of(built(lambda: Taps(-1, ahead)), (12,), Categorical(LEVELS), "time")
    assert leaks.tested == tuple(range(12))
    assert (leaks.sizes > 0).tolist() == [[t + ahead < 12 for t in range(12)]]
    for leak in leaks.examples:
        assert leak.seen.step - leak.output.step == ahead
        assert leak.change > 0
    assert leaks.examples[0].output.step == 0
    assert ("itself" if ahead == 0 else f"sees element {ahead} (step {ahead})") in str(leaks.examples[0])


def test_a_leak_of_one_output_through_one_element_is_found():
    class Once(Taps):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            peek = nn.functional.one_hot(x[:, 9], LEVELS).float()
            return torch.cat([out[..., :4], out[..., 4:5] + peek[..., None], out[..., 5:]], 2)

    leaks = leaks_of(built(lambda: Once(-1)), (12,), Categorical(LEVELS), "time")
    assert leaks.count == 1
    (example,) = leaks.examples
    assert (example.output.position, example.seen.position) == ((4,), (9,))


@pytest.mark.parametrize("shown", [LEVELS - 1, 0])
def test_a_leak_that_shows_at_one_level_only_is_found(shown):
    class AtOneLevel(Taps):
        def forward(self, x: Tensor) -> Tensor:
            later = nn.functional.pad(x, (0, 7))[:, 7:]
            return super().forward(x) + 1e-3 * (later == shown)[:, None]

    leaks = leaks_of(built(lambda: AtOneLevel(-1)), (16,), Categorical(LEVELS), "time")
    assert (leaks.sizes[0, :9] > 0).all()
    assert leaks.examples[0].change == pytest.approx(1e-3, rel=1e-2)


def test_a_leak_as_small_as_rounding_is_told_from_rounding():
    class Fourier(nn.Module):
        """A causal convolution by FFT, in which every output rounds with every input."""

        def __init__(self, leak: float) -> None:
            super().__init__()
            self.kernel, self.out, self.leak = nn.Parameter(torch.randn(32)), nn.Conv1d(1, LEVELS, 1), leak

        def forward(self, x: Tensor) -> Tensor:
            n, later = x.shape[1], x.sum(1)[:, None, None]
            spectrum = torch.fft.rfft(x.float(), 2 * n) * torch.fft.rfft(self.kernel[:n], 2 * n)
            return self.out(torch.fft.irfft(spectrum, 2 * n)[:, None, :n]) + self.leak * later

    head = Categorical(LEVELS, to_input="float")
    assert leaks_of(built(lambda: Fourier(0.0)), (24,), head, "time", predicts="next").count == 0
    assert leaks_of(built(lambda: Fourier(1e-6)), (24,), head, "time", predicts="next").count >= 20


def test_channels_and_sub_pixels():
    head = Categorical(LEVELS, to_input="unit")
    module = built(lambda: nn.Conv2d(3, 3 * LEVELS, 1))
    within = leaks_of(module, (3, 2, 2), head, "raster-subpixel")
    assert within.count == 12
    masked = built(lambda: nn.Conv2d(3, 3 * LEVELS, 1))
    for channel in range(3):
        masked.weight.data[channel * LEVELS : (channel + 1) * LEVELS, channel:] = 0
    assert leaks_of(masked, (3, 2, 2), head, "raster-subpixel").count == 0
    assert leaks_of(masked, (3, 2, 2), head, "raster").count == 8  # channels 1 and 2


def test_coupled_channels_leak_together():
    leaks = leaks_of(built(lambda: nn.Conv2d(3, 20, 1)), (3, 2, 2), DiscretizedLogisticMixture(2, 16), "raster")
    assert leaks.count == 12


def test_a_continuous_network_that_overflows_far_out_does_not_leak():
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = nn.functional.pad(torch.exp(torch.exp(x)), (1, 0))[:, :-1]
            return torch.stack([torch.tanh(kept + 0 * torch.exp(x)), kept * 0], 1)

    leaks = leaks_of(Doubled(), (8,), Gaussian(), "time")
    assert (leaks.count, leaks.reached) == (0, 8)


def test_zeros_that_multiply_are_told_by_nan():
    class Zeros(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x[..., :1].expand_as(x) * (torch.arange(x.shape[-1]) > 0)) + 0 * x.sum(-1, keepdim=True)

    leaks = leaks_of(Zeros(), (5,), Bernoulli(to_input="float"), "time")
    assert (leaks.count, leaks.reached) == (0, 5)


@pytest.mark.parametrize(("order", "shape"), [("raster", (1, 40, 9)), ("time", (900,)), ("raster-subpixel", (3, 9, 8))])
@pytest.mark.parametrize("most", [4, 16, 100])
def test_chosen_steps_are_bounded_and_have_both_ends(order, shape, most):
    made = make_order(order, shape)
    steps = chosen_steps(made, most, torch.Generator().manual_seed(0))
    assert len(steps) <= max(most, 4)
    assert steps == sorted(set(steps))
    assert {0, 1, made.length - 2, made.length - 1} <= set(steps)
    if most == 100:
        assert len(steps) == 100
    if order == "raster" and most == 100:
        assert {0, 8, 39 * 9, 39 * 9 + 8} <= set(steps)
    assert chosen_steps(made, made.length, torch.Generator()) == list(range(made.length))


def test_a_leak_of_a_large_event_is_found_by_few_steps():
    leaks = leaks_of(built(lambda: Taps(1)), (2000,), Categorical(LEVELS), "time", rows=64)
    assert len(leaks.tested) == 16
    assert leaks.count >= 14


# ---- reports


OFTEN = {
    "masked_stack", "made_permuted", "wavenet_one_hot", "char_lstm", "gpt", "translator", "pixelsnail", "wavernn",
    "video_pixel_network", "codebooks_delayed", "multiscale_pixelcnn", "strokes",
}  # fmt: skip
"""Networks of every kind; the others are tried with the slow tests."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in CASES if "_pp" not in name],
)
def test_the_networks_of_other_tests_pass(name):
    given = case(name)
    context = given.contexts(2)
    report = verify(
        given.module, given.event_shape, given.head, given.order, given.predicts, given.adapter, context, samples=2
    )
    assert report.passed, str(report)
    assert bool(report)
    assert report.verdict == "passed"
    assert report.leaks.count == 0
    assert report.program.agreement.error <= report.program.agreement.bound


def test_a_leak_fails_both_ways_and_both_name_it():
    report = of_tokens(-1, 2)
    assert not report
    assert not report.causal
    assert report.verdict == "FAILED: not causal"
    said = str(report)
    assert "10 of 12 outputs change with elements that are not drawn yet (all of 12 steps tried)" in said
    assert "the output that scores element 0 (step 0) sees element 2 (step 2)" in said
    assert "depends on element (2,) (drawn at step 2)" in report.program.not_causal
    assert report.influence.output.step <= 9
    assert report.influence.seen[0, report.influence.output.step + 2]


def test_predicts_next_shifts_what_an_output_may_see():
    assert of_tokens(0, -2, predicts="next").passed
    assert not of_tokens(1, predicts="next").causal


def test_blind_spots_are_shown_and_are_no_fault():
    report = verify(built(TwoMasks), IMAGE, Categorical(LEVELS))
    assert report.passed
    assert report.influence.output.position == (5, 2)
    assert report.influence.blind_names() == ["(4, 4)"]
    assert "1 earlier elements within the reach of the output that scores (5, 2) (step 27)" in str(report)
    assert (report.influence.blind.reshape(6, 5) == torch.from_numpy(structural(TwoMasks).blind[0])).all()
    taps = of_tokens(-1, -4)
    assert taps.influence.blind_names() == ["9", "8"]


def structural(kind) -> object:
    return fastgen.Sampler(built(kind), IMAGE, Categorical(LEVELS)).explain().field


def test_an_influence_too_small_to_show_is_no_blind_spot_where_the_structure_says_so():
    class Faint(Taps):
        def forward(self, x: Tensor) -> Tensor:
            older = nn.functional.pad(self.embed(x), (0, 0, 2, 0))[:, :-2].transpose(1, 2)
            return super().forward(x) + 1e-30 * older[:, :LEVELS]

    report = verify(built(lambda: Faint(-1, -3)), (12,), Categorical(LEVELS), [*range(12)])
    assert report.passed
    assert not report.influence.seen[0, 9]
    assert not report.influence.blind.any()


def test_a_causal_network_without_a_program_is_told_so():
    class Decides(Taps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if x.sum() < 0 else 2)

    report = verify(built(lambda: Decides(-1)), (10,), Categorical(LEVELS), "time")
    assert (report.causal, report.passed, report.verdict) == (True, False, "causal, but NOT COMPILED")
    assert "none: no output changes" in str(report)
    assert "not compiled: torch.export does not take Decides" in str(report)
    assert report.program.samples is None


def test_a_scripted_module_is_tried_without_a_compiler():
    scripted = torch.jit.trace(built(lambda: nn.Conv1d(1, LEVELS, 1)), torch.zeros(2, 1, 7))
    report = verify(scripted, (1, 7), Categorical(LEVELS, to_input="unit"), "time")
    assert report.leaks.count == 7
    assert "torch.export cannot take" in report.program.not_compiled


def test_a_module_exported_for_two_samples():
    module = torch.export.export(built(TwoMasks), (torch.zeros(2, *IMAGE),)).module()
    report = verify(module, IMAGE, Categorical(LEVELS, to_input="unit"))
    assert report.passed
    assert report.program.samples.samples == 2


def test_samples_that_mix_and_outputs_that_change():
    class Mixes(Taps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - super().forward(x).mean(0)

    class Random(Taps):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    report = verify(built(lambda: Mixes(-1)), (6,), Categorical(LEVELS), "time")
    assert (report.mixes_samples, report.leaks, report.verdict) == (True, None, "FAILED: the samples of a batch mix")
    assert "mixes the samples" in report.program.not_causal
    random = verify(built(lambda: Random(-1)), (6,), Categorical(LEVELS), "time")
    assert (random.repeatable, random.program, bool(random)) == (False, None, False)
    assert "NO: the same input gives different outputs" in str(random)
    with pytest.raises(ValueError, match="a picture needs a leak test"):
        random.plot("none.png")


@pytest.fixture
def wrong_programs(monkeypatch):
    """Samplers whose program has one constant that is not the module's."""

    class Wrong(fastgen.Sampler):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            self.program.constants[0] += 0.5
            self.run_on(None, self.compiled)

    monkeypatch.setattr(program_check, "Sampler", Wrong)


def test_a_program_that_is_not_the_module_fails(wrong_programs):
    report = verify(built(TwoMasks), IMAGE, Categorical(LEVELS))
    assert report.causal
    assert report.verdict == "FAILED: the program is not the module"
    assert "at position (0, 0)" in report.program.mismatch


@pytest.mark.parametrize("head", [Categorical(LEVELS), Gaussian(), DiscretizedLogisticMixture(2, 16)])
def test_samples_that_the_module_does_not_draw_are_found(wrong_programs, monkeypatch, head):
    monkeypatch.setattr(program_check, "self_check", lambda _: None)
    parameters = head.resolve(IMAGE).parameters_per_group
    module = built(lambda: nn.Sequential(nn.Tanh(), fastgen.nn.MaskedConv2d(1, parameters, 3, mask="A")))
    report = verify(module, IMAGE, head, samples=8)
    assert report.verdict == "FAILED: the program is not the module"
    assert report.program.samples.wrong is not None
    assert "NOT those of the textbook loop: element (" in str(report)


def test_a_network_whose_samples_diverge():
    class Grows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = nn.functional.pad(x, (1, 0))[:, :-1]
            return torch.stack([1e6 * kept + 1e6, 0 * kept], 1)

    report = verify(Grows(), (12,), Gaussian(), "time")
    assert (report.causal, report.verdict) == (True, "FAILED: no samples")
    assert "makes no distribution" in str(report)


def test_the_module_and_the_random_numbers_are_left_as_they_were():
    class Counts(TwoMasks):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.first.weight.data *= 1.0
            return super().forward(x)

    module = built(Counts).train()
    state, before = torch.get_rng_state(), {n: t.clone() for n, t in module.state_dict().items()}
    assert verify(module, IMAGE, Categorical(LEVELS)).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"samples": 0}, "samples must be an integer, 1 or more, got 0"),
        ({"seed": -1}, "seed must be an integer in 0"),
        ({"module": print}, "module must be a torch.nn.Module, got a builtin_function_or_method"),
        ({"head": "categorical"}, "head must be one of fastgen.heads"),
        ({"order": "features"}, "order 'features' needs"),
        ({"predicts": "both"}, "predicts must be 'same' or 'next'"),
        ({"head": Categorical(5)}, r"output must have shape \[N, 5, 6, 5\]"),
        ({"head": Categorical(LEVELS, to_input="index")}, "does not take inputs .*pass to_input="),
        ({"module": nn.Sequential(nn.LazyConv2d(LEVELS, 1))}, "'0.weight' has no shape yet"),
        ({"adapter": lambda output: (output, output)}, "must return a tensor, got a tuple: pass an adapter"),
    ],
)
def test_wrong_arguments(changes, said):
    arguments = {"module": built(TwoMasks), "event_shape": IMAGE, "head": Categorical(LEVELS)} | changes
    with pytest.raises((ValueError, CompileError), match=said):
        verify(**arguments)


# ---- pictures


@pytest.mark.parametrize("kind", ["image", "leaky image", "sequence", "leaky sequence", "features"])
def test_the_picture_shows_what_was_found(kind, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, which the zoo extra installs")
    from PIL import Image

    if "image" in kind:
        report = verify(built(lambda: TwoMasks("B" if "leaky" in kind else "A")), IMAGE, Categorical(LEVELS))
    elif kind == "features":
        report = verify(built(lambda: Taps(-1)), (7,), Categorical(LEVELS), "features")
    else:
        report = of_tokens(-1, -3, 1) if "leaky" in kind else of_tokens(-1, -3)
    report.plot(tmp_path / "report.png")
    pixels = torch.tensor(np.array(Image.open(tmp_path / "report.png").convert("RGB")))
    shows = {name: bool((pixels == torch.tensor(rgb)).all(-1).any()) for name, rgb in COLOURS.items()}
    assert shows["leak"] == ("leaky" in kind)
    assert shows["seen"]
    assert shows["blind"] == bool(report.influence.blind.any())


COLOURS = {"seen": (0x2A, 0x78, 0x8E), "blind": (0xF6, 0xB8, 0x8C), "leak": (0xC4, 0x4E, 0x52)}
