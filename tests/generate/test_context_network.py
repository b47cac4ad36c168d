"""What reads only the context runs once, at the start, whatever operators it uses (fault generation_13)."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgen
from fastgen.generate import CompileError, NotCausalError, heads
from tests.generate.compiled import FAST
from tests.generate.seeded import built

LEVELS, MEL, FRAMES, STEPS = 6, 8, 4, 12
HEAD = heads.Categorical(LEVELS)


class Conditioned(nn.Module):
    """A step reads the element before and ``encode(mel)``, ``[N, MEL or 2 MEL, STEPS or 1]``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.embed, self.encoder, self.out = nn.Embedding(LEVELS, 8), encoder, nn.Linear(8, LEVELS)
        self.condition = nn.LazyLinear(8)
        self(torch.zeros(1, STEPS, dtype=torch.int64), torch.zeros(1, MEL, FRAMES))

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        h = self.embed(x) + self.condition(self.encoder(mel).transpose(1, 2))
        return self.out(torch.tanh(h)).transpose(1, 2)


class Upsampler(nn.Module):
    """Of vocoders: stretch, then a 2-d convolution over [mel, time]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (1, 5), padding=(0, 2))

    def forward(self, mel: Tensor) -> Tensor:
        return self.conv(F.interpolate(mel[:, None], scale_factor=(1, STEPS // FRAMES), mode="nearest"))[:, 0]


class LastState(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(MEL, MEL, batch_first=batch_first, bidirectional=True)

    def forward(self, mel: Tensor) -> Tensor:
        states = self.gru(mel.transpose(1, 2) if self.gru.batch_first else mel.permute(2, 0, 1))[1]
        return torch.cat([states[0], states[1]], 1)[..., None]


class EveryState(nn.Module):
    """One state a frame, repeated over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL, MEL, batch_first=True)

    def forward(self, mel: Tensor) -> Tensor:
        return self.lstm(mel.transpose(1, 2))[0].repeat_interleave(STEPS // FRAMES, 1).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(MEL, 2, 16, batch_first=True)

    def forward(self, mel: Tensor) -> Tensor:
        return self.layer(mel.transpose(1, 2)).mean(1)[..., None]


class Repeated(nn.Module):
    """What a program computes by itself: a convolution of every frame, repeated over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(MEL, MEL, 1)

    def forward(self, mel: Tensor) -> Tensor:
        return torch.tanh(self.conv(mel)).repeat_interleave(STEPS // FRAMES, 2)


class Seen(nn.Module):
    """A pooled code beside the frames themselves: one part runs in PyTorch, the other in the program."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Conv1d(MEL, MEL, 3), nn.AdaptiveMaxPool1d(1))

    def forward(self, mel: Tensor) -> Tensor:
        return torch.cat([mel.repeat_interleave(STEPS // FRAMES, 2), self.pool(mel).expand(-1, -1, STEPS)], 1)


ENCODERS = {
    "upsampler": Upsampler,
    "gru": lambda: LastState(batch_first=True),
    "gru, frames first": lambda: LastState(batch_first=False),
    "lstm": EveryState,
    "attention": Attention,
    "pooling": lambda: nn.Sequential(nn.Conv1d(MEL, MEL, 3), nn.AdaptiveAvgPool1d(1)),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, MEL), nn.AvgPool1d(FRAMES)),
    "beside frames": Seen,
}  # fmt: skip


def mel(n: int) -> Tensor:
    return torch.randn(n, MEL, FRAMES, generator=torch.Generator().manual_seed(3))


@cache
def sampler(name: str) -> fastgen.Sampler:
    return compiled(built(lambda: Conditioned(ENCODERS[name]())))


def compiled(module: nn.Module, steps: int = STEPS, example=None, **options) -> fastgen.Sampler:
    return fastgen.Sampler(
        module, (steps,), HEAD, "time", predicts="next", machine=FAST, threads=1,
        example_context=mel(1) if example is None else example, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_code_of_the_context_is_exact(name):
    """Fault generation_13_context_network."""
    made, context = sampler(name), mel(3)
    drawn, log_prob = made.sample(3, seed=1, context=context, return_log_prob=True)
    assert torch.equal(drawn, made.sample_naive(3, seed=1, context=context))
    assert torch.allclose(log_prob.float(), made.log_prob(drawn, context), rtol=1e-5, atol=0)
    assert not torch.equal(drawn[:1], made.sample(1, seed=1, context=-context[:1]))


@pytest.mark.parametrize("name", ["attention", "lstm"])
def test_it_is_bitwise_the_same_in_any_batch_and_thread(name):
    made, context = sampler(name), mel(5)
    whole = made.start(5, context=context).run.contexts
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        parts = [made.start(1, context=context[i : i + 1]).run.contexts for i in range(5)]
    finally:
        torch.set_num_threads(threads)
    for number, result in enumerate(whole):
        assert torch.equal(result, torch.cat([part[number] for part in parts]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, made.start(5, context=context).run.contexts, whole))
    same = made.start(5, context=context[:1]).run.contexts
    assert all(torch.equal(a[:1].expand_as(b), b) for a, b in zip(whole, same, strict=True))


def test_only_what_needs_it_runs_in_pytorch_and_the_least_is_kept():
    """Of an encoder its code, not its states; of frames that the program repeats nothing."""
    attention = sampler("attention").compiled.context_network
    assert attention.sizes == [(1, MEL)]
    frames = sampler("beside frames").compiled.context_network
    assert not any("repeat" in call.name for call in frames.calls)
    plain = compiled(built(lambda: Conditioned(Repeated())))
    assert plain.compiled.context_network is None


def test_composites_of_the_context_stay_whole():
    """A GRU is one call, not one of its operators for every frame."""
    assert [str(call.operator) for call in sampler("gru").compiled.context_network.calls].count("aten.gru.input") == 1


def test_explain_says_what_runs_in_pytorch():
    said = str(sampler("lstm").explain())
    assert "at the start     PyTorch runs " in said
    assert "operators on the context of encoder, encoder.lstm, once a sample" in said
    assert f"kept as {FRAMES} x {MEL} numbers (positions x channels)" in said
    assert "PyTorch runs" not in str(compiled(built(lambda: Conditioned(Repeated()))).explain())


class Image(nn.Module):
    """Rows above, a class and a pooled picture, ``{"class": [N], "picture": [N, 2, 5, 5]}``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classes = nn.Conv2d(1, LEVELS, (1, 3)), nn.Embedding(3, 4)
        self.encoder = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.shift = nn.Linear(8, LEVELS)

    def forward(self, x: Tensor, context: dict[str, Tensor]) -> Tensor:
        code = torch.cat([self.classes(context["class"]), self.encoder(context["picture"])], 1)
        return self.conv(F.pad(x, (1, 1, 1, -1))) + self.shift(code)[:, :, None, None]


def test_an_image_with_several_contexts_is_exact():
    def context(n: int) -> dict[str, Tensor]:
        picture = torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(1))
        return {"class": torch.arange(n) % 3, "picture": picture}

    made = fastgen.Sampler(built(Image), (1, 4, 4), HEAD, example_context=context(1), machine=FAST)
    assert made.compiled.context_network is not None
    drawn = made.sample(3, seed=1, context=context(3))
    assert torch.equal(drawn, made.sample_naive(3, seed=1, context=context(3)))


def test_chunks_of_a_stream_and_a_saved_state_go_on_with_the_results(tmp_path):
    made, context = sampler("lstm"), mel(2)
    whole = made.sample(2, seed=4, context=context)
    assert torch.equal(torch.cat([*made.stream(2, STEPS, 5, seed=4, context=context)], 1), whole)
    state = made.advance(made.start(2, 4, context=context), 5)
    state.save(tmp_path / "state")
    state = made.advance(made.load_state(tmp_path / "state"), STEPS)
    assert torch.equal(state.levels, whole)


def test_refresh_takes_the_encoders_new_weights():
    made, context = compiled(built(lambda: Conditioned(ENCODERS["gru"]()))), mel(3)
    before = made.start(1, context=context[:1]).run.contexts[-1]
    with torch.no_grad():
        for parameter in made.module.encoder.parameters():
            parameter.mul_(-2)
    assert not torch.equal(made.refresh().start(1, context=context[:1]).run.contexts[-1], before)
    assert torch.equal(made.sample(3, seed=1, context=context), made.sample_naive(3, seed=1, context=context))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_keep_their_own_context_network(copied):
    made, context = compiled(built(lambda: Conditioned(ENCODERS["gru"]()))), mel(2)
    before = made.sample(2, seed=1, context=context)
    other = copied(made)
    with torch.no_grad():
        made.module.encoder.gru.weight_hh_l0.mul_(-2)
    made.refresh()
    assert torch.equal(other.sample(2, seed=1, context=context), before)


class Stretched(nn.Module):
    """``[N, MEL, F]`` to ``[N, MEL, 16 F]`` at any length."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (3, 5), padding=(1, 2))

    def forward(self, mel: Tensor) -> Tensor:
        return self.conv(F.interpolate(mel[:, None], scale_factor=(1, 16)))[:, 0]


class Vocoder(Conditioned):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.embed, self.encoder, self.out = nn.Embedding(LEVELS, 8), Stretched(), nn.Linear(8, LEVELS)
        self.condition = nn.Linear(MEL, 8)


def test_a_long_sequence_is_analysed_short_and_conditioned_at_its_length():
    frames = torch.randn(2, MEL, 40, generator=torch.Generator().manual_seed(5))
    made = compiled(built(Vocoder), 640, frames)
    assert made.compiled.analysis.event_shape[0] < 640
    drawn = made.sample(2, seed=1, context=frames)
    levels = torch.cat([torch.zeros(2, 1, dtype=torch.int64), drawn[:, :-1]], 1)
    with torch.no_grad():
        exact = made.module.double()(levels, frames.double()).log_softmax(1).gather(1, drawn[:, None]).sum((1, 2))
    made.module.float()
    assert torch.allclose(made.log_prob(drawn, frames).double(), exact, rtol=1e-5)
    scored = made.sample(2, seed=1, context=frames, return_log_prob=True)[1]
    assert torch.allclose(scored, exact, rtol=1e-6)


class Noisy(nn.Module):
    def forward(self, mel: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(mel, 1) + torch.randn(1)


class MixesSamples(nn.Module):
    def forward(self, mel: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(F.instance_norm(mel) + mel.mean(0), 1)


def test_a_random_context_network_is_refused():
    with pytest.raises(CompileError, match="forward draws random numbers"):
        compiled(Conditioned(Noisy()).eval())


def test_a_context_network_that_mixes_the_batch_is_refused():
    with pytest.raises(NotCausalError, match="mixes the samples of the batch"):
        compiled(Conditioned(MixesSamples()).eval())


def test_contexts_that_overflow_are_refused():
    made = compiled(built(lambda: Conditioned(ENCODERS["pooling"]())))
    with pytest.raises(ValueError, match="context gives NaN or infinite values"):
        made.start(1, context=mel(1).sign() * 3e38)
