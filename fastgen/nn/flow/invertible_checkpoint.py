"""Training an invertible stack without keeping its activations: the backward pass rebuilds them from the output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastgen.nn.flow.flow_layer import FlowLayer, chosen, no_log_det, optional_arguments
from fastgen.nn.flow.flow_sequential import FlowSequential, Inverse
from fastgen.nn.flow.multi_scale import MultiScale
from fastgen.ops.precision import in_float32
from fastgen.ops.seeds import fold_in


def invertible_checkpoint(
    flow: FlowSequential | MultiScale | Sequence[nn.Module], *, tolerance: float | None = None
) -> FlowSequential | MultiScale:
    """The flow with activations rebuilt in the backward pass: memory for training no longer grows with its depth.

    What comes back has the same layers, parameters and state dict, and the same ``forward`` and ``inverse``; values and
    gradients (of x, context and parameters, through z and the log-determinant) are those of the plain flow up to
    rounding; no other tensor that a layer may hold gets a gradient. Of every stack of layers only input and output are
    kept, with one number a layer and sample. The backward pass goes from the last layer to the first: a layer's input
    is made from its output by the layer's inverse, the layer is computed again with gradients, and its activations are
    freed. That costs one inverse and one more forward pass; a layer whose inverse is sequential is a bad candidate.

    A weighted sum of every sample of a layer's input is compared with that of the rebuilt input. Their difference
    estimates the relative error that the inverse has brought in; beyond ``tolerance`` the backward pass raises. Random
    numbers that a layer draws (dropout) are drawn again as they were; buffers that it changes (batch norm statistics,
    the flag of ``ActNorm``) are changed once; ``FlowBatchNorm`` is undone with the moments of the batch. Any other
    layer that its inverse in training mode does not undo is refused by the comparison.

    Nested ``FlowSequential`` and ``Inverse`` are taken apart; the scales of a ``MultiScale`` are stacks of their own,
    and its input is kept. Under ``torch.no_grad``, ``torch.compile`` and ``torch.func`` the layers run plainly. A
    second derivative raises.

    Args:
        flow: its layers; of a model, ``model.flow = invertible_checkpoint(model.flow)``.
        tolerance: allowed relative error of a layer's rebuilt input, as a fraction of the root mean square of the
            layer's input or output, whichever is larger; by default the square root of the dtype's epsilon (3.5e-4 in
            float32, 1.5e-8 in float64).

    Raises:
        TypeError: flow is something else, or a layer has no method ``inverse``.
        ValueError: tolerance is not greater than 0.
        RuntimeError: in the backward pass, where a rebuilt input is off, or a parameter was changed since the forward
            pass; the message names the layer.

    Reference: Gomez, Ren, Urtasun, Grosse, "The reversible residual network: backpropagation without storing
    activations", NeurIPS 2017.

    Example:
        >>> from fastgen.nn import MLP, AffineCoupling, Permutation
        >>> layers = [AffineCoupling(MLP(2, 4)) if i % 2 else Permutation.reversed(4) for i in range(20)]
        >>> flow = invertible_checkpoint(layers)
        >>> z, log_det = flow(torch.randn(5, 4))
        >>> (0.5 * z.square().sum() - log_det.sum()).backward()
        >>> all(parameter.grad is not None for parameter in flow.parameters())
        True
    """
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be greater than 0, got {tolerance}")
    if isinstance(flow, MultiScale):
        converted: FlowSequential | MultiScale = MultiScale(
            [_converted(scale, tolerance) for scale in flow.scales], flow.shapes
        )
    elif isinstance(flow, FlowSequential | Sequence):
        layers = flow.layers if isinstance(flow, FlowSequential) else flow
        converted = InvertibleCheckpoint([_converted(layer, tolerance) for layer in layers], tolerance)
    else:
        raise TypeError(f"flow must be a FlowSequential, a MultiScale or a list of layers, got a {type(flow).__name__}")
    return converted.train(flow.training) if isinstance(flow, nn.Module) else converted


def _converted(layer: nn.Module, tolerance: float | None) -> nn.Module:
    return (
        invertible_checkpoint(layer, tolerance=tolerance) if isinstance(layer, FlowSequential | MultiScale) else layer
    )


class InvertibleCheckpoint(FlowSequential):
    """A flow whose backward pass rebuilds its activations, as ``invertible_checkpoint`` makes it."""

    def __init__(self, layers: Sequence[nn.Module], tolerance: float | None = None) -> None:
        super().__init__(*layers)
        self.tolerance = tolerance

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x to (z, log_det [N])."""
        if self._keeps_nothing():
            return self._rebuildable(x, context, seed, inverse=False)
        return super().forward(x, context, seed)

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z to (x, log_det [N] of that)."""
        if self._keeps_nothing():
            return self._rebuildable(z, context, seed, inverse=True)
        return super().inverse(z, context, seed)

    def _keeps_nothing(self) -> bool:
        plain = torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None
        return torch.is_grad_enabled() and not plain and len(self.layers) > 0

    def _rebuildable(self, x: Tensor, context: Tensor | None, seed: int | None, inverse: bool) -> tuple[Tensor, Tensor]:
        run = _Run(list(_steps(self, inverse, seed)), self.tolerance)
        run.steps[0].keeps_input = True
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return _Rebuilt.apply(run, x, context, *parameters)


@dataclass
class _Step:
    """A layer in the direction it is run in, and what its backward pass must know of its forward pass."""

    name: str
    layer: nn.Module
    inverse: bool
    keeps_input: bool
    seed: int | None
    random: list[Tensor] | None = None
    changes_buffers: bool = False
    statistics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.optional = optional_arguments(self.layer)

    def __call__(self, x: Tensor, context: Tensor | None, *, undo: bool = False) -> tuple[Tensor, Tensor]:
        function = self.layer.inverse if self.inverse != undo else self.layer
        return function(x, **chosen(self.optional, context, self.seed))

    def first_call(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Runs the layer, and keeps the state of the generators if it draws from them."""
        random, versions = _random_state(x.device), [buffer._version for buffer in self.layer.buffers()]
        if isinstance(self.layer, FlowLayer) and self.layer.training and not self.inverse:
            self.statistics = self.layer.batch_statistics(x)
        y, log_det = self(x, context)
        if any(not torch.equal(old, new) for old, new in zip(random, _random_state(x.device), strict=True)):
            self.random = random
        self.changes_buffers = versions != [buffer._version for buffer in self.layer.buffers()]
        return y, log_det

    def undone(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Returns the input, rebuilt from the output."""
        self.replay_random(y.device)
        for name, value in self.statistics.items():  # in place of the running averages, which the inverse takes
            self.layer.get_buffer(name).copy_(value)
        return self(y, context, undo=True)[0]

    @contextmanager
    def same_buffers(self) -> Iterator[None]:
        """Gives the layer its buffers back afterwards, if running it changes them."""
        before = [(buffer, buffer.clone()) for buffer in self.layer.buffers()] if self.changes_buffers else []
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)

    def replay_random(self, device: torch.device) -> None:
        if self.random is not None:
            torch.set_rng_state(self.random[0])
            if device.type != "cpu":
                torch.get_device_module(device).set_rng_state(self.random[1], device)


@dataclass
class _Run:
    """One pass through the layers."""

    steps: list[_Step]
    tolerance: float | None
    versions: list[int] = field(default_factory=list)
    autocast: tuple[torch.dtype, bool] | None = None

    def precision(self, device: torch.device) -> AbstractContextManager:
        """Autocast as it was in the forward pass; without the cache, whose casts made without gradients have none."""
        if self.autocast is None:
            self.autocast = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        dtype, enabled = self.autocast
        return torch.autocast(device.type, dtype=dtype, enabled=enabled, cache_enabled=False)


class _Rebuilt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: _Run, x: Tensor, context: Tensor | None, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        saved, total = [], no_log_det(x)
        with run.precision(x.device):
            for step in run.steps:
                saved.append(x if step.keeps_input else _fingerprint(x))
                x, log_det = step.first_call(x, context)
                total = total + log_det
        run.versions = [parameter._version for parameter in parameters]
        ctx.run, ctx.parameters = run, parameters
        ctx.save_for_backward(x, context, *saved)
        return x, total

    @staticmethod
    def backward(ctx, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("a flow of invertible_checkpoint has no second derivative; the plain flow has")
        y, context, *saved = ctx.saved_tensors
        run, parameters = ctx.run, ctx.parameters
        if run.versions != [parameter._version for parameter in parameters]:
            raise RuntimeError("a parameter was changed in place between the forward and the backward pass")
        wanted = [*parameters] if context is None or not ctx.needs_input_grad[2] else [*parameters, context.detach()]
        if len(wanted) > len(parameters):
            context = wanted[-1].requires_grad_()
        sums: list[Tensor | None] = [None] * len(wanted)
        drifts = {}
        with _kept_random_state(y.device), _undone_as_run(run.steps), run.precision(y.device):
            for i, (step, kept) in reversed(list(enumerate(zip(run.steps, saved, strict=True)))):
                with step.same_buffers():
                    with torch.no_grad():
                        x = (kept if step.keeps_input else step.undone(y, context)).detach()
                        if not step.keeps_input:
                            drifts[step.name] = _drift(x, y, kept)
                    needs_x = i > 0 or ctx.needs_input_grad[1]
                    grads = _gradients(step, x, context, grad_y, grad_log_det, wanted, needs_x)
                y, grad_y = x.detach(), grads[0]
                sums = [_sum(old, new) for old, new in zip(sums, grads[1:], strict=True)]
        _check(drifts, run.tolerance, y.dtype)
        grad_context = sums.pop() if len(wanted) > len(parameters) else None
        return None, grad_y, grad_context, *sums


def _gradients(
    step: _Step,
    x: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_log_det: Tensor,
    wanted: list[Tensor],
    needs_x: bool,
) -> list[Tensor | None]:
    """Returns the gradients of x, which nobody else holds, and of all that is wanted, by running the layer again."""
    step.replay_random(x.device)
    inputs = [x.requires_grad_(), *wanted] if needs_x else wanted
    with torch.enable_grad():
        outputs = zip(step(x, context), (grad_y, grad_log_det), strict=True)
    pairs = [(output, grad) for output, grad in outputs if output.requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(inputs)
    if pairs and inputs:
        attached, grad_outputs = zip(*pairs, strict=True)
        grads = torch.autograd.grad(attached, inputs, grad_outputs, allow_unused=True)
    return [*grads] if needs_x else [None, *grads]


def _steps(layer: nn.Module, inverse: bool, seed: int | None, name: str = "") -> Iterator[_Step]:
    if isinstance(layer, Inverse):
        yield from _steps(layer.layer, not inverse, seed, f"{name}layer.")
    elif type(layer) in (FlowSequential, InvertibleCheckpoint):
        for i, child in sorted(enumerate(layer.layers), reverse=inverse, key=lambda pair: pair[0]):
            yield from _steps(child, inverse, fold_in(seed, i), f"{name}layers.{i}.")
    else:
        called, keeps_input = f"{name.rstrip('.')} ({type(layer).__name__})", isinstance(layer, MultiScale)
        yield _Step(called, layer, inverse, keeps_input, seed)


def _weights(x: Tensor) -> Tensor:
    """Returns a weight for each number of a sample, all different, so that a wrong order is seen too."""
    return torch.linspace(1, 2, x.shape[1], dtype=x.dtype, device=x.device)


def _fingerprint(x: Tensor) -> Tensor:
    """Returns a weighted sum of each sample, [N]."""
    (rows,) = in_float32(x.flatten(1))
    return (rows * _weights(rows)).sum(1)


def _drift(x: Tensor, y: Tensor, fingerprint: Tensor) -> Tensor:
    """Returns the largest relative error of a sample of x, as its fingerprint estimates it for independent errors."""
    rows, others = in_float32(x.flatten(1), y.flatten(1))
    weights = _weights(rows)
    error = ((rows * weights).sum(1) - fingerprint).abs() / torch.linalg.vector_norm(weights)
    scale = torch.maximum(*(torch.linalg.vector_norm(part, dim=1) / part.shape[1] ** 0.5 for part in (rows, others)))
    relative = torch.where(error == 0, error, error / scale)
    return relative.max() if len(relative) else relative.new_zeros(())


def _check(drifts: dict[str, Tensor], tolerance: float | None, dtype: torch.dtype) -> None:
    allowed = torch.finfo(dtype).eps ** 0.5 if tolerance is None else tolerance
    found = torch.stack([*drifts.values()]).tolist() if drifts else []  # one wait for the device
    for name, drift in zip(drifts, found, strict=True):
        if not drift <= allowed:
            raise RuntimeError(
                f"{name}: its input, rebuilt of its output by its inverse, is off by {drift:.2g} of its scale; "
                f"tolerance is {allowed:.2g} (a layer that its inverse does not undo, ill-conditioned weights, or a "
                "change of mode between the forward and the backward pass)"
            )


@contextmanager
def _undone_as_run(steps: list[_Step]) -> Iterator[None]:
    """Puts layers in eval mode that in training mode would not undo what was run.

    Undoing sets no layer by its batch; it runs a layer's ``forward`` to undo its ``inverse``, which never normalizes by
    its batch.
    """
    training = [
        part
        for step in steps
        for part in step.layer.modules()
        if isinstance(part, FlowLayer)
        and part.training
        and (part.set_by_first_batch or (step.inverse and part.normalizes_by_batch))
    ]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old + new


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state(device)]


def _kept_random_state(device: torch.device) -> AbstractContextManager:
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
