from __future__ import annotations

import copy
import io
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from fastgen.nn import ContinuousFlow, ConvNetField, MLPField, SolverLimitExceeded
from fastgen.nn.continuous.ode_solver import FIXED

TIGHT = {"solver": "dopri8", "rtol": 1e-10, "atol": 1e-10}
SOLVED = {"rtol": 1e-7, "atol": 1e-7}
"""Of what TIGHT solves, gradients included."""


class Linear(nn.Module):
    """dx/dt = x A^T."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x, t):
        return x @ self.matrix.T


class Plain(nn.Module):
    """A field that fastgen knows nothing about."""

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.inner = field

    def forward(self, x, t, *context):
        return self.inner(x, t, *context)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def forward(self, x, t, context):
        return torch.tanh(x @ self.weight + context * t)


@pytest.fixture
def field() -> MLPField:
    torch.manual_seed(0)
    return MLPField((3, 6, 5, 3), time="concat-squash").double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(layer: ContinuousFlow, x: Tensor, context: Tensor | None = None, seed: int = 3) -> list[Tensor]:
    """z, log_det, penalties, and the gradients of a number made of all."""
    inputs = [x.requires_grad_(), *layer.parameters()]
    if context is not None:
        inputs.append(context.requires_grad_())
    z, log_det = layer(x, context, seed)
    found = [z, log_det, *layer.penalties.values()]
    loss = sum((value.flatten(1).sum(1) if value.dim() > 1 else value).sin().sum() for value in found)
    return [*(value.detach() for value in found), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("given", [{"solver": "rk4", "step_size": 0.3}, {"solver": "dopri5"}])
def test_a_linear_field_is_the_matrix_exponential(given, x):
    layer = ContinuousFlow(Linear(0.5 * torch.randn(3, 3, dtype=torch.float64)), trace="exact", end_time=0.9, **given)
    z, log_det = layer(x)
    matrix = layer.field.matrix.detach()
    tolerance = {"rtol": 0, "atol": 1e-3 if "step_size" in given else 1e-4}
    torch.testing.assert_close(z, x @ torch.linalg.matrix_exp(0.9 * matrix).T, **tolerance)
    torch.testing.assert_close(log_det, (0.9 * matrix.trace()).expand(4))  # a constant, which is summed exactly


@pytest.mark.parametrize("known", [True, False])
def test_the_log_det_is_that_of_the_solved_maps_jacobian_and_the_inverse_undoes_it(known, field, x):
    layer, x = ContinuousFlow(field if known else Plain(field), trace="exact", end_time=1.3, **TIGHT), x[:2]
    z, log_det = layer(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0], x)
    own = torch.stack([jacobian[i, :, i] for i in range(len(x))])
    torch.testing.assert_close(log_det, own.slogdet()[1], **SOLVED)
    back, inverse_log_det = layer.inverse(z)
    torch.testing.assert_close(back, x, **SOLVED)
    torch.testing.assert_close(inverse_log_det, -log_det, **SOLVED)


@pytest.mark.parametrize("how", ["steps", "adjoint"])
@pytest.mark.parametrize(
    ("kind", "known"),
    [("closed-form", True), *itertools.product(["rademacher", "gaussian", "hutch++", "exact"], [True, False])],
)
def test_the_adjoint_equals_backpropagation_through_the_solver(kind, known, how, field, x):
    field = field if known else Plain(field)
    given = {"trace": kind, "probes": 3, "regularizers": ("kinetic", "jacobian")} | TIGHT
    adjoint, through = (gradients(ContinuousFlow(field, gradient=way, **given), x) for way in (how, "autograd"))
    assert len(adjoint) == 4 + 1 + sum(1 for _ in field.parameters())
    for one, other in zip(adjoint, through, strict=True):
        torch.testing.assert_close(one, other, **SOLVED)


@pytest.mark.parametrize("kind", ["rademacher", "exact"])
@pytest.mark.parametrize("name", FIXED)
def test_the_adjoint_of_fixed_steps_is_backpropagation_to_rounding(name, kind, field, x):
    given = {"trace": kind, "regularizers": ("kinetic", "jacobian"), "solver": name, "step_size": 0.3}
    adjoint, through = (gradients(ContinuousFlow(field, gradient=way, **given), x) for way in ("steps", "autograd"))
    for one, other in zip(adjoint, through, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_gradient_of_the_gradient_needs_all_steps(field, x):
    given = {"trace": "exact", "solver": "rk4", "step_size": 0.5}
    x.requires_grad_()
    z, _ = ContinuousFlow(field, gradient="autograd", **given)(x)
    (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()
    z, _ = ContinuousFlow(field, **given)(x)
    (first,) = torch.autograd.grad(z.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("how", ["steps", "adjoint"])
@pytest.mark.parametrize("time", ["none", "concat", "concat-squash", "callable"])
def test_the_gradient_of_the_context(time, how, x):
    torch.manual_seed(0)
    field = Conditional() if time == "callable" else MLPField((3, 5, 4, 3), "swish", time, context_features=3).double()
    context = torch.randn(4, 3, dtype=torch.float64)
    adjoint, through = (
        gradients(ContinuousFlow(field, trace="exact", gradient=way, **TIGHT), x, context) for way in (how, "autograd")
    )
    for one, other in zip(adjoint, through, strict=True):
        torch.testing.assert_close(one, other, **SOLVED)
    assert (adjoint[-1] != 0).all()


@pytest.mark.parametrize("time", ["none", "concat"])
def test_the_gradient_where_a_field_depends_on_the_time_otherwise(time, x):
    field = MLPField((3, 5, 4, 3), "softplus", time).double()
    adjoint, through = (gradients(ContinuousFlow(field, gradient=way, **TIGHT), x) for way in ("steps", "autograd"))
    for one, other in zip(adjoint, through, strict=True):
        torch.testing.assert_close(one, other, **SOLVED)


def test_a_subclass_of_a_known_field_is_its_own(x):
    class Twice(MLPField):
        def at(self, t=None, context=None):
            inner = super().at(t, context)
            return lambda x: 2 * inner(x)

    torch.manual_seed(0)
    field = Twice((3, 4, 3)).double()
    half = MLPField((3, 4, 3)).double()
    half.load_state_dict(field.state_dict())
    given = {"trace": "exact", "solver": "euler"}
    once = ContinuousFlow(half, end_time=2.0, step_size=2.0, **given)(x)  # a field twice as fast needs half of the time
    torch.testing.assert_close(ContinuousFlow(field, end_time=1.0, step_size=1.0, **given)(x), once)


def test_a_convolutional_field():
    field = ConvNetField((2, 3, 2), activation="softplus", time="concat", context_features=3).double()
    x, context = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 2, 2, 3), (2, 3)))
    given = {"trace": "exact", "regularizers": ("jacobian",)} | TIGHT
    layers = (ContinuousFlow(field, gradient=way, **given) for way in ("steps", "autograd"))
    adjoint, through = (gradients(layer, x, context) for layer in layers)
    for one, other in zip(adjoint, through, strict=True):
        torch.testing.assert_close(one, other, **SOLVED)
    layer = ContinuousFlow(field, **given).eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None], context[:1])[0][0], x[0]).reshape(12, 12)
    torch.testing.assert_close(layer(x, context)[1][0], jacobian.slogdet()[1], **SOLVED)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "hutch++"])
def test_an_estimate_is_unbiased_with_its_gradient(kind, field):
    """Every seed has its own noise: the mean over many is the exact value within 5 standard errors."""
    seeds, x = 3000, torch.randn(1, 3, dtype=torch.float64)
    batch = x.expand(seeds, 3).clone()
    given = {"solver": "rk4", "step_size": 0.25, "gradient": "autograd"}
    fields = [copy.deepcopy(field) for _ in range(2)]

    def run(field: MLPField, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        _, log_det = ContinuousFlow(field, trace=kind, probes=3 if kind == "hutch++" else 1, **given)(x, seed=7)
        return log_det.detach(), torch.autograd.grad(log_det.sum(), x)[0]

    for found, wanted in zip(run(fields[0], batch, kind), run(fields[1], x, "exact"), strict=True):
        error = found.std(0) / seeds**0.5
        assert ((found.mean(0) - wanted[0]).abs() <= 5 * error + 1e-12).all()
        assert kind == "hutch++" or (error > 0).all()


def test_the_regularizers_are_what_they_say(x):
    """Of dx/dt = x A^T the product of a probe is v^T A at every time."""
    matrix = 0.3 * torch.randn(3, 3, dtype=torch.float64)
    layer = ContinuousFlow(Linear(matrix), regularizers=("jacobian", "kinetic"), end_time=0.7, **TIGHT)
    layer(x.repeat(500, 1), seed=1)
    jacobian, kinetic = layer.penalties["jacobian"], layer.penalties["kinetic"]
    wanted = 0.7 * matrix.square().sum()
    assert (jacobian.mean() - wanted).abs() <= 5 * jacobian.std() / len(jacobian) ** 0.5
    nodes = torch.linspace(0, 0.7, 141, dtype=torch.float64)
    speeds = torch.stack([(x @ torch.linalg.matrix_exp(t * matrix).T @ matrix.T).square().sum(1) for t in nodes])
    torch.testing.assert_close(kinetic[:4], torch.trapezoid(speeds, nodes, dim=0), rtol=1e-4, atol=0)
    layer.eval()(x)
    assert layer.penalties == {}


def test_the_evaluation_has_a_trace_of_its_own(field, x):
    layer = ContinuousFlow(field, evaluation_trace="exact").eval()
    assert torch.equal(layer(x, seed=1)[1], layer(x, seed=2)[1])
    assert (layer.train()(x, seed=1)[1] != layer(x, seed=2)[1]).any()


@torch.no_grad()
def test_batches_of_none_and_one(field, x):
    layer = ContinuousFlow(field, trace="exact", regularizers=("kinetic",), **TIGHT)
    z, log_det = layer(x[:0])
    assert z.shape == (0, 3)
    assert log_det.shape == layer.penalties["kinetic"].shape == (0,)
    whole = layer(x)
    for one, other in zip(layer(x[1:2]), whole, strict=True):
        torch.testing.assert_close(one, other[1:2], **SOLVED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_solved_in_single(dtype, x):
    layer = ContinuousFlow(MLPField((3, 6, 5, 3), time="concat-squash", context_features=2), trace="exact")
    x, context = x.to(dtype), torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = layer(x, context)
        sum(value.float().sum() for value in (z, log_det)).backward()
    assert z.dtype == dtype
    assert log_det.dtype == torch.float32
    wanted = layer(x.float(), context)
    torch.testing.assert_close(z, wanted[0].to(dtype))
    torch.testing.assert_close(log_det, wanted[1])
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_a_layer_with_penalties_can_be_copied_and_pickled(field, x):
    layer = ContinuousFlow(field, regularizers=("kinetic",), solver="euler", step_size=0.5)
    layer(x, seed=0)
    file = io.BytesIO()
    torch.save(layer, file)
    for copied in (copy.deepcopy(layer), torch.load(io.BytesIO(file.getvalue()), weights_only=False)):
        assert torch.equal(copied(x, seed=0)[0], layer(x, seed=0)[0])


def test_the_evaluations_are_counted(field, x):
    layer = ContinuousFlow(field, solver="rk4", step_size=0.3)  # 4 steps of 4
    for _ in range(2):
        _, log_det = layer(x)
        assert (layer.evaluations.forward, layer.evaluations.backward) == (16, 0)
        log_det.sum().backward()
        assert (layer.evaluations.forward, layer.evaluations.backward) == (16, 16)
    layer = ContinuousFlow(field, gradient="adjoint")
    _, log_det = layer(x)
    forward = layer.evaluations.forward
    assert forward > 0
    log_det.sum().backward()
    assert layer.evaluations.forward == forward
    assert layer.evaluations.backward > 0


def test_a_limit_of_evaluations_holds_in_the_adjoints_solve():
    layer = ContinuousFlow(
        MLPField((3, 4, 3)).double(), trace="exact", gradient="adjoint", rtol=1e-3, atol=1e-3, max_evaluations=30
    )
    z, _ = layer(torch.ones(2, 3, dtype=torch.float64))
    object.__setattr__(layer.solver, "max_evaluations", 5)
    with pytest.raises(SolverLimitExceeded, match="has made 5 evaluations"):
        z.sum().backward()


def test_a_fixed_solver_compiles_without_a_break(x):
    layer = ContinuousFlow(MLPField((3, 4, 3), time="concat").double(), trace="exact", solver="midpoint", step_size=1)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: layer(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.filterwarnings("ignore")  # of the compiler, where it breaks the graph
@torch.no_grad()
def test_an_adaptive_solver_runs_beside_what_is_compiled(field, x):
    layer = ContinuousFlow(field, trace="exact")
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: layer(2 * x), backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(2 * x))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"solver": "rk45"}, "solver must be one of 'euler'.*, got 'rk45'"),
        ({"rtol": 0}, "rtol must be greater than 0.*, got 0"),
        ({"atol": math.nan}, "atol must be greater than 0.*, got nan"),
        ({"solver": "rk4"}, "step_size must be greater than 0, and finite, for solver 'rk4', got None"),
        (
            {"solver": "rk4", "step_size": -0.1},
            r"step_size must be greater than 0, and finite, for solver 'rk4', got -0\.1",
        ),
        ({"step_size": 0.1}, r"step_size must be None for solver 'dopri5', .*, got 0\.1"),
        ({"max_evaluations": 0}, "max_evaluations must be an integer of at least 1, got 0"),
        ({"gradient": "exact"}, "gradient must be one of 'steps', 'adjoint', 'autograd', got 'exact'"),
        ({"end_time": 0.0}, r"end_time must be greater than 0, and finite, got 0\.0"),
        ({"trace": "trace"}, "trace must be one of.*, got 'trace'"),
        ({"evaluation_trace": "all"}, r"evaluation_trace must be one of 'rademacher', .*, got 'all'"),
        ({"probes": 0}, "probes must be an integer of at least 1, got 0"),
        ({"trace": "hutch++", "probes": 2}, "probes must be an integer of at least 3, got 2"),
        ({"regularizers": ("l2",)}, "regularizers must be of 'kinetic', 'jacobian', got 'l2'"),
    ],
)
def test_wrong_arguments_are_named(given, words, field):
    with pytest.raises(ValueError, match=words):
        ContinuousFlow(field, **given)


def test_wrong_fields_and_inputs_are_named(field, x):
    with pytest.raises(ValueError, match=r"field must be an nn\.Module with gradient='steps', got a function"):
        ContinuousFlow(lambda x, t: x)
    with pytest.raises(ValueError, match=r"f must keep the shape of x, \(4, 3\), got \(4, 2\)"):
        ContinuousFlow(lambda x, t: x[:, :2], gradient="autograd")(x)
    with pytest.raises(ValueError, match=r"x must be floating point .*, got torch.int64 of shape \(4, 3\)"):
        ContinuousFlow(field)(x.long())
