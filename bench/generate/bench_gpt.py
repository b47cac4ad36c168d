"""A GPT of 6 layers x 384, context 1,024: tokens a second, against transformers, CTranslate2 and a textbook loop."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
from .floors import floor_of
from .providers import say

pytestmark = pytest.mark.needs_extension
LAYERS, WIDTH, HEADS, CONTEXT = size(6, 1), size(384, 24), size(6, 3), size(1024, 12)
VOCABULARY = 256
ROUNDS = size(3, 1)
PROMPT = size(512, 5)


class Logits(nn.Module):
    """A language model of Hugging Face's transformers as ``[N, T]`` tokens to ``[N, V, T]`` logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x, use_cache=False).logits.transpose(1, 2)


@functools.cache
def network() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the GPT and its caches are those of transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT + 1, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        activation_function="gelu", bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


@functools.cache
def sampler() -> fastgen.Sampler:
    head = heads.Categorical(VOCABULARY)
    return fastgen.Sampler(Logits(network()), (CONTEXT,), head, order="time", predicts="next")


def of_transformers(batch: int, **options) -> Tensor:
    """Tokens ``[batch, CONTEXT]`` by transformers' own loop."""
    start = torch.zeros(batch, 1, dtype=torch.int64)
    options = {"do_sample": True, "top_k": 0, **options}
    return network().generate(start, attention_mask=torch.ones_like(start), max_new_tokens=CONTEXT, **options)[:, 1:]


def ways_of_peers(batch: int, greedy: Tensor) -> dict[str, Callable[[], object]]:
    """Returns how others draw a batch, by name; checked: ``greedy`` is what each takes for likeliest."""
    static = {"cache_implementation": "static"}
    options = {"transformers, cache": {}, "transformers, static cache": static | {"disable_compile": True}}
    if not QUICK:
        options["transformers, static cache, compiled"] = static | {"compile_config": compiled_anywhere()}
    ways = {}
    for name, keywords in options.items():
        assert torch.equal(greedy, of_transformers(batch, do_sample=False, top_k=None, **keywords)), name
        ways[name] = functools.partial(of_transformers, batch, **keywords)
    pytest.importorskip("ctranslate2", reason="one of the peers is CTranslate2")
    from .gpt_peers import CTranslate2

    peer = CTranslate2(network(), thread_counts()[-1])
    assert torch.equal(greedy, peer.generate(batch, CONTEXT, greedy=True)), "CTranslate2"
    return ways | {"CTranslate2": functools.partial(peer.generate, batch, CONTEXT)}


def compiled_anywhere():
    """Returns the settings with which transformers compiles its step on a CPU, too."""
    from transformers.generation import CompileConfig

    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    return config


@torch.no_grad()
def textbook(batch: int, lengths: list[int]) -> None:
    """A whole forward pass for one token, at some lengths."""
    for length in lengths:
        logits = network()(input_ids=torch.zeros(batch, length, dtype=torch.int64), use_cache=False).logits[:, -1]
        torch.multinomial(logits.softmax(-1), 1)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.benchmark(group="GPT")
def bench_gpt(benchmark, batch):
    torch.set_num_threads(thread_counts()[-1])
    keep_freed_memory()
    title = f"GPT of {LAYERS} layers x {WIDTH}, context {CONTEXT}, batch {batch}"
    say(f"{title}: checking")
    ours = sampler()
    tokens, log_prob = ours.sample(batch, seed=0, return_log_prob=True)
    check_log_prob(Shifted(ours.module), ours.head, tokens, log_prob)
    greedy = ours.sample(batch, top_k=1)

    def provider(threads: int) -> Provider:
        floor = floor_of(ours.program, "float32", batch, threads)
        run = functools.partial(ours.sample, batch, seed=0, threads=threads)
        units = batch * CONTEXT
        return Provider("fastgen", run, units, 1, machine_threads=threads, floor=lambda: floor() / units)

    providers = [provider(threads) for threads in thread_counts()]
    peers = [
        Provider(name, run, batch * CONTEXT, thread_counts()[-1]) for name, run in ways_of_peers(batch, greedy).items()
    ]
    lengths = [max(1, CONTEXT * n // 8 - CONTEXT // 16) for n in range(1, 9)]
    note = f"{len(lengths)} of {CONTEXT} tokens timed, at evenly spaced lengths"
    loop = Provider(
        "textbook loop", functools.partial(textbook, batch, lengths), batch * len(lengths), thread_counts()[-1], note
    )
    say(f"{title}: timing {ROUNDS} rounds")
    interleave(benchmark, [*providers, *peers, loop], ROUNDS)
    part = Part(f"gpt-{batch}", title, "token")
    part.add([loop, *peers, *providers], compared_with=loop)
    if not QUICK:
        fastest = min(providers, key=lambda p: p.seconds)
        part.bars = [Bar(f"over {peer.name}", 1, fastest.speedup_over(peer)) for peer in peers]
        if batch == 1:
            part.bars.append(Bar("of the floor", 85, fastest.percent_of_floor, "%"))
    publish(part, benchmark)


@pytest.mark.benchmark(group="GPT")
def bench_gpt_prompt(benchmark):
    """Reading a prompt, against the module's own forward."""
    torch.set_num_threads(thread_counts()[-1])
    ours = sampler()
    tokens = torch.randint(0, VOCABULARY, (1, CONTEXT))
    known = torch.arange(CONTEXT)[None] < PROMPT

    def read() -> None:
        ours.advance(ours.start(1, known=tokens, known_mask=known, threads=thread_counts()[-1]), PROMPT)

    @torch.no_grad()
    def forward() -> None:
        ours.module(tokens[:, :PROMPT])

    reading = Provider("fastgen", read, PROMPT, 1, machine_threads=thread_counts()[-1])
    parallel = Provider("the module's forward", forward, PROMPT, thread_counts()[-1])
    interleave(benchmark, [reading, parallel], ROUNDS)
    part = Part("gpt-prompt", f"a prompt of {PROMPT} tokens, GPT of {LAYERS} layers x {WIDTH}", "token")
    part.add([parallel, reading], compared_with=parallel)
    if not QUICK:
        part.bars = [Bar("over the module's forward", 1, reading.speedup_over(parallel))]
    publish(part, benchmark)
