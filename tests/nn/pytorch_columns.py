"""What PyTorch does with modules, as checks of one layer against its plain call: the columns of ``docs/pytorch.md``.

A check raises where the layer fails it.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from tests.nn.layer_cases import Case

Call = Callable[..., object]


class Column(NamedTuple):
    """``check(case)``, what the page says of it, and whether it takes long for all layers."""

    check: Callable[[Case], None]
    says: str
    slow: bool = False


class _Bound(nn.Module):
    """A layer as a function of tensors to tensors, in one tuple: its seed is given."""

    def __init__(self, layer: nn.Module, options: dict[str, int]) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.layer(*inputs, **self.options)))


@functools.cache
def _prepared(case: Case, dtype: torch.dtype, default: torch.dtype) -> _Bound:
    return _Bound(case.layer(dtype), case.options).eval()


def bound(case: Case, dtype: torch.dtype = torch.float32) -> _Bound:
    """A new one each time, always the same."""
    return copy.deepcopy(_prepared(case, dtype, torch.get_default_dtype()))


def differentiable(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors)


def loss(outputs: tuple[Tensor, ...]) -> Tensor:
    """A number that depends on each output element in another way."""
    total = outputs[0].new_zeros((), dtype=torch.float64)
    for out in outputs:
        if out.is_floating_point():
            weights = torch.linspace(0.5, 1.5, out.numel(), dtype=torch.float64, device=out.device)
            total = total + (out.double().flatten() * weights).sum()
    return total


def gradients(call: Call, module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs, and the gradients of the inputs and parameters."""
    inputs = differentiable(inputs)
    module.zero_grad()
    outputs = call(*inputs)
    total = loss(outputs)
    if total.requires_grad:
        total.backward()
    found = [t.grad for t in (*inputs, *module.parameters()) if t.requires_grad]
    return [*(out.detach() for out in outputs), *(torch.zeros(()) if g is None else g.clone() for g in found)]


def assert_near(found: list[Tensor], wanted: list[Tensor], relative: float = 2e-5) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        largest = float(b.double().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=relative, atol=relative * max(1.0, largest))


@contextmanager
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        yield torch._dynamo.utils.counters
    finally:
        torch._dynamo.reset()


def compile_static(case: Case, backend: str = "aot_eager") -> None:
    module, inputs = bound(case), case.inputs()
    with _fresh_compiler():
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        assert_near(gradients(compiled, module, inputs), gradients(module, module, inputs))


def compile_dynamic(case: Case) -> None:
    module = bound(case)
    with _fresh_compiler() as counters:
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        for n in (6, 9, 4):
            inputs = case.inputs(n)
            assert_near(gradients(compiled, module, inputs), gradients(module, module, inputs))
        assert counters["stats"]["unique_graphs"] == 1, "compiled anew for another batch size"


def _export(case: Case, strict: bool) -> None:
    module, batch = bound(case), torch.export.Dim("batch", min=2, max=1024)
    dynamic = ((*({0: batch} for _ in case.shapes), *({} for _ in case.shared)),)
    program = torch.export.export(module, case.inputs(), dynamic_shapes=dynamic, strict=strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for n in (6, 9):
        inputs = case.inputs(n)
        assert_near(list(loaded(*inputs)), list(module(*inputs)))


def export_strict(case: Case) -> None:
    _export(case, strict=True)


def export(case: Case) -> None:
    _export(case, strict=False)


def meta(case: Case) -> None:
    module, inputs = bound(case), case.inputs()
    wanted = module(*inputs)
    found = module.to("meta")(*(t.to("meta") for t in inputs))
    assert [(t.shape, t.dtype, t.device.type) for t in found] == [(t.shape, t.dtype, "meta") for t in wanted]


def _same(case: Case, module: nn.Module) -> None:
    """Outputs and gradients are those of the case's layer, to the bit."""
    plain, inputs = bound(case), case.inputs()
    for a, b in zip(gradients(module, module, inputs), gradients(plain, plain, inputs), strict=True):
        assert torch.equal(a, b)


def deepcopy(case: Case) -> None:
    module = bound(case)
    gradients(module, module, case.inputs())  # a layer that was used and trained
    found = copy.deepcopy(module)
    assert not {id(p) for p in module.parameters()} & {id(p) for p in found.parameters()}
    _same(case, found)


def pickled(case: Case) -> None:
    """By ``pickle``, without the constructor's lambdas: the layer holds nothing that it could not send."""
    module = bound(case)
    gradients(module, module, case.inputs())
    _same(case, pickle.loads(pickle.dumps(module)))


def assigned(case: Case) -> None:
    state = bound(case).state_dict()
    with torch.device("meta"):
        module = _Bound(case.make(), case.options)
    module.load_state_dict(state, assign=True)
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))
    assert all(module.state_dict(keep_vars=True)[name].data_ptr() == t.data_ptr() for name, t in state.items())
    _same(case, module.eval())


