"""``Sampler``: exact, fast generation from any causal network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastgen.generate.arguments import check_integer
from fastgen.generate.compile.any_length import Compiled, compile_module, refreshed
from fastgen.generate.compile.any_positions import with_any_positions
from fastgen.generate.compile.pipeline import check_start
from fastgen.generate.compiled_network import CompiledNetwork
from fastgen.generate.contexts import ContextLayout, context_leaves
from fastgen.generate.errors import CompileError, VerificationError
from fastgen.generate.files.sampler_file import read_sampler, write_sampler
from fastgen.generate.heads import Head
from fastgen.generate.inspect.explain import Explanation, explain
from fastgen.generate.ir.instructions import FORMATS
from fastgen.generate.known import known_levels, known_spans
from fastgen.generate.machines.machine import check_threads
from fastgen.generate.on_cpu import on_cpu
from fastgen.generate.options import SamplingOptions
from fastgen.generate.progress import progress_bar
from fastgen.generate.request import CompileRequest
from fastgen.generate.state import State, check_state, load_state, start_state
from fastgen.generate.step_rules import StepRule
from fastgen.generate.streaming import stream
from fastgen.generate.textbook import sample_naive
from fastgen.generate.verification.self_check import self_check

_PROGRESS_PARTS = 200


@on_cpu
class Sampler(CompiledNetwork):
    """Compiles a causal network to a step program and generates from it.

    Every activation is computed once, so a sample costs about one forward pass. The sample is exactly the textbook
    loop's for the same seed, but for draws whose uniform number lies within float32 rounding of a cdf edge, and it is
    bitwise the same for any batch size, number of threads and division into calls.

    Everything is computed in float32, a float64 module too; half precision and ``torch.autocast`` are refused. Integers
    are PyTorch's, narrow ones wrap: those beyond 2^24 only in sums of products with constants whose remainder is taken.

    Args:
        module: takes ``[N, *event_shape]`` (levels as ``head.to_input`` makes them), and a context if
            ``example_context`` is given; any module that ``torch.export`` takes. It is used in eval mode, and compiling
            leaves it exactly as it was. Masks that it writes into its weights in forward are applied; counters and
            other state that the output does not read are ignored.
        event_shape: ``(C, H, W)``, a video's ``(C, T, H, W)``, ``(C, T)``, ``(T,)`` or ``(D,)``.
        head: how outputs are read, scored and drawn; see ``fastgen.heads``.
        order: "raster", "raster-subpixel", "time", "time-channels", "features", or the positions as they are drawn; or
            ``fastgen.generate``'s ``Groups``, ``Wavefront`` or ``Delayed``, where a step draws several elements.
        weights: "float32", or "bfloat16" or "int8": rounded weights, an approximation.
        kv: "float32", or "bfloat16" or "int8" (one scale a position and head): rounded keys and values of attention, an
            approximation that takes half or about a quarter of their memory. Those of a context stay float32.
        predicts: "same" where output t scores element t, "next" (orders "time" and "raster" only) where it scores
            element t + 1; then the network first reads ``start``.
        adapter: applied to the module's output, to bring it to a layout that the head reads.
        example_context: a context (or dict of contexts) of any batch size, if the module takes one: ``[N]`` or
            ``[N, C]``, or what has positions ``[N, C, F]`` (F frames of a sequence), ``[N, C, H, W]``,
            ``[N, C, T, H, W]``. What reads only the context may use any operators: it runs once at the start. What is
            attended to may have any number of positions, where the network is otherwise the same.
        start: the input value before the first element, for ``predicts="next"``.
        prefix: how many first elements of a sequence (order "time") are always known, so that all of the network may
            see all of them (prefix-LM). They are read at the start, at once, and never scored.
        machine: "cpu" or "reference"; by default "cpu" where the compiled extension is there.
        threads: threads of the cpu machine; by default PyTorch's number.
        verify: compare the program with the module once it is compiled, and at ``refresh``: one teacher-forced pass
            over random levels against float64, in about a tenth of the time of compiling.

    Raises:
        VerificationError: the program is not the module; the message names the first position and the layer.
        CompileError: the network is not causal, mixes the batch, has an operator without a rule, computes in half
            precision or with integers that float32 does not hold, holds NaN, or gives another output at every call.
        ValueError: an argument is wrong, or the output has a layout that the head does not read; ``kv`` rounds keys
            and values, and the network has none in the state.

    Example::

        sampler = fastgen.Sampler(model, event_shape=(3, 32, 32), head=fastgen.heads.DiscretizedLogisticMixture(10))
        images = sampler.sample(64, seed=0)  # int64 [64, 3, 32, 32]
    """

    def __init__(
        self,
        module: nn.Module,
        event_shape: Sequence[int],
        head: Head,
        order: str | Sequence[int] | StepRule = "raster",
        weights: str = "float32",
        predicts: str = "same",
        adapter: Callable | None = None,
        example_context=None,
        start: float = 0.0,
        machine: str | None = None,
        threads: int | None = None,
        verify: bool = True,
        *,
        kv: str = "float32",
        prefix: int = 0,
    ) -> None:
        for name, given in (("weights", weights), ("kv", kv)):
            if given not in FORMATS:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, FORMATS))}, got {given!r}")
        check_threads(threads)
        layout = ContextLayout(example_context) if example_context is not None else None
        request = CompileRequest.checked(module, event_shape, head, order, predicts, adapter, layout, start, prefix)
        compiled = with_any_positions(compile_module(request))
        resolved = compiled.analysis.request
        request = replace(request, head=resolved.head, layout=resolved.layout)
        super().__init__(request, compiled, weights, kv, machine, threads)
        if predicts == "next":
            check_start(compiled.analysis.traced, request.start)
        self.verify = bool(verify)
        if verify:
            self_check(self)

    # ---- generating

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        context=None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        return_log_prob: bool = False,
        return_proposal_log_prob: bool = False,
        progress: bool = False,
        threads: int | None = None,
    ):
        """Generates ``n`` events: integers ``[n, *event_shape]`` for a discrete head, float32 for a continuous one.

        Args:
            n: how many.
            seed: of the noise; sample i of a seed is the same in any batch.
            known, known_mask: levels ``[n or 1, *event_shape]`` and booleans of the same shape: what is known is kept;
                each draw conditions on what is earlier in the order, no more.
            context: as ``example_context``, with batch n or 1.
            temperature, top_k, top_p: alter the distribution that is drawn from; the last two for ``Categorical``.
            return_log_prob: also the model's log-probability ``[n]`` of each event (nats), whatever the temperature.
            return_proposal_log_prob: also that of the altered distribution, of the elements drawn.
            progress: show a progress bar.
            threads: instead of the sampler's.

        Raises:
            ValueError: an argument is out of range or of the wrong shape; said before any work.
        """
        options = SamplingOptions(
            context, temperature, top_k, top_p, return_log_prob, return_proposal_log_prob, threads
        )
        state = self._start(n, seed, known, known_mask, options)
        self.advance(state, self.steps, progress=progress)
        results = [state.levels]
        if return_log_prob:
            results.append(state.run.log_prob)
        if return_proposal_log_prob:
            results.append(state.run.proposal_log_prob)
        return results[0] if len(results) == 1 else tuple(results)

    def stream(
        self,
        batch: int = 1,
        steps: int | None = None,
        chunk: int = 1600,
        seed: int = 0,
        *,
        prompt: Tensor | None = None,
        **options,
    ) -> Iterator[Tensor]:
        """Generates a sequence of any length in chunks: yields ``[batch, (C,) up to chunk]``.

        ``steps=None`` goes on for ever, whatever ``event_shape`` says (up to the context, where the network has frames
        of one); a network that is not the same at any length is generated up to ``event_shape`` only, and so are
        ``Delayed`` channels. ``prompt`` ``[batch or 1, (C,) n]`` is read first, in parallel, and not returned.
        ``options`` are those of ``start`` but ``known``. The chunks together are bitwise what ``sample`` returns.

        Raises:
            ValueError: the order is not that of a sequence, an argument is out of range or of the wrong shape, or
                ``steps`` is None and the network has an end; said before any work.
        """
        return stream(self, batch, steps, chunk, seed, prompt, SamplingOptions.of("stream", options))

    def start(
        self,
        batch: int,
        seed: int = 0,
        *,
        known: Tensor | None = None,
        known_mask: Tensor | None = None,
        context=None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        log_prob: bool = False,
        proposal_log_prob: bool = False,
        threads: int | None = None,
        first_sample: int = 0,
    ) -> State:
        """Starts a generation, for ``advance``; the arguments are those of ``sample``.

        ``first_sample`` is the index of the first sample, so that ``sample(8)[3:5]`` is ``start(2, first_sample=3)``.

        Raises:
            ValueError: an argument is out of range or of the wrong shape; said before any work.
        """
        options = SamplingOptions(
            context, temperature, top_k, top_p, log_prob, proposal_log_prob, threads, first_sample
        )
        return self._start(batch, seed, known, known_mask, options)

    def advance(self, state: State, steps: int, progress: bool = False) -> State:
        """Goes ``steps`` further (to the end at most), in place; returns ``state``.

        Ctrl-C ends it in a tenth of a second or so, and ``state.step`` then says after which step: it can go on from
        there. Only where one step takes longer than that (a large batch) is the step broken off, and the state lost.

        Raises:
            ValueError: ``steps`` is no integer, or negative; ``state`` is one of another sampler.
            RuntimeError: another thread is advancing the state, or an exception left it within a step.
        """
        check_state(state, self)
        steps = check_integer("steps", steps, 0)
        begin, end = state.step, min(state.step + steps, self.steps)
        part = max(1, (end - begin) // _PROGRESS_PARTS) if progress else end
        with progress_bar(end - begin, "generating") if progress else nullcontext() as bar:
            for first, last, known in known_spans(state.run.known, self.order, begin, end):
                for t in range(first, last, part):
                    until = min(t + part, last)
                    (self.machine.absorb if known else self.machine.advance)(state.run, t, until)
                    if bar is not None:
                        bar.update(until - t)
        return state

    def sample_naive(self, n: int, seed: int = 0, **options):
        """Runs the textbook loop on the original module with the same noise: a whole forward pass for every step.

        Takes the arguments of ``sample`` (but ``threads``); it is what ``sample`` is compared with.
        """
        return sample_naive(self, n, seed, **options)

    @torch.no_grad()
    def log_prob(self, x: Tensor, context=None) -> Tensor:
        """Returns the log-probability ``[N]`` in nats of levels ``[N, *event_shape]``, by one forward of the module.

        Behind a ``prefix`` it is that of the elements after it, given the prefix.

        Raises:
            ValueError: ``x`` or the context has another shape or dtype, or a level is none of the head's.
            CompileError: the sampler was loaded from a file and has no module.
        """
        self.head.check_levels(x, "x")
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(f"x must have shape [N, {', '.join(map(str, self.event_shape))}], got {list(x.shape)}")
        leaves, prefix = context_leaves(self.request.layout, context, len(x)), self.request.prefix
        output = self.request.forward(self.head.to_input(x), leaves)
        return self.head.log_prob(output[..., prefix:], x[..., prefix:]) if prefix else self.head.log_prob(output, x)

    # ---- the sampler itself

    def explain(self) -> Explanation:
        """Explains causality, receptive field, blind spots, work per step against the textbook loop, and memory.

        ``print`` the result, or read its parts.
        """
        return explain(self)

    def refresh(self) -> Sampler:
        """Takes the module's parameters and buffers as they are now, after a training step; returns the sampler.

        The sampler is verified again, unless it was made with ``verify=False``, and so notices what else has changed.

        Raises:
            CompileError: weights that were zero, and so left out, no longer are, or the sampler came from a file or a
                pickle, which hold no analysis; compile a new sampler.
            VerificationError: something else of the module has changed; the old weights stay. Compile a new sampler.
        """
        network = self.request.network
        if self.compiled.exported is None:
            raise CompileError("this sampler came from a pickle, which holds no analysis; compile a new sampler")
        old = self.program.weights, self.program.constants
        self._take(*refreshed(self.compiled, network))
        if self.verify:
            try:
                self_check(self)
            except VerificationError:
                self._take(*old)
                raise
        return self

    def save(self, path) -> None:
        """Writes the program; ``Sampler.load(path)`` generates from it without the module.

        Raises:
            NotImplementedError: the context holds something else than tensors in dicts, lists and tuples, or its
                network calls an operator that a file may not name.
        """
        write_sampler(self, path)

    @classmethod
    def load(cls, path, machine: str | None = None, threads: int | None = None, head: Head | None = None) -> Sampler:
        """Reads a sampler from ``save``'s file. It has no module: ``sample_naive``, ``log_prob`` and ``refresh`` raise.

        ``head`` is the ``Custom`` head of a sampler that was made with one: a file holds no functions.

        Raises:
            ValueError: the file holds no sampler, or is damaged, or of another version; the machine or the number of
                threads is none that there is; a ``Custom`` head is missing, or another than the file's.
            OSError: the file cannot be read.
        """
        request, compiled, weights, kv = read_sampler(path, head)
        sampler = cls.__new__(cls)
        CompiledNetwork.__init__(sampler, request, compiled, weights, kv, machine, threads)
        sampler.verify = False
        return sampler

    def load_state(self, path) -> State:
        """Returns the state that ``State.save`` wrote with this sampler's program.

        Raises:
            ValueError: the file holds no state, or one of another program, or is damaged, or of another version.
            OSError: the file cannot be read.
        """
        return load_state(path, self)

    # ---- copies

    def __copy__(self) -> Sampler:
        """Returns a sampler of the same module, with a machine of its own."""
        new = type(self).__new__(type(self))
        vars(new).update(self._kept())
        new.run_on(self.machine_name, replace(self.compiled, program=replace(self.program)))
        return new

    def __deepcopy__(self, memo: dict) -> Sampler:
        """Returns a sampler of a copy of the module, whose parameters ``refresh`` takes."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        vars(new).update({name: copy.deepcopy(value, memo) for name, value in self._kept().items()})
        new.run_on(self.machine_name, replace(self.compiled, program=new.program))
        return new

    def __getstate__(self) -> dict:
        """Returns the content of a pickle: program, context network and module, without analysis and machine."""
        return self._kept() | {"context_network": self.compiled.context_network}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.run_on(self.machine_name, Compiled(self.program, [], None, None, vars(self).pop("context_network")))

    # ---- within

    def _take(self, weights: Tensor, constants: Tensor) -> None:
        self.program.weights, self.program.constants = weights, constants
        self.machine.refresh(weights, constants)

    def _kept(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("compiled", "machine")}

    def _start(self, batch: int, seed: int, known, known_mask, options: SamplingOptions) -> State:
        known, known_mask = known_levels(self.head, self.order, known, known_mask, batch)
        return start_state(self, batch, seed, known, known_mask, options)
