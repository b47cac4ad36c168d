"""A flow along the solution of an ordinary differential equation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastgen.nn.continuous.field_for_solve import SolvedField, SolvedMLPField, solved_field
from fastgen.nn.continuous.ode_gradient import Evaluations, Path
from fastgen.nn.continuous.ode_solver import OdeSolver, Slope
from fastgen.nn.flow.flow_layer import FlowLayer, no_log_det
from fastgen.ops.arguments import check_integers
from fastgen.ops.field import Field, is_transformed
from fastgen.ops.hutchinson_trace import KINDS, hutchinson_trace, probe_noise
from fastgen.ops.precision import in_float32, without_autocast
from fastgen.ops.seeds import draw_seed

REGULARIZERS = ("kinetic", "jacobian")
GRADIENTS = ("steps", "adjoint", "autograd")


class ContinuousFlow(FlowLayer):
    """x along the field f from time 0, the data, to T, the noise: ``forward(x)`` and ``inverse(z)``::

        dx/dt = f(x, t)        log_det = integral of tr(df/dx) dt        over [0, T], or back

    Both return (z or x, log_det [N]), take ``context`` [N, ...], which the field is then called with, and ``seed``. Of
    an estimated trace one draw of noise serves a whole solve and its gradient; the seed decides it, None draws the seed
    from PyTorch's generator, and with the same seed ``inverse`` undoes ``forward``, log_det too.

    x is float [N, D...]; it is solved in float32 or float64, under autocast too, and log_det is that. With an adaptive
    solver the steps depend on the whole batch: a row of another batch agrees within the tolerance.

    ``evaluations`` counts those of the field in the latest call (``forward``) and for its gradient (``backward``).
    ``penalties`` has the regularizers of the latest ``forward`` in training mode, by name, [N]: the integrals of::

        "kinetic":   |f|^2                           "jacobian":  the mean over the probes of |v^T df/dx|^2

    the mean of which is the squared Frobenius norm of the Jacobian. They keep paths straight and fields smooth.

    Args:
        field: a module or function from (x, t), or (x, t, context), to dx/dt, like x; t is a number. ``MLPField`` is
            the fast case.
        end_time: T.
        trace: "rademacher", "gaussian", "hutch++", "exact" or "closed-form", as of ``fastgen.ops.hutchinson_trace``.
        evaluation_trace: the same in eval mode; None for ``trace``.
        probes: how many products estimate the trace.
        solver: as of ``fastgen.nn.OdeSolver``, with ``rtol``, ``atol``, ``step_size`` and ``max_evaluations``.
        gradient: how it is found. "steps" keeps x before each step alone, and takes the steps once more, each with its
            graph: backpropagation to rounding. "adjoint" keeps the end alone, and solves the adjoint's equation back
            from there (torchdiffeq's ``odeint_adjoint``): right within the tolerance. "autograd" keeps all that the
            solver computes, and can be differentiated again.
        regularizers: of "kinetic" and "jacobian".

    Raises:
        ValueError: an unknown name, a number out of range, a field that returns another shape, a function (which has no
            parameters to be known) with a gradient by steps or adjoint.
        SolverLimitExceeded: a RuntimeError, where the solver does not reach the end.

    References: Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018; Grathwohl
    et al., "FFJORD", ICLR 2019; Finlay, Jacobsen, Nurbekyan, Oberman, "How to train your neural ODE", ICML 2020; Zhuang
    et al., "Adaptive checkpoint adjoint method for gradient estimation in neural ODE", ICML 2020.

    Example:
        >>> from fastgen.nn import MLPField
        >>> layer = ContinuousFlow(MLPField((2, 16, 2), time="concat"), solver="rk4", step_size=0.1)
        >>> x = torch.randn(5, 2)
        >>> z, log_det = layer(x, seed=0)
        >>> torch.allclose(layer.inverse(z, seed=0)[0], x, atol=1e-4), layer.evaluations.forward
        (True, 40)
    """

    takes_context = True
    takes_seed = True

    def __init__(
        self,
        field: Callable[..., Tensor],
        *,
        end_time: float = 1.0,
        trace: str = "rademacher",
        evaluation_trace: str | None = None,
        probes: int = 1,
        solver: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        step_size: float | None = None,
        max_evaluations: int = 10_000,
        gradient: str = "steps",
        regularizers: Sequence[str] = (),
    ) -> None:
        if not 0 < end_time < float("inf"):
            raise ValueError(f"end_time must be greater than 0, and finite, got {end_time}")
        for name, kind in (("trace", trace), ("evaluation_trace", evaluation_trace or trace)):
            if kind not in KINDS:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        least = 3 if "hutch++" in (trace, evaluation_trace) else 1
        check_integers(least, probes=probes)
        for name in regularizers:
            if name not in REGULARIZERS:
                allowed = ", ".join(map(repr, REGULARIZERS))
                raise ValueError(f"regularizers must be of {allowed}, got {name!r}")
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))}, got {gradient!r}")
        if gradient != "autograd" and not isinstance(field, nn.Module):
            raise ValueError(f"field must be an nn.Module with gradient={gradient!r}, got a {type(field).__name__}")
        super().__init__()
        self.field, self.end_time, self.probes, self.gradient = field, float(end_time), probes, gradient
        self.trace, self.evaluation_trace = trace, evaluation_trace or trace
        self.solver = OdeSolver(solver, rtol, atol, step_size, max_evaluations)
        self.regularizers = tuple(regularizers)
        self.evaluations = Evaluations()
        self.penalties: dict[str, Tensor] = {}

    @property
    def estimate(self) -> str | None:
        """The estimate of the log-determinant in eval mode; None where the trace is exact."""
        if self.evaluation_trace in ("exact", "closed-form"):
            return None
        return f"traces by {self.probes} {self.evaluation_trace} probe{'s' if self.probes > 1 else ''}"

    def forward(self, x: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """x to (z, log_det [N])."""
        regularizers = self.regularizers if self.training else ()
        z, log_det, *penalties = self._solve(x, context, seed, 0.0, self.end_time, regularizers)
        self.penalties = dict(zip(regularizers, penalties, strict=True))
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """z to (x, log_det [N] of that)."""
        x, log_det = self._solve(z, context, seed, self.end_time, 0.0, ())
        return x, log_det

    def _solve(self, *arguments) -> tuple[Tensor, ...]:
        if self.solver.is_fixed or not is_transformed():
            return self._integrate(*arguments)
        if torch.compiler.is_exporting() or not torch.compiler.is_compiling():
            raise NotImplementedError(
                "solver must have fixed steps, such as 'rk4' with a step_size, under torch.export and torch.func, "
                f"which do not show the numbers that it chooses steps by, got {self.solver.name!r}"
            )
        return torch.compiler.disable(self._integrate)(*arguments)

    def _integrate(
        self,
        x: Tensor,
        context: Tensor | None,
        seed: int | None,
        begin: float,
        end: float,
        regularizers: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        if not x.is_floating_point() or x.dim() < 2:
            raise ValueError(f"x must be floating point of shape [N, D...], got {x.dtype} of shape {tuple(x.shape)}")
        self.evaluations = Evaluations()
        if x.is_meta or not x.shape[0]:
            return x, *(no_log_det(x) for _ in range(1 + len(regularizers)))
        (start,) = in_float32(x)
        recorded = torch.is_grad_enabled()
        through = is_transformed() or (recorded and self.gradient == "autograd")
        with without_autocast(x):
            field = solved_field(self.field, context, through=through)
        dynamics = _Dynamics(self, field, start, seed, regularizers)
        path = Path(self.solver, dynamics, begin, end, 1 + len(regularizers), self.evaluations)
        if recorded and not through and (x.requires_grad or field.parameters):
            forward = path.forward_by_adjoint if self.gradient == "adjoint" else path.forward_by_steps
            z, *integrals = forward(start, field.parameters)
        else:
            z, *integrals = path.forward(start)
        return z.to(x.dtype), *integrals

    def __getstate__(self) -> dict:
        return self.__dict__ | {"penalties": {}}  # a part of a graph can be neither copied nor pickled

    def extra_repr(self) -> str:
        solver = self.solver
        steps = f"rtol={solver.rtol}, atol={solver.atol}" if solver.step_size is None else f"step={solver.step_size}"
        return f"end_time={self.end_time}, trace={self.trace!r}, probes={self.probes}, {solver.name}, {steps}"


class _Dynamics:
    """The field of one solve with its noise: from times to f, its trace and the regularizers' integrands."""

    def __init__(
        self,
        flow: ContinuousFlow,
        field: SolvedField | SolvedMLPField,
        x: Tensor,
        seed: int | None,
        regularizers: tuple[str, ...],
    ) -> None:
        self.field, self.probes, self.regularizers = field, flow.probes, regularizers
        self.kind = flow.trace if flow.training else flow.evaluation_trace
        self.exact = self.kind in ("exact", "closed-form")
        self.noise = None
        if not self.exact or "jacobian" in regularizers:
            count = flow.probes - flow.probes // 3 if self.kind == "hutch++" else flow.probes
            kind = "gaussian" if self.kind == "gaussian" else "rademacher"
            self.noise = probe_noise(x, count, kind, draw_seed() if seed is None else seed, 0, x.dtype)

    def __call__(self, times: Sequence[float | Tensor]) -> list[Slope]:
        return [functools.partial(self._slope, field) for field in self.field.at(times)]

    def _slope(self, field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with without_autocast(x):
            noise = None if self.exact else self.noise
            y, trace = hutchinson_trace(field, x, probes=self.probes, kind=self.kind, noise=noise)
            integrands = [trace]
            for name in self.regularizers:
                found = y.square().flatten(1).sum(1) if name == "kinetic" else self._squared_products(field, x)
                integrands.append(found)
            return y, tuple(integrands)

    def _squared_products(self, field: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Returns the mean over the noise of |v^T J|^2, [N]."""
        if isinstance(field, Field):
            products = field.products(x, self.noise)
            total = field.contract(x, self.noise, products)[1]  # its gradient is half of that of the squares' sum
            return (2 * total - total.detach()) / len(self.noise)
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            y = field(at)
        if not y.requires_grad:  # the field is constant
            return x.new_zeros(x.shape[0])
        recorded = torch.is_grad_enabled()
        products = [
            torch.autograd.grad(y, at, v, retain_graph=True, create_graph=recorded, materialize_grads=True)[0]
            for v in self.noise.to(y.dtype)
        ]
        return torch.stack(products).square().mean(0).flatten(1).sum(1)