def _checkpointed(case: Case, reentrant: bool) -> None:
    plain, kept = bound(case).train(), bound(case).train()
    inputs = case.inputs()
    wanted = gradients(plain, plain, inputs)
    found = gradients(lambda *x: checkpoint(kept, *x, use_reentrant=reentrant), kept, inputs)
    assert_near(found, wanted)
    assert_near(list(kept.buffers()), list(plain.buffers()))


def checkpoint_reentrant(case: Case) -> None:
    _checkpointed(case, reentrant=True)


def checkpoint_not_reentrant(case: Case) -> None:
    _checkpointed(case, reentrant=False)


def _split(case: Case, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Callable[..., tuple[Tensor, ...]]]:
    """The inputs with a gradient, and the others filled in around them."""
    moving = [t for t in inputs if t.is_floating_point()]

    def filled(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rest = iter(given)
        return tuple(next(rest) if t.is_floating_point() else t for t in inputs)

    return moving, filled


def func_grad(case: Case) -> None:
    module, inputs = bound(case), case.inputs()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    moving, filled = _split(case, inputs)

    def value(parameters: dict[str, Tensor], *moving: Tensor) -> Tensor:
        return loss(functional_call(module, parameters, filled(moving)))

    of_parameters, *of_inputs = torch.func.grad(value, tuple(range(1 + len(moving))))(parameters, *moving)
    plain = gradients(module, module, inputs)[-(len(moving) + len(parameters)) :] if moving or parameters else []
    assert_near(
        [*of_inputs, *of_parameters.values()],
        [b.expand_as(a) for a, b in zip([*of_inputs, *of_parameters.values()], plain, strict=True)],
    )


def func_vmap(case: Case) -> None:
    module = bound(case)
    batches = [case.inputs(seed=seed) for seed in range(3)]
    stacked = tuple(torch.stack(column) for column in zip(*batches, strict=True))
    found = torch.func.vmap(module)(*stacked)
    wanted = [torch.stack(column) for column in zip(*(module(*batch) for batch in batches), strict=True)]
    assert_near([t.detach() for t in found], [t.detach() for t in wanted])


def func_per_sample(case: Case) -> None:
    """``vmap(grad)``: the gradient of each sample's loss by itself."""
    module, inputs = bound(case), case.inputs()
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    count = len(case.shapes)

    def value(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return loss(functional_call(module, parameters, (*(t[None] for t in sample), *inputs[count:])))

    found = torch.func.vmap(torch.func.grad(value), (None, *(0 for _ in range(count))))(parameters, *inputs[:count])
    for i in range(len(inputs[0])):
        sample = (*(t[i : i + 1] for t in inputs[:count]), *inputs[count:])
        plain = gradients(module, module, sample)
        plain = plain[len(plain) - len(parameters) :]
        got = [g[i] for g in found.values()]
        assert_near(got, [b.expand_as(a) for a, b in zip(got, plain, strict=True)])


def func_jvp(case: Case) -> None:
    module, inputs = bound(case), case.inputs()
    moving, filled = _split(case, inputs)
    tangents = tuple(torch.randn(t.shape, generator=torch.Generator().manual_seed(2)) for t in moving)
    outputs, found = torch.func.jvp(lambda *given: module(*filled(given)), tuple(moving), tangents)
    floats = [i for i, out in enumerate(outputs) if out.is_floating_point()]
    (pushed,) = (loss(tuple(found[i] for i in floats)),)
    given = differentiable(inputs)
    total = loss(tuple(module(*given)[i] for i in floats))
    grads = torch.autograd.grad(total, [t for t in given if t.requires_grad], allow_unused=True, materialize_grads=True)
    wanted = sum((g.double() * t).sum() for g, t in zip(grads, tangents, strict=True))
    assert_near([pushed.detach()], [wanted.detach()], 1e-4)


def _low_precision(case: Case, found: list[Tensor], dtype: torch.dtype) -> None:
    """All that is found is finite, and off by no more than what some tens of roundings to the dtype make."""
    exact = bound(case, torch.float64)
    wanted = gradients(exact, exact, case.inputs(dtype=torch.float64))
    assert all(torch.isfinite(t).all() for t in found)
    outputs = len(exact(*case.inputs(dtype=torch.float64)))
    for part in (slice(outputs), slice(outputs, None)):
        pairs = [(a, b) for a, b in zip(found[part], wanted[part], strict=True) if b.is_floating_point()]
        a, b = (
            (torch.cat([torch.zeros(1), *(t.flatten() for t in of)]).double() for of in zip(*pairs, strict=True))
            if pairs
            else 2 * [torch.zeros(1)]
        )
        assert float((a - b).norm()) <= 32 * torch.finfo(dtype).eps * max(1.0, float(b.norm()))


def _autocast(case: Case, dtype: torch.dtype) -> None:
    module, inputs = bound(case), case.inputs()

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype):
            return module(*inputs)

    _low_precision(case, gradients(call, module, inputs), dtype)


def autocast_bfloat16(case: Case) -> None:
    _autocast(case, torch.bfloat16)


def autocast_float16(case: Case) -> None:
    _autocast(case, torch.float16)


def _half(case: Case, dtype: torch.dtype) -> None:
    module = bound(case, dtype)
    outputs = module(*case.inputs(dtype=dtype))
    assert outputs[0].dtype == dtype
    _low_precision(case, gradients(module, module, case.inputs(dtype=dtype)), dtype)


def bfloat16(case: Case) -> None:
    _half(case, torch.bfloat16)


def float16(case: Case) -> None:
    _half(case, torch.float16)


def float64(case: Case) -> None:
    module, inputs = bound(case, torch.float64), case.inputs(dtype=torch.float64)
    found = gradients(module, module, inputs)
    assert all(t.dtype == torch.float64 for t in found if t.is_floating_point() and t.dim())
    plain = bound(case)
    wanted = gradients(plain, plain, case.inputs())
    assert_near([t.to(b.dtype) for t, b in zip(found, wanted, strict=True)], wanted, 1e-4)
    step = [1e-5 * torch.ones_like(t) if t.is_floating_point() else torch.zeros_like(t) for t in inputs]
    with torch.no_grad():
        middle = module(*inputs)
        sides = [module(*(t + sign * s for t, s in zip(inputs, step, strict=True))) for sign in (1, -1)]
    for before, at, after in zip(sides[0], middle, sides[1], strict=True):
        if at.is_floating_point():  # a number that was rounded to float32 on the way is off by 1e-7
            assert float((before - 2 * at + after).abs().max()) <= 1e-8 * max(1.0, float(at.abs().max()))


def default_dtype(case: Case) -> None:
    plain, inputs = bound(case), case.inputs()
    wanted = gradients(plain, plain, inputs)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = gradients(plain, plain, inputs)
        made = case.make()
        assert all(p.dtype == torch.float64 for p in (*made.parameters(), *made.buffers()) if p.is_floating_point())
        float64(case)
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True) if b.dim())


