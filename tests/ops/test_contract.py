"""What every op must do, whatever it computes; ``CASES`` beside its reference are what it is asked to compute.

A case makes the arguments of the public function: float tensors that float32 holds exactly, in the dtype asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import math

import pytest
import torch
from torch import Tensor

import fastgen
from fastgen.ops.registry import OPS

EPSILON = torch.finfo(torch.float32).eps
SEEDS = 8
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.needs_extension)]
PRODUCTS = {"lu_conv1x1"}
"""Their kernels call PyTorch's matrix products."""
PUBLIC = [op for op in OPS.values() if not op.part_of and not op.not_differentiable]


def cases_of(op) -> dict:
    return importlib.import_module(f"fastgen.reference.{op.name}").CASES


def each_case(small: bool = False):
    found = [
        pytest.param(op, make, id=f"{op.name}-{name}")
        for op in PUBLIC
        for name, make in cases_of(op).items()
        if not small or name.startswith("small")
    ]
    return pytest.mark.parametrize(("op", "make"), found)


def arguments(make, dtype: torch.dtype, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    given = make(generator)
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}


def on(device: str, given: dict) -> dict:
    """All tensors moved there, those in lists too."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), given)


def public(op, given: dict) -> tuple[Tensor, ...]:
    result = getattr(fastgen.ops, op.name)(**given)
    return result if isinstance(result, tuple) else (result,)


def floats(given: dict) -> list[str]:
    return [name for name, value in given.items() if isinstance(value, Tensor) and value.is_floating_point()]


def differentiated(op, given: dict, cotangents: list[Tensor] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of all float arguments for fixed random cotangents."""
    names = floats(given)
    given = given | {name: given[name].detach().requires_grad_() for name in names}
    outputs = [o for o in public(op, given) if o.is_floating_point()]
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float32).to(o) for o in outputs]
    gradients = torch.autograd.grad(outputs, [given[name] for name in names], weights, materialize_grads=True)
    return [o.detach() for o in outputs], list(gradients)


@contextlib.contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pooled(
    op, make, dtype: torch.dtype, device: str = "cpu", rounded: float = 0.0, enough: float = math.inf
) -> list[Tensor]:
    """Outputs and gradients for several seeds, one long vector each: the largest of a few errors is a matter of luck.

    ``rounded``: change every float argument by so much of itself, up or down. ``enough``: numbers after which there are
    no more seeds.
    """
    found: list[list[Tensor]] = []
    for seed in range(SEEDS):
        if sum(len(vector) for row in found for vector in row) > enough:
            break
        given = arguments(make, dtype, seed)
        signs = torch.Generator().manual_seed(seed)
        for name in floats(given) if rounded else []:
            up = torch.randint(0, 2, given[name].shape, generator=signs) * 2 - 1
            given[name] = given[name] * (1 + rounded * up)
        outputs, gradients = differentiated(op, on(device, given))
        found.append([t.flatten().cpu() for t in outputs + gradients])
    return [torch.cat(column) for column in zip(*found, strict=True)]


