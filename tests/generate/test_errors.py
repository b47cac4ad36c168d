"""What is wrong is said before any work, with the name of the argument, what was given and what is allowed."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgen
from fastgen.generate import CompileError, NotCausalError, UnsupportedOperator, heads
from tests.generate.compiled import FAST, case, sampler
from tests.generate.seeded import built
from tests.generate.wrong_networks import WRONG


def make(module, event_shape, head, order="raster", **options):
    return fastgen.Sampler(module, event_shape=event_shape, head=head, order=order, machine=FAST, **options)


# ---- networks


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_network_is_refused(name):
    module, event_shape, head, order, word = WRONG[name]()
    training = module.training
    with pytest.raises(CompileError, match=word):
        make(module, event_shape, head, order)
    assert module.training == training


def test_a_network_that_sees_itself_is_told_of_predicts_next():
    module, event_shape, head, order, _ = WRONG["sees_itself"]()
    with pytest.raises(NotCausalError, match=re.escape('pass predicts="next"')):
        make(module, event_shape, head, order)
    make(module, event_shape, head, order, predicts="next")


def test_a_peek_names_the_output_the_element_and_the_layer():
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with pytest.raises(
        NotCausalError, match=r"element \(0, 0\) .*drawn at step 0.* depends on element \(1, 1\).*through 0 -> "
    ):
        make(module, (1, 6, 6), heads.Categorical(3, to_input="unit"))


def test_a_network_is_causal_for_one_order_and_not_for_another():
    module, event_shape, head, order, *_ = case("made_permuted").__dict__.values()
    with pytest.raises(NotCausalError, match="order 'features'"):
        make(module, event_shape, head, "features")
    with pytest.raises(NotCausalError, match="order 'permutation'"):
        make(module, event_shape, head, list(order)[::-1])


def test_colours_that_follow_one_another_need_the_order_of_sub_pixels():
    made = case("pixelcnn_colour")
    with pytest.raises(NotCausalError, match=r"scores element \(0, 0\), channel 0 .* depends on element \(0, 0\)"):
        make(made.module, made.event_shape, made.head, "raster")


def test_an_operator_without_a_rule_is_named_with_its_line():
    module, event_shape, head, order, _ = WRONG["special"]()
    with pytest.raises(UnsupportedOperator, match=r"lgamma.*wrong_networks\.py.*self\.spoil.*register_rule"):
        make(module, event_shape, head, order)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] if x.sum() > 0 else -x


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape[0], 4, x.shape[1])


def test_what_cannot_be_exported_is_said():
    with pytest.raises(
        CompileError, match=r"(?s)does not take Branches, at forward, File .*test_errors\.py.* > 0 .*where"
    ):
        make(Branches(), (8,), heads.Bernoulli(to_input="unit"), "time")
    with pytest.raises(CompileError, match="output does not depend on its input"):
        make(Constant(), (8,), heads.Categorical(4, to_input="unit"), "time")


class Random(nn.Module):
    def __init__(self, noise) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.noise(F.pad(x, (1, -1)))


@pytest.mark.parametrize(
    "noise",
    [lambda h: F.dropout(h, 0.5), lambda h: h + torch.randn(h.shape), lambda h: h + torch.rand_like(h)],
)
def test_a_network_that_draws_noise_is_refused(noise):
    with pytest.raises(CompileError, match=r"forward draws random numbers at .*test_errors\.py"):
        make(Random(noise), (8,), heads.Bernoulli(to_input="unit"), "time")


def test_an_output_that_is_no_tensor_needs_an_adapter():
    module, event_shape, head = (
        Random(lambda h: {"logits": torch.tanh(h + 0.5), "hidden": h}),
        (8,),
        heads.Bernoulli(to_input="unit"),
    )
    with pytest.raises(CompileError, match="Random returns a dict, not a tensor; pass an adapter"):
        make(module, event_shape, head, "time")
    compiled = make(module, event_shape, head, "time", adapter=lambda output: output["logits"])
    assert torch.equal(compiled.sample(3, seed=1), compiled.sample_naive(3, seed=1))


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda h: F.conv1d(h[:, None], h[:1, None, :3], padding=1)[:, 0], "conv1d"),
        (lambda h: torch.zeros(3, 4)[h.long(), h.long()], "index"),
    ],
)
def test_a_use_of_an_operator_without_a_rule_is_named_with_its_line(use, said):
    with pytest.raises(UnsupportedOperator, match=rf"({said}).*test_errors\.py.*register_rule"):
        make(Random(use), (8,), heads.Bernoulli(to_input="unit"), "time")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    module = copy.deepcopy(case("masked_stack").module)
    with torch.no_grad():
        module.output.bias[2] = value
    with pytest.raises(CompileError, match=r"'output\.bias' holds NaN or infinite"):
        make(module, (1, 9, 7), heads.Categorical(5, to_input="unit"))


# ---- arguments of a sampler

HEAD = heads.Categorical(5, to_input="unit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"event_shape": (1, 2, 9, 7, 2)}, r"event_shape must be \(C, T, H, W\), .* got \(1, 2, 9, 7, 2\)"),
        ({"event_shape": ()}, r"event_shape must be .* got \(\)"),
        ({"event_shape": (1, 9.5, 7)}, r"event_shape must be .*, got \(1, 9.5, 7\)"),
        ({"event_shape": (1, 0, 7)}, r"event_shape must be .*positive sizes, got \(1, 0, 7\)"),
        ({"event_shape": (2, 9, 7)}, r"event_shape \(2, 9, 7\).*expected input.*to have 1 channels"),
        ({"head": "categorical"}, "head must be one of fastgen.heads, got 'categorical'"),
        ({"head": heads.Categorical(6, to_input="unit")}, r"output must have shape \[N, 6, 9, 7\].*\[2, 5, 9, 7\]"),
        ({"order": "spiral"}, r"order must be one of 'raster', .*'features' or a permutation.*'spiral'"),
        ({"order": "time"}, r"order 'time' needs event_shape \(T,\), \(C, T\) or \(D,\), got \(1, 9, 7\)"),
        ({"order": [0, 1, 1]}, r"order must be a permutation of the 63 positions of \(1, 9, 7\), got \[0, 1, 1\]"),
        ({"order": [*range(1, 63), 63]}, "order must be a permutation of the 63 positions"),
        ({"weights": "float16"}, "weights must be one of 'float32', 'bfloat16', 'int8', got 'float16'"),
        ({"predicts": "previous"}, "predicts must be 'same' or 'next', got 'previous'"),
        ({"machine": "gpu"}, "machine must be 'cpu' or 'reference', got 'gpu'"),
        ({"start": float("nan")}, "start must be a finite number of float32, got nan"),
        ({"start": 1e39}, r"start must be a finite number of float32, got 1e\+39"),
        ({"start": "x"}, "start must be a finite number of float32, got 'x'"),
        ({"start": "1.5"}, "start must be a finite number of float32, got '1.5'"),
        ({"start": True}, "start must be a finite number of float32, got True"),
        ({"threads": 0}, r"threads must be an integer in 1 \.\. 1024, got 0"),
        ({"threads": 1.5}, r"threads must be an integer in 1 \.\. 1024, got 1.5"),
        ({"example_context": [1, 2]}, r"example_context\[0\] must be a tensor \[N, \.\.\.\], got a int"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_a_sampler_is_named(options, message):
    given = {"event_shape": (1, 9, 7), "head": HEAD, "order": "raster", "machine": FAST} | options
    with pytest.raises(ValueError, match=message):
        fastgen.Sampler(case("masked_stack").module, **given)


def test_predicts_next_needs_an_order_with_a_next_element():
    with pytest.raises(ValueError, match="predicts='next' needs order 'time' or 'raster', got 'features'"):
        make(case("made").module, (17,), heads.Bernoulli(to_input="unit"), "features", predicts="next")


def test_raster_needs_an_image():
    with pytest.raises(
        ValueError, match=r"order 'raster' needs event_shape \(C, H, W\) or \(C, T, H, W\), got \(17,\)"
    ):
        make(case("made").module, (17,), heads.Bernoulli(to_input="unit"))


# ---- arguments of sampling

KNOWN = torch.zeros(2, 1, 9, 7, dtype=torch.int64)
MASK = torch.zeros(2, 1, 9, 7, dtype=torch.bool)


@pytest.mark.parametrize("method", ["sample", "sample_naive", "start"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a finite number above 0.*, got 0.0"),
        ({"temperature": -1.0}, "temperature must be .*, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be a finite number of float32, got nan"),
        ({"temperature": 1e-320}, "temperature must be 1.2e-38 or more.*, got 1e-320"),
        ({"top_p": 0.0}, "top_p must be .*, got 0.0"),
        ({"top_p": 1.5}, "top_p must be .*, got 1.5"),
        ({"top_p": "x"}, "top_p must be .*, got 'x'"),
        ({"top_k": -1}, "top_k must be .*, got -1"),
        ({"top_k": 2.5}, "top_k must be .*, got 2.5"),
        ({"known": KNOWN}, "known and known_mask go together"),
        ({"known_mask": MASK}, "known and known_mask go together"),
        ({"known": KNOWN[:, 0], "known_mask": MASK}, r"known must have shape \[2 or 1, 1, 9, 7\], got \[2, 9, 7\]"),
        ({"known": KNOWN.float(), "known_mask": MASK}, "known has dtype torch.float32"),
        ({"known": KNOWN + 5, "known_mask": MASK}, r"known has values in 5 \.\. 5; .* 0 \.\. 4"),
        ({"known": KNOWN, "known_mask": MASK[:, :, :8]}, r"known_mask must have shape \[2 or 1, 1, 9, 7\], got"),
        ({"known": KNOWN, "known_mask": MASK[:1].expand(3, 1, 9, 7)}, r"known_mask must have shape \[2 or 1"),
        ({"known": KNOWN, "known_mask": KNOWN}, r"known_mask must be boolean \[N, 1, 9, 7\], got torch.int64"),
        ({"known": [["a"]], "known_mask": MASK}, r"known must be a tensor, or numbers that make one, got \[\['a'\]\]"),
        ({"context": torch.zeros(2, 3)}, "context is given, but the sampler was made without example_context"),
    ],
)
def test_a_wrong_argument_of_sampling_is_named(method, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(sampler("masked_stack"), method)(2, **options)


@pytest.mark.parametrize("method", ["sample", "sample_naive", "start"])
def test_the_number_of_samples_and_the_seed_are_checked(method):
    draw = getattr(sampler("masked_stack"), method)
    for n in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=re.escape(f"must be an integer, 1 or more, got {n!r}")):
            draw(n)
    for seed in (-1, 2**63, 0.5):
        with pytest.raises(ValueError, match=r"seed must be an integer in 0 \.\. 2\*\*63 - 1, got"):
            draw(2, seed)


def test_only_a_categorical_head_takes_top_k_and_top_p():
    with pytest.raises(ValueError, match="only a Categorical head"):
        sampler("pixelcnn_pp").sample(1, top_k=3)


def test_a_thread_count_is_checked():
    with pytest.raises(ValueError, match=r"threads must be an integer in 1 \.\. 1024, got 0"):
        sampler("masked_stack").sample(1, threads=0)


def test_contexts_are_checked():
    compiled, context = sampler("gated_pixelcnn"), case("gated_pixelcnn").contexts(2)
    for wrong, message in (
        (None, "context is missing"),
        (context["class"], "context must have the structure of example_context"),
        ({"class": context["class"]}, "context must have the structure of example_context"),
        (context | {"class": context["class"][:, None]}, r"must have shape \['N'\] with N = 2 or 1, got \[2, 1\]"),
        (context | {"class": context["class"].float()}, r"leaf \d, must have dtype torch.int64, got torch.float32"),
        (context | {"map": context["map"][..., :5]}, r"context, leaf \d, must have shape \['N', 2, 8, 8\]"),
        (context | {"map": context["map"].expand(2, 2, 8, 8).repeat(2, 1, 1, 1)}, "with N = 2 or 1"),
        (context | {"map": context["map"] * torch.nan}, "NaN or infinite"),
        (context | {"map": 3.0}, "must be a tensor, got float"),
    ):  # fmt: skip
        for draw in (compiled.sample, compiled.sample_naive, compiled.start):
            with pytest.raises(ValueError, match=message):
                draw(2, context=wrong)


def test_log_prob_checks_its_levels():
    compiled = sampler("masked_stack")
    for wrong, message in (
        (KNOWN[:, 0], r"x must have shape \[N, 1, 9, 7\], got \[2, 9, 7\]"),
        (KNOWN - 1, r"x has values in -1 \.\. -1"),
        (KNOWN.float(), "x has dtype torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled.log_prob(wrong)


def test_a_stream_is_checked():
    said = "stream needs order 'time' or 'time-channels', or Delayed; this sampler has order 'raster'"
    with pytest.raises(ValueError, match=said):
        next(sampler("masked_stack").stream())
    compiled = sampler("tokens_last")
    for options, message in (
        ({"chunk": 0}, "chunk must be an integer, 1 or more, got 0"),
        ({"chunk": 1.5}, "chunk must be an integer, 1 or more, got 1.5"),
        ({"steps": 0}, "steps must be an integer, 1 or more, got 0"),
        ({"prompt": [[1, 2], [3]]}, r"prompt must be a tensor, or numbers that make one, got \[\[1, 2\], \[3\]\]"),
        ({"prompt": torch.zeros(2, 4, dtype=torch.int64)}, r"prompt must have shape \[1 or 1, 4\]"),
        ({"prompt": torch.full((1, 4), 11)}, r"prompt has values in 11 \.\. 11"),
        ({"temperature": 0.0}, "temperature must be .*, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            next(compiled.stream(**options))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(5, 6), nn.Conv1d(6, 5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(self.table(x).transpose(1, 2), (1, 0)))


@pytest.mark.parametrize("start", [-1, 5, 0.5])
def test_a_start_that_the_network_cannot_look_up_is_refused_at_once(start):
    with pytest.raises(ValueError, match=rf"start must be a whole number in 0 \.\. 4, .*table.*, got {start}"):
        make(built(Tokens), (8,), heads.Categorical(5), "time", predicts="next", start=start)


class Overflows(nn.Module):
    """Finite weights, but exp of a level far out of range: NaN once a large level is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(200.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.exp(self.scale * F.pad(x[:, None], (1, -1)))
        return torch.cat([h - h, h * 0 + 1], 1)


@pytest.mark.parametrize("machine", ["reference", FAST])
def test_a_network_whose_output_is_nan_is_told_with_the_position(machine):
    compiled = fastgen.Sampler(
        built(Overflows, 1.0),
        event_shape=(12,),
        head=heads.Categorical(2, to_input="unit"),
        order="time",
        machine=machine,
    )
    with pytest.raises(ValueError, match=r"position \d+.*NaN|NaN.*position \d+"):
        compiled.sample(4, seed=0)


def test_the_textbook_loop_takes_what_it_honours_and_refuses_the_rest():
    compiled = sampler("made")
    whole = compiled.sample_naive(4, seed=1)
    assert torch.equal(compiled.sample_naive(2, seed=1, first_sample=2), whole[2:])
    for name, value in {"threads": 1, "log_prob": True, "prompt": None}.items():
        with pytest.raises(TypeError, match=f"an option of sample_naive must be one of context, .*, got '{name}'"):
            compiled.sample_naive(2, **{name: value})