def default_device(case: Case) -> None:
    """A default device that can compute nothing: whatever a call makes has to be on the input's device."""
    plain, inputs = bound(case), case.inputs()
    wanted = gradients(plain, plain, inputs)
    with torch.device("meta"):
        given = differentiable(inputs)
        outputs = plain(*given)
        made = case.make()
    assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=False))
    assert all(t.is_meta for t in (*made.parameters(), *made.buffers()))


COLUMNS: dict[str, Column] = {
    "compile": Column(
        compile_static, "`torch.compile(layer, fullgraph=True)`, values and gradients; with the backend aot_eager", True
    ),
    "compile, dynamic": Column(
        compile_dynamic, "the same with `dynamic=True`: batches of three sizes go through one graph", True
    ),
    "export": Column(
        export, "`torch.export.export` with a batch of any size, saved, loaded and called with two sizes", True
    ),
    "export, strict": Column(export_strict, "the same with `strict=True`", True),
    "meta": Column(meta, "shapes and dtypes of the results on the meta device"),
    "deepcopy": Column(deepcopy, "`copy.deepcopy` of a layer that has been trained", True),
    "pickle": Column(pickled, "`pickle`, of a layer that has been trained", True),
    "assign": Column(assigned, "made on the meta device, then `load_state_dict(state, assign=True)`", True),
    "checkpoint, reentrant": Column(
        checkpoint_reentrant, "`torch.utils.checkpoint` with `use_reentrant=True`, in training mode, buffers too", True
    ),
    "checkpoint": Column(checkpoint_not_reentrant, "the same with `use_reentrant=False`"),
    "grad": Column(func_grad, "`torch.func.grad` by inputs and parameters, with `functional_call`", True),
    "vmap": Column(func_vmap, "`torch.func.vmap` over batches"),
    "vmap(grad)": Column(func_per_sample, "the gradients of each sample by itself", True),
    "jvp": Column(func_jvp, "`torch.func.jvp`, compared with the gradient"),
    "autocast bfloat16": Column(
        autocast_bfloat16,
        "`torch.autocast` on the CPU: all is finite, and as near to float64 as the dtype allows",
        True,
    ),
    "autocast float16": Column(autocast_float16, "the same in float16", True),
    "bfloat16": Column(bfloat16, "`layer.bfloat16()`, likewise", True),
    "float16": Column(float16, "`layer.half()`, likewise", True),
    "float64": Column(float64, "`layer.double()`, in which nothing is rounded to float32", True),
    "default dtype": Column(
        default_dtype,
        "`torch.set_default_dtype(torch.float64)`: a float32 layer computes what it did, new ones float64",
        True,
    ),
    "default device": Column(
        default_device, "another default device: all that a call makes is on the device of its input"
    ),
}
