from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    Laplace,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import Transform

from fastgen.distributions import FlowDistribution, FlowTransform
from fastgen.models import create_model
from fastgen.nn import (
    MLP,
    ActNorm,
    AffineCoupling,
    FlowSequential,
    InvertibleConv1x1,
    MaskedAffineAutoregressive,
    MultiScale,
    Squeeze2d,
)

D, WIDTH = 4, 3


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vectors(context: bool = False) -> FlowSequential:
    features = WIDTH if context else None
    return FlowSequential(
        MaskedAffineAutoregressive(D, hidden=(8,), context_features=features),
        AffineCoupling(MLP(D // 2, D, (8,), context_features=features)),
    ).double()


def images() -> MultiScale:
    scales = [FlowSequential(Squeeze2d(), InvertibleConv1x1(size)) for size in (4, 8)]
    return MultiScale(scales, [(4, 2, 2), (8, 1, 1)]).double()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def normal(*shape: int) -> Distribution:
    return Independent(Normal(torch.zeros(shape, dtype=torch.float64), 1.0), len(shape))


class Passes(nn.Module):
    """A layer that counts how often it is called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, {"forward": 0, "inverse": 0}

    def forward(self, x, context=None):
        self.calls["forward"] += 1
        return self.layer(x, context)

    def inverse(self, z, context=None):
        self.calls["inverse"] += 1
        return self.layer.inverse(z, context)


class TestFlowTransform:
    def test_it_goes_from_noise_to_data_as_the_inverse_of_the_layer_does(self):
        layer = vectors()
        transform = FlowTransform(layer, (D,))
        z = randn(5, D)
        x, log_det = layer.inverse(z)
        assert torch.equal(transform(z), x)
        torch.testing.assert_close(transform.inv(x), z)
        torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), log_det)
        torch.testing.assert_close(transform.inv.log_abs_det_jacobian(x, z), -log_det)
        jacobian = torch.autograd.functional.jacobian(lambda row: transform(row), z[0])
        torch.testing.assert_close(log_det[0], jacobian.slogdet()[1])

    @pytest.mark.parametrize("lead", [(), (1,), (0,), (3,), (2, 3)])
    @pytest.mark.parametrize("rows", [None, 1, 3])
    def test_batches_of_any_shape_with_rows_of_a_context(self, lead, rows):
        layer = vectors(context=rows is not None)
        context = None if rows is None else randn(rows, WIDTH)
        transform = FlowTransform(layer, (D,), context=context)
        z = randn(*lead, D)
        if rows == 3 and lead == (0,):
            with pytest.raises(ValueError, match="z has batch shape \\(0,\\); the context has 3 rows"):
                transform(z)
            return
        batch = torch.broadcast_shapes(lead, () if rows is None else (rows,))
        x = transform(z)
        assert x.shape == transform.forward_shape(z.shape) == (*batch, D)
        assert transform.log_abs_det_jacobian(z, x).shape == batch
        flat = z.expand(*batch, D).reshape(-1, D)
        repeated = None if context is None else context.expand(*batch, WIDTH).reshape(-1, WIDTH)
        for i in range(len(flat)):
            alone = layer.inverse(flat[i : i + 1], None if context is None else repeated[i : i + 1])[0]
            torch.testing.assert_close(x.reshape(-1, D)[i], alone[0])

    def test_contexts_by_name(self):
        model = create_model("nice", preset="tiny", event_shape=(4,), levels=0, classes=3, vector=2).double()
        context = {"class": torch.tensor([0, 2]), "vector": randn(2, 2)}
        transform = FlowTransform(model, (4,), context=context)
        x = transform(randn(5, 2, 4))
        for i in range(5):
            torch.testing.assert_close(transform.inv(x)[i], model(x[i], context)[0])

    def test_shapes_of_events_may_differ(self):
        layer = images()
        transform = FlowTransform(layer, (1, 4, 4), latent_shape=(16,))
        assert (transform.domain.event_dim, transform.codomain.event_dim) == (1, 3)
        z = randn(2, 3, 16)
        x = transform(z)
        assert x.shape == transform.forward_shape(z.shape) == (2, 3, 1, 4, 4)
        assert transform.inverse_shape(x.shape) == z.shape
        torch.testing.assert_close(transform.inv(x), z)
        density = TransformedDistribution(normal(16), [transform])
        expected = normal(16).log_prob(z) + layer(x.flatten(0, 1))[1].view(2, 3)
        torch.testing.assert_close(density.log_prob(x), expected)
        assert (density.batch_shape, density.event_shape) == ((), (1, 4, 4))

    def test_the_cache_saves_passes_and_changes_no_value(self):
        layer = Passes(vectors())
        plain = TransformedDistribution(normal(D), [FlowTransform(layer, (D,))])
        cached = TransformedDistribution(normal(D), [FlowTransform(layer, (D,)).with_cache(1)])
        x = cached.rsample((5,))
        assert layer.calls == {"forward": 0, "inverse": 1}
        found = cached.log_prob(x)
        assert layer.calls == {"forward": 0, "inverse": 1}
        torch.testing.assert_close(found, plain.log_prob(x))
        layer.calls["forward"] = 0
        torch.testing.assert_close(cached.log_prob(x + 1), plain.log_prob(x + 1))
        assert layer.calls["forward"] == 3
        (grad,) = torch.autograd.grad(found.sum(), layer.layer.layers[1].net.layers[0].weight, retain_graph=True)
        (expected,) = torch.autograd.grad(
            plain.log_prob(plain.transforms[0](cached.transforms[0].inv(x).detach())).sum(),
            layer.layer.layers[1].net.layers[0].weight,
        )
        torch.testing.assert_close(grad, expected)

    def test_it_composes_with_the_transforms_of_torch(self):
        layer = vectors()
        scale = torch.tensor([0.5, 1.0, 2.0, -3.0], dtype=torch.float64)
        parts = [AffineTransform(1.0, scale, event_dim=1), FlowTransform(layer, (D,)), SigmoidTransform()]
        density = TransformedDistribution(normal(D), parts)
        x = density.sample((6,))
        logits = x.logit()
        z, log_det = layer(logits)
        expected = normal(D).log_prob((z - 1) / scale) - scale.abs().log().sum() + log_det
        expected = expected - (x.log() + (-x).log1p()).sum(1)
        torch.testing.assert_close(density.log_prob(x), expected)
        whole = ComposeTransform(parts)
        points = randn(3, D)
        torch.testing.assert_close(whole.inv(whole(points)), points)

    def test_equality_is_of_layer_and_context(self):
        layer, context = vectors(context=True), randn(2, WIDTH)
        first = FlowTransform(layer, (D,), context=context)
        assert first == FlowTransform(layer, (D,), context=context) == first.with_cache(1)
        assert first != FlowTransform(layer, (D,), context=context.clone())
        assert first != FlowTransform(copy.deepcopy(layer), (D,), context=context)
        assert first.inv.inv is first
        assert isinstance(first, Transform)

    def test_arguments_that_cannot_be_used_are_refused(self):
        with pytest.raises(TypeError, match="layer is a Linear"):
            FlowTransform(nn.Linear(2, 2), (2,))
        with pytest.raises(ValueError, match="they must have as many elements"):
            FlowTransform(ActNorm(2), (2,), latent_shape=(3,))
        with pytest.raises(ValueError, match=r"context has tensors of \[2, 3\] rows"):
            FlowTransform(ActNorm(2), (2,), context={"a": randn(2, 1), "b": randn(3, 1)})
        transform = FlowTransform(vectors(), (D,))
        for wrong in (randn(D - 1), randn(5, D + 1), randn(D)[0]):
            with pytest.raises(ValueError, match="z must have shape"):
                transform(wrong)
            with pytest.raises(ValueError, match="x must have shape"):
                transform.inv(wrong)


class TestFlowDistribution:
    @pytest.mark.parametrize("rows", [None, 3])
    def test_it_is_the_transformed_distribution_in_one_pass(self, rows):
        context = None if rows is None else randn(rows, WIDTH)
        layer = Passes(vectors(context=rows is not None))
        density = FlowDistribution(layer, (D,), context=context)
        plain = TransformedDistribution(normal(D), [FlowTransform(layer.layer, (D,), context=context)])
        assert (density.batch_shape, density.event_shape) == (plain.batch_shape, plain.event_shape)
        assert density.batch_shape == (() if rows is None else (rows,))
        torch.manual_seed(1)
        x = density.rsample((5,))
        torch.manual_seed(1)
        torch.testing.assert_close(x, plain.rsample((5,)))
        assert not density.sample().requires_grad
        layer.calls["forward"] = 0
        torch.testing.assert_close(density.log_prob(x), plain.log_prob(x))
        assert layer.calls["forward"] == 1

    def test_a_sample_with_its_log_prob_takes_the_sampling_pass_alone(self):
        layer = Passes(vectors(context=True))
        density = FlowDistribution(layer, (D,), context=randn(2, WIDTH))
        x, log_prob = density.rsample_with_log_prob((5,))
        assert layer.calls == {"forward": 0, "inverse": 1}
        torch.testing.assert_close(log_prob, density.log_prob(x))

    @pytest.mark.parametrize("base", ["normal", "logistic"])
    def test_a_model_needs_nothing_said(self, base):
        model = create_model("nice", preset="tiny", event_shape=(1, 2, 2), base=base, vector=2).double()
        context = randn(3, 2)
        density = FlowDistribution(model, context=context)
        assert (density.batch_shape, density.event_shape) == ((3,), (1, 2, 2))
        x = density.sample((6,))
        expected = torch.stack([model.log_prob(part, context) for part in x])
        torch.testing.assert_close(density.log_prob(x), expected)

    def test_samples_of_a_logistic_base_are_logistic(self):
        density = FlowDistribution(create_model("nice", preset="tiny", event_shape=(2,), levels=0, base="logistic"))
        z = density.base_dist.sample((4000,)).double()
        positions = z.sigmoid().flatten().sort()[0]
        gap = (positions - (torch.arange(8000) + 0.5) / 8000).abs().max()
        assert gap < 2.0 / math.sqrt(8000)  # Kolmogorov-Smirnov: exceeded once in 1500

    @pytest.mark.parametrize("name", ["realnvp", "flow_plus_plus"])
    def test_samples_of_an_image_model_beyond_its_data_have_a_density(self, name):
        density = FlowDistribution(create_model(name, preset="tiny").eval())
        x, log_prob = density.rsample_with_log_prob((64,))
        assert x.amin() < 0 or x.amax() > 1
        torch.testing.assert_close(density.log_prob(x), log_prob, rtol=1e-4, atol=1e-2)

    @pytest.mark.parametrize("base", ["normal", "logistic"])
    def test_nothing_is_checked_if_it_is_not_asked_for(self, base):
        model = create_model("nice", preset="tiny", event_shape=(2,), levels=0, base=base)
        x = torch.full((1, 2), math.nan)
        assert FlowDistribution(model, validate_args=False).log_prob(x).isnan().all()
        with pytest.raises(ValueError, match="within the support"):
            FlowDistribution(model, validate_args=True).log_prob(x)

    def test_expanded_it_is_the_same_density(self):
        density = FlowDistribution(vectors(context=True), (D,), context=randn(3, WIDTH))
        wide = density.expand((2, 3))
        assert isinstance(wide, FlowDistribution)
        assert (wide.batch_shape, wide.sample((5,)).shape) == ((2, 3), (5, 2, 3, D))
        x = randn(2, 3, D)
        assert torch.equal(wide.log_prob(x), density.log_prob(x))
        independent = Independent(wide, 1)
        torch.testing.assert_close(independent.log_prob(x), wide.log_prob(x).sum(1))

    def test_gradients_reach_parameters_context_and_samples(self):
        layer, context = vectors(context=True), randn(3, WIDTH).requires_grad_()
        density = FlowDistribution(layer, (D,), context=context)
        x, log_prob = density.rsample_with_log_prob()
        (x.square().sum() + log_prob.sum()).backward()
        assert context.grad.abs().min() > 0
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_training_does_not_meet_values_of_former_parameters(self):
        layer = ActNorm(D).double().eval()
        density = FlowDistribution(layer, (D,))
        x = density.sample((5,))
        density.log_prob(x)
        with torch.no_grad():
            layer.log_scale.add_(1)
        fresh = FlowDistribution(layer, (D,))
        assert torch.equal(density.log_prob(x), fresh.log_prob(x))

    def test_any_base_of_the_right_event(self):
        base = Independent(Laplace(torch.zeros(D, dtype=torch.float64), 1.0), 1)
        layer = vectors()
        x = randn(5, D)
        z, log_det = layer(x)
        torch.testing.assert_close(FlowDistribution(layer, (D,), base=base).log_prob(x), base.log_prob(z) + log_det)

    def test_dtype_is_that_of_the_flow(self):
        assert FlowDistribution(vectors(), (D,)).sample().dtype == torch.float64
        single = FlowDistribution(vectors().float(), (D,))
        assert single.sample().dtype == single.log_prob(torch.zeros(D)).dtype == torch.float32

    def test_a_batch_of_none_has_no_densities(self):
        plain = FlowDistribution(vectors(), (D,), validate_args=True)
        assert plain.log_prob(randn(0, D)).shape == (0,)
        assert plain.expand((3,)).log_prob(randn(0, 1, D)).shape == (0, 3)
        with pytest.raises(ValueError, match="x must have shape"):
            plain.log_prob(randn(0, D + 1))
        conditioned = FlowDistribution(vectors(context=True), (D,), context=randn(3, WIDTH), validate_args=True)
        assert conditioned.log_prob(randn(0, 1, D)).shape == (0, 3)

    def test_the_divergence_of_one_flow_is_that_of_its_bases(self):
        layer, base = vectors(), Independent(Normal(torch.ones(D, dtype=torch.float64), 2.0), 1)
        p, q = FlowDistribution(layer, (D,)), FlowDistribution(layer, (D,), base=base)
        assert kl_divergence(p, q) == kl_divergence(p.base_dist, base)
        with pytest.raises(NotImplementedError):
            kl_divergence(p, FlowDistribution(vectors(), (D,)))

    def test_arguments_that_cannot_be_used_are_refused(self):
        with pytest.raises(ValueError, match="event_shape must be given"):
            FlowDistribution(vectors())
        with pytest.raises(ValueError, match="base must have the event shape of the latents"):
            FlowDistribution(vectors(), (D,), base=normal(D + 1))
        with pytest.raises(ValueError, match="base must have the event shape of the latents"):
            FlowDistribution(vectors(), (D,), base=Normal(torch.zeros(D), 1.0))
        with pytest.raises(TypeError, match="layer is a Linear"):
            FlowDistribution(nn.Linear(2, 2), (2,))
        density = FlowDistribution(vectors(), (D,), validate_args=True)
        with pytest.raises(ValueError, match="to be within the support"):
            density.log_prob(torch.full((D,), math.nan, dtype=torch.float64))
