"""Orders in which a step draws several elements: their rules, what they refuse, and their noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import fastgen
from fastgen.generate import Delayed, Groups, NotCausalError, Wavefront, multiscale, verify
from fastgen.generate.heads import Categorical, Custom, DiscretizedLogisticMixture, Gaussian
from fastgen.generate.ir.program import STREAM
from fastgen.generate.orders import make_order
from fastgen.generate.step_rules import rule_from_config
from tests.generate.compiled import FAST, MACHINES, case, sampler
from tests.generate.head_cases import logistic_draw, logistic_log_prob
from tests.generate.public_groups import STEPS
from tests.generate.seeded import built

NAMES = ("multiscale_pixelcnn", "wavefront", "scrambled", "codebooks_delayed")
ORDERS = {
    "raster": ("raster", (3, 4, 5)),
    "raster-subpixel": ("raster-subpixel", (3, 4, 5)),
    "time": ("time", (2, 7)),
    "permutation": ([2, 0, 1], (2, 3)),
    "groups": (Groups(STEPS), STEPS.shape),
    "groups of positions": (Groups([[1, 0], [2, 1]]), (3, 2, 2)),
    "wavefront": (Wavefront(3, 1), (2, 4, 5)),
    "flat wavefront": (Wavefront(1, 2), (1, 5, 3)),
    "delayed": (Delayed([2, 0, 0, 3]), (4, 9)),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_element_is_drawn_once_at_its_step_and_no_step_is_empty(name):
    order = make_order(*ORDERS[name])
    drawn = np.full((order.channels, order.positions), -1)
    assert len(order.draws) == order.length
    for step, draws in enumerate(order.draws):
        assert draws
        for (first, count, position), later in zip(draws, [*draws[1:], (order.channels, 0, 0)], strict=True):
            assert (first, position) < (later[0], later[2])
            assert (drawn[first : first + count, position] == -1).all()
            drawn[first : first + count, position] = step
    assert np.array_equal(drawn, order.steps)


@pytest.mark.parametrize("rule", [Groups(np.array([[0, 1]])), Wavefront(np.int64(3), 1), Delayed(np.array([0, 2]))])
def test_a_rule_is_made_again_from_plain_numbers(rule):
    again = rule_from_config(rule.name, json.loads(json.dumps(rule.to_config())))
    assert type(again) is type(rule)
    assert str(again) == str(rule)
    assert again.to_config() == rule.to_config()


@pytest.mark.parametrize(
    "saved", [("spiral", [1]), ("wavefront", [1, 2, 3]), ("wavefront", 2), ("groups", [[0], [1, 0]])]
)
def test_a_rule_of_other_numbers_is_refused(saved):
    with pytest.raises(ValueError, match=r"must be|must have"):
        rule_from_config(*saved)


def test_the_steps_of_the_rules():
    row, column = np.indices((4, 5))
    assert np.array_equal(make_order(Wavefront(3, 1), (2, 4, 5)).steps.reshape(2, 4, 5)[1], 3 * row + column)
    assert make_order(Delayed([1, 0]), (2, 3)).steps.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert make_order(Groups([[0, 1], [1, 0]]), (2, 2)).steps.tolist() == [[0, 1], [1, 0]]
    assert make_order(Groups([1, 0]), (2, 2)).steps.tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize(("height", "width", "coarsest"), [(8, 8, 1), (8, 16, (2, 4)), (4, 4, 4), (6, 6, 3)])
def test_multiscale_groups_double_the_resolution(height, width, coarsest):
    rows, columns = coarsest if isinstance(coarsest, tuple) else (coarsest, coarsest)
    doublings = (height // rows).bit_length() - 1
    steps = make_order(multiscale(height, width, coarsest), (1, height, width)).steps.reshape(height, width)
    assert steps.max() + 1 == rows * columns + 3 * doublings
    for level in range(doublings + 1):  # what is drawn before a doubling is the image at its resolution
        stride = 2 ** (doublings - level)
        inside = np.zeros((height, width), bool)
        inside[::stride, ::stride] = True
        assert np.array_equal(steps < rows * columns + 3 * level, inside)


def test_groups_of_one_element_are_the_permutation_bit_for_bit():
    made = case("made_permuted")
    groups = made.sampler(order=Groups(np.argsort(made.order)))
    assert torch.equal(groups.sample(4, seed=3), sampler("made_permuted").sample(4, seed=3))


@pytest.mark.parametrize("name", ["wavefront", "codebooks_delayed"])
def test_a_regular_rule_draws_what_its_steps_as_groups_draw(name):
    made, regular = case(name), sampler(name)
    unrolled = made.sampler(order=Groups(regular.order.steps.reshape(made.event_shape)))
    assert torch.equal(unrolled.sample(5, seed=2), regular.sample(5, seed=2))


def test_the_program_of_a_wavefront_does_not_grow_with_the_image():
    model = nn.Sequential(
        fastgen.nn.MaskedConv2d(1, 6, 3, mask="A"), nn.ReLU(), fastgen.nn.MaskedConv2d(6, 4, 3, mask="B")
    )
    head, programs = Categorical(4, to_input="unit"), []
    for size in ((1, 6, 5), (1, 9, 16)):
        made = fastgen.Sampler(model.eval(), size, head, order=Wavefront(), machine=FAST)
        assert made.steps == 2 * (size[1] - 1) + size[2] < size[1] * size[2]
        assert torch.equal(made.sample(3, seed=1), made.sample_naive(3, seed=1))
        programs.append(len(made.program.instructions))
    assert programs[0] == programs[1]


class FirstColumn(nn.Module):
    """The second column sees the first; nothing else is read by anyone."""

    def forward(self, x):
        seen = nn.functional.pad(x[..., :1], (1, x.shape[-1] - 2))
        return torch.cat([3 * seen, 1 - seen, -seen], 1)


@pytest.mark.parametrize("size", [(1, 4, 6), (1, 6, 9)])
def test_pixels_that_nobody_reads_do_not_take_the_place_of_others(size):
    made = fastgen.Sampler(FirstColumn(), size, Categorical(3, to_input="unit"), order=Wavefront(), machine=FAST)
    assert torch.equal(made.sample(30, seed=1), made.sample_naive(30, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_the_textbook_loop_runs_one_forward_a_step(name):
    made, calls = sampler(name), []
    handle = made.module.register_forward_hook(lambda *_: calls.append(1))
    made.sample_naive(1, seed=0)
    handle.remove()
    assert len(calls) == made.steps == made.order.steps.max() + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_group_may_be_known(name):
    """The rest of the group is drawn as without it, and what follows is drawn from both."""
    made, levels = sampler(name), case(name).levels(3)
    drawn = made.sample(3, seed=4)
    steps = torch.from_numpy(made.order.steps).reshape(made.event_shape)
    step = int(steps.flatten().bincount().argmax())
    group = (steps == step).flatten().nonzero().flatten()
    mask = torch.zeros(made.event_shape, dtype=torch.bool)
    mask.view(-1)[group[1::2]] = True
    known = mask.expand(3, *made.event_shape)
    half = made.sample(3, seed=4, known=levels, known_mask=known)
    assert torch.equal(half[known], levels[known])
    same = ((steps <= step) & ~mask).expand(3, *made.event_shape)
    assert torch.equal(half[same], drawn[same])
    assert torch.equal(half, made.sample_naive(3, seed=4, known=levels, known_mask=known))


@pytest.mark.parametrize("name", NAMES)
def test_it_stops_within_is_saved_and_goes_on(name, tmp_path):
    made = sampler(name)
    whole, log_prob = made.sample(3, seed=6, return_log_prob=True)
    state = made.advance(made.start(3, seed=6, log_prob=True), made.steps // 2)
    early = torch.from_numpy(made.order.steps < state.step).reshape(made.event_shape)
    assert torch.equal(state.levels[:, early], whole[:, early])
    assert not state.levels[:, ~early].any()
    state.save(tmp_path / "state.safetensors")
    made.save(tmp_path / "sampler.safetensors")
    loaded = fastgen.Sampler.load(tmp_path / "sampler.safetensors", machine=FAST)
    assert np.array_equal(loaded.order.steps, made.order.steps)
    resumed = loaded.advance(loaded.load_state(tmp_path / "state.safetensors"), made.steps)
    assert torch.equal(resumed.levels, whole)
    assert torch.equal(resumed.run.log_prob, log_prob)
    again = made.advance(made.start(3, seed=6), made.steps // 2).fork([2, 0], same_noise=True)
    assert torch.equal(made.advance(again, made.steps).levels, whole[[2, 0]])


@pytest.mark.parametrize("name", NAMES)
def test_verify_finds_nothing(name):
    made = case(name)
    report = verify(made.module, event_shape=made.event_shape, head=made.head, order=made.order)
    assert report.passed, str(report)


class Pairs(nn.Module):
    """Four elements; the output of the last sees the third."""

    def forward(self, x):
        return torch.stack([nn.functional.pad(sign * x[:, 2:3], (3, 0)) for sign in (1, -1)], 1)


def test_elements_of_one_step_may_not_see_one_another():
    head = Categorical(2, to_input="unit")
    for steps, step in (([0, 0, 1, 1], 1), ([0, 0, 0, 0], 0)):
        at = rf"\(drawn at step {step}\)"
        said = rf"order 'groups'.*scores element \(3,\) {at} depends on element \(2,\) {at}.*nothing of its own step"
        with pytest.raises(NotCausalError, match=said):
            fastgen.Sampler(Pairs(), (4,), head, order=Groups(steps))
    report = verify(Pairs(), event_shape=(4,), head=head, order=Groups([0, 0, 1, 1]))
    assert [(str(leak.output), str(leak.seen)) for leak in report.leaks.examples] == [("3 (step 1)", "2 (step 1)")]
    assert fastgen.Sampler(Pairs(), (4,), head, order=Groups([0, 0, 1, 2])).steps == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Groups([0, 2]), r"steps must be 0 \.\. 2, each for some element, got none of step 1"),
        (lambda: Groups([1, 2]), "got none of step 0"),
        (lambda: Groups([0, -1]), "steps must be 0 or more, got -1"),
        (lambda: Groups([0.0, 1.0]), r"steps must be an array of integers, got float64 \[2\]"),
        (lambda: Groups([]), r"steps must be an array of integers, got float64 \[0\]"),
        (lambda: Groups([True, False]), "steps must be an array of integers, got bool"),
        (lambda: Groups([[0], [0, 1]]), r"steps must be an array of integers, got \[\[0\], \[0, 1\]\]"),
        (lambda: Groups("abc"), "steps must be an array of integers"),
        (lambda: Wavefront(0, 1), "row must be an integer, 1 or more, got 0"),
        (lambda: Wavefront(2, 1.5), "column must be an integer, 1 or more, got 1.5"),
        (lambda: Delayed([]), r"delays must be a list of integers, one for each codebook, got \[\]"),
        (lambda: Delayed(3), "delays must be a list of integers, one for each codebook, got 3"),
        (lambda: Delayed([0, -1]), "delays must be an integer, 0 or more, got -1"),
        (lambda: Delayed([1, 2]), r"delays must begin with 0 for some codebook, got \[1, 2\]"),
        (lambda: multiscale(8, 8, 3), r"coarsest must double to \(8, 8\), got \(3, 3\)"),
        (lambda: multiscale(8, 16, 2), r"coarsest must double to \(8, 16\), got \(2, 2\)"),
        (lambda: multiscale(8, 8, (1, 2, 3)), r"coarsest must be an integer or \(h, w\), got \(1, 2, 3\)"),
        (lambda: multiscale(0, 8), "height must be an integer, 1 or more, got 0"),
        (lambda: make_order(Groups([0, 1]), (3,)), r"order must be Groups of shape \[3\] or \[1, 3\].*got shape \[2\]"),
        (lambda: make_order(Groups([0, 1]), (1, 2, 1)), r"of shape \[2, 1\] or \[1, 2, 1\].*got shape \[2\]"),
        (lambda: make_order(Wavefront(), (2, 9)), r"order Wavefront\(row=2, column=1\) needs event_shape \(C, H, W\)"),
        (lambda: make_order(Wavefront(3, 2), (1, 9, 9)), "draws nothing at some step of an image 9 x 9"),
        (lambda: make_order(Wavefront(2, 1), (1, 9, 1)), "draws nothing at some step of an image 9 x 1"),
        (lambda: make_order(Delayed([0, 1]), (3, 9)), r"Delayed\(\[0, 1\]\) needs event_shape \(2, T\), got \(3, 9\)"),
        (lambda: make_order(Delayed([0, 4]), (2, 3)), r"Delayed\(\[0, 4\]\) draws nothing at some step of 3 times"),
        (lambda: make_order("wavefront", (1, 9, 9)), "of fastgen.generate.Groups, Wavefront, Delayed, got 'wave"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


HEADS = {
    "mixture": (DiscretizedLogisticMixture(2), 3, 20),
    "gaussian": (Gaussian(), 2, 4),
    "custom": (Custom(logistic_draw, logistic_log_prob, parameters_per_position=1, channels=1), 1, 1),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_any_head_draws_the_elements_of_a_step(name, unrolled, machine):
    head, channels, parameters = HEADS[name]
    model = built(lambda: fastgen.nn.MaskedConv2d(channels, parameters, 3, mask="A"), gain=0.5)
    size, order = (channels, 4, 5), Wavefront()
    order = Groups(order.steps(1, size[1:]).reshape(size[1:])) if unrolled else order
    made = fastgen.Sampler(nn.Sequential(nn.Tanh(), model), size, head, order=order, machine=machine)
    drawn, log_prob = made.sample(6, seed=3, return_log_prob=True)
    naive, naive_log_prob = made.sample_naive(6, seed=3, return_log_prob=True)
    torch.testing.assert_close(drawn, naive, rtol=0 if head.levels else 1e-5, atol=0 if head.levels else 1e-5)
    torch.testing.assert_close(log_prob, naive_log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_prob, made.log_prob(drawn).double(), rtol=1e-5, atol=1e-5)
    for n, threads in ((1, 1), (2, 2), (6, 2)):
        assert torch.equal(made.sample(n, seed=3, threads=threads), drawn[:n])


def test_coupled_channels_are_drawn_at_one_step():
    model = nn.Conv2d(3, 20, 1)
    groups = Groups(np.arange(12).reshape(3, 2, 2) % 3)
    with pytest.raises(fastgen.generate.CompileError, match="order 'groups' draws channels of a position at several"):
        fastgen.Sampler(model, (3, 2, 2), DiscretizedLogisticMixture(2), order=groups)


class Tune(nn.Module):
    """Dilated convolutions over summed embeddings of three codebooks, delayed as in MusicGen where ``lag`` is 1."""

    def __init__(self, lag: int, codebooks: int = 3, levels: int = 5, width: int = 8) -> None:
        super().__init__()
        self.lag, self.shape = lag, (codebooks, levels)
        self.embed = nn.ModuleList(nn.Embedding(levels + 1, width) for _ in range(codebooks))
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3))
        self.out = nn.Conv1d(width, codebooks * levels, 1)

    def forward(self, x):
        (codebooks, levels), steps = self.shape, x.shape[2]
        ends = [(k * self.lag + 1, (codebooks - 1 - k) * self.lag - 1) for k in range(codebooks)]
        rows = [nn.functional.pad(x[:, k], end, value=levels) for k, end in enumerate(ends)]
        h = sum(embed(row) for embed, row in zip(self.embed, rows, strict=True)).transpose(1, 2)
        for conv in self.convs:
            h = h + torch.tanh(conv(nn.functional.pad(h, (conv.dilation[0], 0))))
        logits = self.out(h).unflatten(1, self.shape)
        return torch.stack([logits[:, k, :, k * self.lag : k * self.lag + steps] for k in range(codebooks)], 1)


@pytest.mark.parametrize("lag", [0, 1])
def test_the_program_of_codebooks_does_not_grow_with_their_length(lag):
    order = Delayed([0, 1, 2]) if lag else "time"
    short, long = (fastgen.Sampler(built(lambda: Tune(lag)), (3, n), Categorical(5), order=order) for n in (20, 500))
    assert len(short.program.instructions) == len(long.program.instructions)
    assert short.steps == 20 + 2 * lag
    assert torch.equal(short.sample(2, seed=1), short.sample_naive(2, seed=1))
    drawn = torch.from_numpy(long.order.steps < 30)
    assert torch.equal(long.sample(2, seed=1)[:, drawn], long.sample_naive(2, seed=1, steps=30)[:, drawn])
    assert long.program.steps == (500 + 2 if lag else STREAM)


@pytest.mark.parametrize("order", ["time", "delayed"])
def test_codebooks_are_streamed_in_chunks(order):
    rule, lag = ("time", 0) if order == "time" else (Delayed([0, 1, 2]), 1)
    made = fastgen.Sampler(built(lambda: Tune(lag)), (3, 40), Categorical(5), order=rule, machine=FAST)
    whole = made.sample(2, seed=6)
    for chunk in (1, 2, 7, 100):
        pieces = list(made.stream(2, 40, chunk, seed=6))
        assert [piece.shape[-1] for piece in pieces[:-1]] == [chunk] * (len(pieces) - 1)
        assert torch.equal(torch.cat(pieces, -1), whole)
        for given in (1, 2, 13):
            prompted = made.stream(2, 40 - given, chunk, seed=6, prompt=whole[..., :given])
            assert torch.equal(torch.cat(list(prompted), -1), whole[..., given:])
    if lag:
        with pytest.raises(ValueError, match=r"steps must be 1 \.\. 40 for this network, got 41"):
            next(made.stream(2, 41))


def test_predicts_next_and_streams_need_an_order_in_time():
    made = case("wavefront")
    with pytest.raises(ValueError, match="predicts='next' needs order 'time' or 'raster', got 'wavefront'"):
        made.sampler(predicts="next")
    with pytest.raises(ValueError, match="stream needs order 'time' or 'time-channels', or Delayed; this sampler has"):
        sampler("wavefront").stream()
