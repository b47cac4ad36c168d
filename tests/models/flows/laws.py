"""The laws of every flow: a model's test file has a subclass of ``FlowLaws`` that says what to try."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fastgen.models import create_model, from_pretrained
from fastgen.models.flows.base import FlowModel
from fastgen.nn import FlowLayer

CONTEXT = {"classes": 3, "vector": 2}


class FlowLaws:
    """conftest.py hands the arguments ``case``, ``conditional_case`` and ``one_case`` names of ``cases``.

    Attributes:
        name: of the model in the registry.
        cases: configs of small events, by a name; laws about the Jacobian want 12 numbers an event or fewer.
        plane: config of a model of real numbers with event_shape (2,); None if the model is of images only.
        discrete: config of a model with levels.
        noise: standard deviation of what is added to every parameter, so that no layer is the identity.
    """

    name: ClassVar[str]
    cases: ClassVar[dict[str, dict[str, Any]]]
    plane: ClassVar[dict[str, Any] | None] = None
    discrete: ClassVar[dict[str, Any] | None] = None
    noise: ClassVar[float] = 0.2

    def make(self, config: dict[str, Any], dtype: torch.dtype = torch.float64) -> FlowModel:
        """A model in eval mode whose parameters are not those it began with; one batch has passed in training mode."""
        torch.manual_seed(0)
        model = create_model(self.name, preset="tiny", **config).to(dtype)
        x, context = self.data(model, 16)
        with torch.no_grad():
            model.train().log_prob(x, context)
            for parameter in model.parameters():
                parameter.add_(self.noise * torch.randn_like(parameter))
        return model.eval()

    def data(self, model: FlowModel, n: int) -> tuple[Tensor, Any]:
        """Events in the model's domain, [0, 1) where it has levels, and a context."""
        generator = torch.Generator().manual_seed(1)
        dtype = next(model.parameters()).dtype
        shape = (n, *model.config.event_shape)
        x = torch.rand(shape, generator=generator) if model.config.levels else torch.randn(shape, generator=generator)
        context = {}
        if model.config.classes:
            context["class"] = torch.arange(n) % model.config.classes
        if model.config.vector:
            context["vector"] = torch.randn(n, model.config.vector, generator=generator).to(dtype)
        return x.to(dtype), context or None

    @torch.no_grad()
    def test_inverse_after_forward_is_the_identity_and_the_log_dets_cancel(self, case):
        model = self.make(self.cases[case])
        x, context = self.data(model, 5)
        z, log_det = model(x, context)
        back, inverse_log_det = model.inverse(z, context)
        assert z.shape == (5, x[0].numel())
        torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(log_det, -inverse_log_det, rtol=1e-7, atol=1e-7)

    def test_the_log_det_is_that_of_the_jacobian(self, case):
        model = self.make(self.cases[case])
        x, context = self.data(model, 3)
        size = x[0].numel()
        jacobian = torch.autograd.functional.jacobian(lambda x: model(x, context)[0], x)
        own = torch.stack([jacobian[i, :, i].reshape(size, size) for i in range(3)])
        torch.testing.assert_close(model(x, context)[1], own.slogdet()[1], rtol=1e-7, atol=1e-7)
        assert all((jacobian[i, :, j] == 0).all() for i in range(3) for j in range(3) if i != j)

    @torch.no_grad()
    def test_batches_of_none_and_one_are_rows_of_a_batch(self, case):
        model = self.make(self.cases[case])
        x, context = self.data(model, 4)
        whole = model.log_prob(x, context)

        def rows(i: int, j: int) -> Any:
            return None if context is None else {name: value[i:j] for name, value in context.items()}

        torch.testing.assert_close(model.log_prob(x[1:2], rows(1, 2)), whole[1:2])
        assert model.log_prob(x[:0], rows(0, 0)).shape == (0,)
        assert model.inverse(model(x[:0], rows(0, 0))[0], rows(0, 0))[0].shape == x[:0].shape

    @torch.no_grad()
    def test_the_log_prob_is_float32_in_single_precision_and_under_autocast(self, case):
        model = self.make(self.cases[case], torch.float32)
        x, context = self.data(model, 4)
        single = model.log_prob(x, context)
        assert single.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            found = model.log_prob(x, context)
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        exact = copy.deepcopy(model).double().log_prob(x.double(), _double(context))
        assert (single - exact).abs().max() <= 1e-4 * (1 + exact.abs().max())

    @torch.no_grad()
    def test_a_sample_depends_on_its_number_alone(self, case):
        model = self.make(self.cases[case])
        _, context = self.data(model, 6)
        whole = model.sample(6, seed=3, context=context)
        last = None if context is None else {name: value[4:] for name, value in context.items()}
        part = model.sample(2, seed=3, context=last, offset=4)
        torch.testing.assert_close(part, whole[4:])
        assert whole.shape == (6, *model.config.event_shape)
        assert (model.sample(6, seed=4, context=context) != whole).any()

    def test_every_parameter_is_used_and_training_reduces_the_loss(self, case):
        model = self.make(self.cases[case], torch.float32).train()
        x, context = self.data(model, 32)
        batch = x if context is None else (x, context)
        optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
        for _ in range(10):
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
            assert all(name.startswith("dequantization.") for name in unused), unused
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    @torch.no_grad()
    def test_the_first_batch_of_training_sets_what_initialize_sets(self, case):
        torch.manual_seed(0)
        model = create_model(self.name, preset="tiny", **self.cases[case])
        x, context = self.data(model, 16)
        x = (x * model.config.levels).long() if model.config.levels else x
        before = {name: value.clone() for name, value in model.named_parameters()}
        model.initialize(x, context)
        layers = [layer for layer in model.modules() if isinstance(layer, FlowLayer) and layer.set_by_first_batch]
        assert model.training
        assert all(layer.initialized for layer in layers)
        changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
        assert bool(changed) == bool(layers)
        after = {name: value.clone() for name, value in model.named_parameters()}
        model.score(x, context)
        assert all(torch.equal(value, after[name]) for name, value in model.named_parameters())

    @torch.no_grad()
    def test_a_saved_model_is_the_same(self, case, tmp_path):
        model = self.make(self.cases[case], torch.float32)
        x, context = self.data(model, 3)
        model.save_pretrained(tmp_path)
        assert torch.equal(from_pretrained(tmp_path).log_prob(x, context), model.log_prob(x, context))

    def test_compiles_without_a_break(self, case):
        """The first case is traced by AOTAutograd, too; the others by Dynamo alone, in a quarter of the time."""
        self.check_compiled(case, "aot_eager" if case == next(iter(self.cases)) else "eager")

    @pytest.mark.slow
    def test_every_case_is_traced_by_aot_autograd(self, case):
        self.check_compiled(case, "aot_eager")

    def check_compiled(self, case, backend):
        self.check_model_compiled(self.make(self.cases[case]), backend)

    def check_model_compiled(self, model, backend):
        x, context = self.data(model, 4)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, context: model.log_prob(x, context), fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(x, context), model.log_prob(x, context))

    def test_every_condition_changes_the_density(self, conditional_case):
        model = self.make(self.cases[conditional_case])
        x, context = self.data(model, 4)
        base = model.log_prob(x, context)
        for name, value in context.items():
            changed = (value + 1) % model.config.classes if name == "class" else value + 1
            assert (model.log_prob(x, context | {name: changed}) != base).all()

    def test_a_context_of_another_number_of_rows_is_named(self, conditional_case):
        model = self.make(self.cases[conditional_case])
        x, context = self.data(model, 4)
        z = torch.zeros(4, x[0].numel(), dtype=x.dtype)
        for rows in (1, 3):
            fewer = {name: value[:rows] for name, value in context.items()}
            for function, given in ((model, x), (model.log_prob, x), (model.inverse, z)):
                with pytest.raises(ValueError, match=f"must have a row for each of the 4 samples, got {rows} rows"):
                    function(given, fewer)

    def test_the_density_of_the_plane_integrates_to_one(self):
        if self.plane is None:
            pytest.skip("the model is of images")
        model = self.make({"event_shape": (2,)} | self.plane)
        line = torch.linspace(-15, 15, 601, dtype=torch.float64)
        points = torch.cartesian_prod(line, line)
        with torch.no_grad():
            density = torch.cat([model.log_prob(part).exp() for part in points.split(40_000)])
        assert abs(density.sum() * (line[1] - line[0]) ** 2 - 1) < 2e-3

    def test_levels_are_scored_drawn_and_checked(self):
        if self.discrete is None:
            pytest.skip("the model is of real numbers")
        model = self.make(self.discrete, torch.float32)
        shape, count = model.config.event_shape, model.config.levels
        levels = torch.randint(0, count, (4, *shape))
        _, context = self.data(model, 4)
        bound = model.elbo(levels, context)
        assert bound.shape == (4,)
        assert bound.isfinite().all()
        noise = torch.rand(levels.shape)
        assert torch.equal(model.elbo(levels, context, noise=noise), model.elbo(levels, context, noise=noise))
        drawn = model.sample(3, context=None if context is None else {k: v[:3] for k, v in context.items()})
        assert drawn.dtype == torch.int64
        assert 0 <= drawn.min() <= drawn.max() < count
        assert model.bits_per_dim(levels, context).isfinite().all()
        model.train().loss(levels if context is None else (levels, context)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        for wrong in (levels.float(), levels + count, levels[..., :-1]):
            with pytest.raises(ValueError, match="levels"):
                model.elbo(wrong, context)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_data_that_are_not_finite_are_refused(self, one_case, bad):
        model = self.make(self.cases[one_case])
        x, context = self.data(model, 2)
        x.view(-1)[1] = bad
        with pytest.raises(ValueError, match="x must be finite, got 1 values that are not"):
            model.log_prob(x, context)

    def test_data_of_another_shape_are_refused(self, one_case):
        model = self.make(self.cases[one_case])
        x, context = self.data(model, 2)
        for wrong in (x[..., :-1], x[:, None], x[0]):
            with pytest.raises(ValueError, match="x must have shape"):
                model.log_prob(wrong, context)
        with pytest.raises(ValueError, match="z must have shape"):
            model.inverse(x.flatten(1)[:, 1:], context)

    def test_the_presets_are_there(self):
        assert create_model(self.name, preset="tiny").name == self.name
        assert create_model(self.name).training


def _double(context: Any) -> Any:
    return context and {name: v.double() if v.is_floating_point() else v for name, v in context.items()}