@contextlib.contextmanager
def products_of_mkl():
    """Without oneDNN: products of a Triton op are MKL's on the CPU, which on some processors sums in one chain."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def check_precision(op, make, backend: str | None, device: str = "cpu", enough: float = math.inf) -> None:
    """No more than twice the error of the same formula in float32, plus what rounding the arguments once more makes."""
    with fastgen.backend("reference"):
        exact, single = (pooled(op, make, dtype, enough=enough) for dtype in (torch.float64, torch.float32))
        rounded = pooled(op, make, torch.float64, rounded=EPSILON, enough=enough)
        if backend == "triton-interpret":
            with products_of_mkl():
                other = pooled(op, make, torch.float32, enough=enough)
            single = [
                max(pair, key=lambda found: (found.double() - true).abs().max() if true.numel() else 0.0)
                for *pair, true in zip(single, other, exact, strict=True)
            ]
    with fastgen.backend(backend) if backend else contextlib.nullcontext():
        ours = pooled(op, make, torch.float32, device, enough=enough)
    for mine, theirs, true, near in zip(ours, single, exact, rounded, strict=True):
        assert mine.shape == true.shape
        assert mine.dtype == theirs.dtype
        if true.numel():
            assert torch.isfinite(mine).all()
            floor = 2 * (near - true).abs().max() + 4 * EPSILON * true.abs().max()
            assert (mine.double() - true).abs().max() <= 2 * (theirs.double() - true).abs().max() + floor


@pytest.mark.needs_extension
@each_case()
def test_values_and_gradients_are_as_exact_as_float32_allows(op, make):
    if op.refusal("cpu", "cpu") is None:
        check_precision(op, make, "cpu")


@pytest.mark.interpreter
@each_case()
def test_triton_values_and_gradients_are_as_exact_as_float32_allows(op, make):
    if "triton" not in op.absent:
        check_precision(op, make, "triton-interpret", enough=4000)


@pytest.mark.gpu
@each_case()
def test_cuda_values_and_gradients_are_as_exact_as_float32_allows(op, make, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # what cuDNN's convolutions use unless told
    check_precision(op, make, None, "cuda")


def test_arguments_and_cotangents_are_moved_to_the_device():
    """As the tests on a GPU need it, lists of tensors too; shown where there is none."""
    op = OPS["sequential_affine"]
    outputs, gradients = differentiated(op, on("meta", arguments(cases_of(op)["small"], torch.float32)))
    assert {t.device.type for t in outputs + gradients} == {"meta"}


@pytest.mark.needs_extension
@each_case()
def test_the_kernel_in_float64_is_the_reference(op, make):
    if reason := op.refusal("cpu", "cpu"):
        pytest.skip(reason)
    given = arguments(make, torch.float64)
    ours = differentiated(op, given)
    with fastgen.backend("reference"):
        exact = differentiated(op, given)
    for mine, true in zip(ours[0] + ours[1], exact[0] + exact[1], strict=True):
        if true.numel():
            assert (mine - true).abs().max() <= 1e-7 * (1 + true.abs().max())


@each_case()
def test_opcheck(op, make):
    """Of the op and of its backward, with the arguments that the public function gives them."""
    recorded = []

    def record(self, *given):
        recorded.append((self.name, given))
        return getattr(torch.ops.fastgen, self.name).default(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(op), "__call__", record)
        differentiated(op, arguments(make, torch.float32))
    assert {name for name, _ in recorded} <= set(OPS)
    if fastgen.extension_error is not None:  # opcheck asks for storage, which tensors within torch.func do not have
        recorded = [(name, given) for name, given in recorded if not OPS[name].part_of]
    for name, given in recorded:
        detached = [a.detach().clone() if isinstance(a, Tensor) else a for a in given]
        torch.library.opcheck(getattr(torch.ops.fastgen, name).default, tuple(detached))


@pytest.mark.parametrize("backend", BACKENDS)
@each_case(small=True)
def test_gradcheck_and_gradgradcheck(op, make, backend):
    given = arguments(make, torch.float64)
    names = floats(given)

    def function(*tensors):
        return tuple(o for o in public(op, given | dict(zip(names, tensors, strict=True))) if o.is_floating_point())

    tensors = [given[name].requires_grad_() for name in names]
    with fastgen.backend(backend):
        assert torch.autograd.gradcheck(function, tensors)
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=backend == "reference")


@each_case(small=True)
def test_torch_func(op, make):
    """grad, vmap of grad, jacrev, vmap of vjp, hessian and jvp are those of the reference."""
    given = arguments(make, torch.float64)
    names = floats(given)
    tensors = tuple(given[name] for name in names)

    def total(*values):
        outputs = public(op, given | dict(zip(names, values, strict=True)))
        return sum((o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs)

    def outputs(*values):
        return public(op, given | dict(zip(names, values, strict=True)))

    every = tuple(range(len(names)))
    batched = tuple(torch.stack([t, t + 1e-3 * (i + 1), t]) for i, t in enumerate(tensors))
    tangents = tuple(torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) for t in tensors)

    def everything():
        found = [torch.func.grad(total, every)(*tensors), torch.func.vmap(torch.func.grad(total, every))(*batched)]
        found += [torch.func.jacrev(total, every)(*tensors), torch.func.hessian(total)(*tensors)]
        shape = outputs(*tensors)
        pull = torch.func.vjp(outputs, *tensors)[1]
        found.append(
            torch.func.vmap(pull)(tuple(torch.stack([torch.ones_like(o), 2 * torch.ones_like(o)]) for o in shape))
        )
        found.append(torch.func.jvp(outputs, tensors, tangents))
        found.append(torch.func.vmap(outputs, (0, *[None] * (len(names) - 1)))(batched[0], *tensors[1:]))
        return torch.utils._pytree.tree_leaves(found)

    ours = everything()
    with fastgen.backend("reference"):
        wanted = everything()
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
    assert any(bool((t != 0).any()) for t in ours)


@each_case(small=True)
def test_vmap_over_none(op, make):
    if op.name in ("lu_conv1x1", "masked_conv2d"):
        pytest.skip("PyTorch's own diag and convolution cannot")
    given = arguments(make, torch.float64)
    names = floats(given)
    empty = [given[name].new_zeros(0, *given[name].shape) for name in names]
    found = torch.func.vmap(lambda *values: public(op, given | dict(zip(names, values, strict=True))))(*empty)
    for none, one in zip(found, public(op, given), strict=True):
        assert (none.shape, none.dtype) == ((0, *one.shape), one.dtype)


@each_case(small=True)
def test_compiles_without_a_graph_break(op, make):
    given = arguments(make, torch.float32)
    names = floats(given)

    def total(*tensors):
        return sum(o.sum() for o in public(op, given | dict(zip(names, tensors, strict=True))))

    def run(function):
        tensors = [given[name].detach().clone().requires_grad_() for name in names]
        value = function(*tensors)
        return [value.detach(), *torch.autograd.grad(value, tensors)]

    torch.compiler.reset()  # the cases share the code of `total`, and Dynamo's limit of 8 recompilations
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for mine, eager in zip(run(compiled), run(total), strict=True):
        torch.testing.assert_close(mine, eager)


@each_case()
def test_strided_arguments(op, make):
    given = arguments(make, torch.float32)
    strided = dict(given)
    for name in floats(given):
        tensor = given[name]
        wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]) if tensor.dim() else (2,), float("nan"))
        view = wide[..., ::2] if tensor.dim() else wide[0]
        view.copy_(tensor)
        strided[name] = view.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else view
    check_of_views(op, strided)


@each_case()
def test_expanded_arguments(op, make):
    """Of every argument each dimension in turn is its first element over and over."""
    given = arguments(make, torch.float32)
    for dim in range(max((given[name].dim() for name in floats(given)), default=0)):
        expanded = dict(given)
        for name in floats(given):
            tensor = given[name]
            if dim < tensor.dim() and tensor.shape[dim]:
                expanded[name] = tensor.narrow(dim, 0, 1).expand_as(tensor)
        check_of_views(op, expanded)


def check_of_views(op, views: dict) -> None:
    """That the op gives what it gives of the same numbers side by side in memory."""
    wanted = public(op, {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in views.items()})
    kernel = op.refusal("cpu", "cpu") is None
    for mine, theirs in zip(public(op, views), wanted, strict=True):
        # PyTorch's own elementwise functions round differently where memory has strides: the reference may, too
        torch.testing.assert_close(mine, theirs, **({"rtol": 0, "atol": 0} if kernel else {}))


@pytest.mark.needs_extension
@each_case()
def test_one_and_two_threads_are_bitwise_equal(op, make):
    if op.composite is not None or op.name in PRODUCTS:
        pytest.skip("PyTorch's own matrix products and convolutions promise no such thing")
    one = differentiated(op, arguments(make, torch.float32))
    with threads(2):
        two = differentiated(op, arguments(make, torch.float32))
    for a, b in zip(one[0] + one[1], two[0] + two[1], strict=True):
        assert torch.equal(a, b)


@each_case()
def test_half_precision_is_computed_in_float32(op, make):
    """Under autocast, and with bfloat16 arguments: everything but the transformed values stays float32."""
    given = arguments(make, torch.bfloat16)
    if op.composite is not None:
        pytest.skip("a composition of PyTorch's ops has the precision that they have")
    halves = public(op, given)
    wide = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = public(op, wide)
    for low, cast, full in zip(halves, under_autocast, public(op, wide), strict=True):
        assert cast.dtype == full.dtype
        torch.testing.assert_close(cast, full, rtol=0, atol=0)
        torch.testing.assert_close(low, full.to(low.dtype), rtol=0, atol=0)


@each_case()
def test_arguments_are_left_alone(op, make):
    given, again = arguments(make, torch.float32), arguments(make, torch.float32)
    differentiated(op, given)
    for name in floats(given):
        assert torch.equal(given[name], again[name])
