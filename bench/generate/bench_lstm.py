"""Language models of LSTMs, 2 x 256 and 3 x 512: tokens a second, against a loop in PyTorch that carries the state."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.generate import heads

from ..suite.interleave import Provider, interleave
from ..suite.machine import keep_freed_memory, thread_counts
from ..suite.quick import QUICK, size
from ..suite.report import Bar, Part, publish
from .checks import Shifted, check_log_prob
from .providers import MODES, compiled, say, stream

pytestmark = pytest.mark.needs_extension
VOCABULARY = 256
SIZES = {"2 x 256": size((2, 256), (1, 24)), "3 x 512": size((3, 512), (2, 16))}
CHECKED = size(256, 12)
STEPS = size({1: 2000, 16: 400}, {1: 12, 16: 6})
LOOP_STEPS = size(200, 4)
TEXTBOOK_LENGTH = size(512, 8)
ROUNDS = size(9, 1)


class LanguageModel(nn.Module):
    """``[N, T]`` tokens to ``[N, V, T]`` logits; with a state, the state after them, too."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.last = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.table(x))[0]).transpose(1, 2)

    def step(self, token: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the next token ``[N, 1]``, drawn, and the state."""
        output, (hidden, cell) = self.lstm(self.table(token), (hidden, cell))
        return torch.multinomial(self.last(output[:, 0]).softmax(-1), 1), hidden, cell


@functools.cache
def network(name: str) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(*SIZES[name]).eval()


@functools.cache
def sampler(name: str) -> fastgen.Sampler:
    head = heads.Categorical(VOCABULARY)
    return fastgen.Sampler(network(name), (CHECKED,), head, order="time", predicts="next")


class CarriedState:
    """The loop that everybody writes: the state of the LSTM goes from step to step."""

    def __init__(self, model: LanguageModel, step, batch: int) -> None:
        self.step = step
        self.token = torch.zeros(batch, 1, dtype=torch.int64)
        self.state = [torch.zeros(model.lstm.num_layers, batch, model.lstm.hidden_size) for _ in range(2)]

    @torch.no_grad()
    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.token, *self.state = self.step(self.token, *self.state)


@torch.no_grad()
def check_step(model: LanguageModel, step, tokens: Tensor) -> None:
    """Asserts that steps that carry the state end in that of the whole sequence."""
    _, wanted = model.lstm(model.table(tokens))
    state = [torch.zeros_like(part) for part in wanted]
    for t in range(tokens.shape[1]):
        _, *state = step(tokens[:, t : t + 1], *state)
    for got, exact in zip(state, wanted, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.benchmark(group="LSTM")
def bench_lstm(benchmark, name, batch):
    threads = thread_counts()[-1]
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = True  # torch.compile refuses an LSTM otherwise
    title = f"LSTM {name}, batch {batch}"
    say(f"{title}: checking")
    model, ours = network(name), sampler(name)
    tokens, log_prob = ours.sample(batch, seed=0, return_log_prob=True)
    check_log_prob(Shifted(model), ours.head, tokens, log_prob)

    steps = {"eager": model.step}
    example = CarriedState(model, model.step, batch)
    for mode in MODES if not QUICK else ():
        with torch.no_grad():
            steps[f"compiled {mode}"] = compiled(model.step, mode, example.token, *example.state)
    for step in steps.values():
        check_step(model, step, tokens)

    @torch.no_grad()
    def textbook() -> None:
        torch.multinomial(model(tokens[:, :1].expand(-1, TEXTBOOK_LENGTH))[..., -1].softmax(-1), 1)

    providers = [stream(ours, batch, n, STEPS[batch]) for n in thread_counts()]
    loops = [
        Provider(
            f"carried state, {kind}",
            functools.partial(CarriedState(model, step, batch).advance, LOOP_STEPS),
            batch * LOOP_STEPS,
            threads,
        )
        for kind, step in steps.items()
    ]
    again = Provider("textbook loop", textbook, batch, threads, f"over {TEXTBOOK_LENGTH} tokens")
    say(f"{title}: timing {ROUNDS} rounds")
    interleave(benchmark, [*providers, *loops, again], ROUNDS)
    part = Part(f"lstm-{name.replace(' ', '')}-{batch}", title, "token")
    part.add([again, *loops, *providers], compared_with=again)
    if not QUICK:
        fastest = min(providers, key=lambda p: p.seconds)
        part.bars = [Bar(f"over {loop.name}", 1, fastest.speedup_over(loop)) for loop in loops]
        if batch == 1:
            part.bars.append(Bar("of the floor", 85, fastest.percent_of_floor, "%"))
    publish(part, benchmark)
