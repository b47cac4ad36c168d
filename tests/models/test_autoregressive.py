"""The laws of every autoregressive model: causality, receptive field, normalisation, and what a condition does."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastgen.models import create_model

SMALL = {
    "pixelcnn": {"levels": 4, "layers": 2, "channels": 24, "first_kernel_size": 3, "head_channels": 30},
    "gated_pixelcnn": {"levels": 4, "layers": 5, "channels": 24, "kernel_size": 3, "head_channels": 30},
    "pixelcnn_pp": {"levels": 9, "filters": 8, "blocks": 1, "mixtures": 2},
    "pixelsnail": {
        "levels": 5,
        "filters": 8,
        "blocks": 2,
        "convolutions": 1,
        "key_channels": 4,
        "value_channels": 6,
        "mixtures": 2,
    },
    "wavenet": {
        "levels": 5,
        "cycles": 2,
        "layers_per_cycle": 3,
        "residual_channels": 8,
        "gate_channels": 12,
        "skip_channels": 10,
        "head_channels": 9,
    },
}
MIXTURE = {"output": "mixture", "mixtures": 2}
FRAMES = {"classes": 3, "vector": 2, "frames": 3, "upsampling": (2, 3)}
CASES = {
    "pixelcnn": ("pixelcnn", {"event_shape": (1, 6, 7)}),
    "pixelcnn colour": ("pixelcnn", {"event_shape": (3, 4, 5)}),
    "gated": ("gated_pixelcnn", {"event_shape": (1, 5, 5)}),
    "gated colour": ("gated_pixelcnn", {"event_shape": (3, 4, 4), "classes": 3, "vector": 2, "map": 2}),
    "gated kernel 5": ("gated_pixelcnn", {"event_shape": (1, 6, 5), "kernel_size": 5, "layers": 3, "map": 1}),
    "pixelcnn++": ("pixelcnn_pp", {"event_shape": (1, 8, 8), "blocks": 2}),
    "pixelcnn++ colour": ("pixelcnn_pp", {"event_shape": (3, 8, 4), "classes": 3, "vector": 2}),
    "pixelcnn++ plain": ("pixelcnn_pp", {"event_shape": (1, 8, 4), "weight_norm": False, "classes": 3}),
    "pixelsnail": ("pixelsnail", {"event_shape": (1, 5, 6)}),
    "pixelsnail colour": ("pixelsnail", {"event_shape": (3, 4, 5), "classes": 3, "heads": 2}),
    "wavenet": ("wavenet", {"event_shape": (23,)}),
    "wavenet mixture": ("wavenet", {"event_shape": (23,), "classes": 3, **MIXTURE}),
    "wavenet frames": ("wavenet", {"event_shape": (23,), **FRAMES}),
    "wavenet repeat": ("wavenet", {"event_shape": (23,), **FRAMES, "learned_upsampling": False}),
}


def make(case: str, **changes):
    name, config = CASES[case]
    torch.manual_seed(0)
    return create_model(name, **(SMALL[name] | config | changes)).double().eval()


def random_levels(model, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.levels, (n, *model.config.event_shape), generator=generator)


def random_context(model, n: int) -> dict[str, Tensor]:
    """Random numbers in the shapes of ``example_context``, one row repeated n times; of the model's dtype."""
    generator = torch.Generator().manual_seed(2)
    dtype = next(model.parameters()).dtype
    sizes, context = model.context_sizes(), {}
    for name, condition in model.conditions.items():
        if condition.classes:
            row = torch.randint(0, condition.classes, (1, *sizes[name]), generator=generator)
        else:
            row = torch.randn(1, *sizes[name], generator=generator, dtype=dtype)
        context[name] = row.expand(n, *sizes[name])
    return context


def forward(model, levels: Tensor, context: dict[str, Tensor]) -> Tensor:
    x = model.head.to_input(levels)
    return model(x.double() if x.is_floating_point() else x, context)


def step_of_elements(model) -> Tensor:
    """The step at which each flat element is drawn."""
    shape = model.config.event_shape
    channels = shape[0] if len(shape) == 3 else 1
    positions = torch.Size(shape).numel() // channels
    position, channel = torch.arange(positions).repeat(channels), torch.arange(channels).repeat_interleave(positions)
    return position * channels + channel if model.order == "raster-subpixel" else position


def dependence(model) -> Tensor:
    """bool [steps, steps]: whether the parameters of step o change when an element of step i does."""
    with torch.no_grad():
        base = random_levels(model, 1)
        changed = base.flatten().repeat(base.numel(), 1)
        elements = torch.arange(base.numel())
        changed[elements, elements] = (changed[elements, elements] + 1 + elements % 2) % model.config.levels
        levels = torch.cat([base, changed.view(-1, *base.shape[1:])])
        context = random_context(model, len(levels))
        parameters = model.head.arrange(forward(model, levels, context), model.config.event_shape)
    apart = (parameters[1:] - parameters[:1]).abs()  # rows of PyTorch's products may round differently
    differs = (apart > 1e-12 * parameters.abs().max()).any(-1)  # [element, position, group]
    outputs = differs.flatten(1) if model.order == "raster-subpixel" else differs.any(2)
    steps = step_of_elements(model)
    result = torch.zeros(outputs.shape[1], outputs.shape[1], dtype=torch.bool)
    for element, step in enumerate(steps.tolist()):
        result[:, step] |= outputs[element]
    return result


def before(n: int) -> Tensor:
    return torch.ones(n, n).tril(-1).bool()


@pytest.mark.parametrize("case", CASES)
def test_outputs_at_or_before_a_changed_element_are_the_same(case):
    seen = dependence(make(case))
    assert not (seen & ~before(len(seen))).any()


@pytest.mark.parametrize(
    "case",
    [
        "gated",
        "gated colour",
        "gated kernel 5",
        "pixelcnn++",
        "pixelcnn++ colour",
        "pixelcnn++ plain",
        "pixelsnail",
        "pixelsnail colour",
    ],
)
def test_no_blind_spot(case):
    seen = dependence(make(case))
    assert torch.equal(seen, before(len(seen)))


@pytest.mark.parametrize("case", ["wavenet", "wavenet mixture", "wavenet frames"])
def test_the_receptive_field_of_a_wavenet_is_as_stated(case):
    model = make(case)
    seen = dependence(model)
    age = torch.arange(len(seen))[:, None] - torch.arange(len(seen))
    assert model.config.receptive_field < len(seen) - 1
    assert torch.equal(seen, (age >= 1) & (age <= model.config.receptive_field))


@pytest.mark.parametrize("case", ["pixelcnn", "pixelcnn colour"])
def test_a_pixelcnn_sees_what_its_masks_let_through(case):
    """Reachable offsets, composed layer by layer from the masks alone: the paper's field, blind spot included."""
    model = make(case)
    config = model.config
    (colours, height, width), reach = config.event_shape, None

    def taps(kernel: int, mask: str, to: int) -> list[tuple[int, int, int]]:
        half = kernel // 2
        offsets = [(dy, dx) for dy in range(-half, 1) for dx in range(-half, half + 1) if (dy, dx) < (0, 0)]
        own = [(0, 0, colour) for colour in range(to + (mask == "B"))]
        return own + [(dy, dx, colour) for dy, dx in offsets for colour in range(colours)]

    seen = torch.zeros(height * width * colours, height * width * colours, dtype=torch.bool)
    for y, x, colour in itertools.product(range(height), range(width), range(colours)):
        reach = {(y, x, colour)}
        for kernel, mask in [(config.kernel_size, "B")] * config.layers + [(config.first_kernel_size, "A")]:
            reach = {
                (v + dy, u + dx, other)
                for v, u, c in reach
                for dy, dx, other in taps(kernel, mask, c)
                if v + dy >= 0 and 0 <= u + dx < width
            }
        for v, u, c in reach:
            seen[(y * width + x) * colours + colour, (v * width + u) * colours + c] = True
    assert torch.equal(dependence(model), seen)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("pixelcnn", {"event_shape": (1, 2, 2), "levels": 2}),
        ("pixelcnn colour", {"event_shape": (3, 1, 2), "levels": 2}),
        ("gated", {"event_shape": (1, 2, 2), "levels": 2}),
        ("gated colour", {"event_shape": (3, 1, 2), "levels": 2}),
        ("pixelsnail", {"event_shape": (1, 2, 2), "levels": 3}),
        ("pixelsnail colour", {"event_shape": (3, 1, 2), "levels": 2}),
        ("wavenet", {"event_shape": (4,), "levels": 3}),
        ("wavenet mixture", {"event_shape": (4,), "levels": 2}),
        ("wavenet frames", {"event_shape": (4,), "levels": 3}),
    ],
)
def test_probabilities_of_all_events_sum_to_one(case, changes):
    model = make(case, **changes)
    size = torch.Size(model.config.event_shape).numel()
    events = torch.cartesian_prod(*[torch.arange(model.config.levels)] * size).view(-1, *model.config.event_shape)
    with torch.no_grad():
        output = forward(model, events, random_context(model, len(events)))
        total = model.head.log_prob(output, events).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_probabilities_of_all_endings_of_a_pixelcnn_pp_sum_to_one():
    """Its smallest image has 16 pixels: the second half is enumerated, given some first halves."""
    model = make("pixelcnn++", event_shape=(1, 4, 4), levels=2)
    starts = torch.randint(0, 2, (5, 1, 8), generator=torch.Generator().manual_seed(3))
    endings = torch.cartesian_prod(*[torch.arange(2)] * 8)
    events = torch.cat([starts.expand(5, 256, 8), endings.expand(5, 256, 8)], 2).view(-1, 1, 4, 4)
    with torch.no_grad():
        parameters = model.head.arrange(forward(model, events, {}), (1, 4, 4))
        of_pixels = model.head.group_log_prob(parameters, events.view(-1, 16, 1, 1)).view(5, 256, 16)
        totals = of_pixels[:, :, 8:].sum(2).exp().sum(1)
    torch.testing.assert_close(totals, torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_used_and_training_reduces_the_loss(case):
    model = make(case).float().train()
    levels, context = random_levels(model, 6), random_context(model, 6)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.loss((levels, context))
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "case", ["gated colour", "pixelcnn++ colour", "pixelsnail colour", "wavenet frames", "wavenet repeat"]
)
def test_every_condition_changes_the_distribution(case):
    model = make(case)
    levels, context = random_levels(model, 1), random_context(model, 1)
    base = forward(model, levels, context)
    for name, value in context.items():
        changed = (value + 1) % 3 if value.dtype == torch.int64 else value + 1
        assert (forward(model, levels, context | {name: changed}) != base).any()


def test_a_location_condition_acts_on_its_row_and_after():
    model = make("gated kernel 5")
    levels, context = random_levels(model, 1), random_context(model, 1)
    changed = {"map": context["map"].clone()}
    changed["map"][0, 0, 2, 3] += 1
    differs = (forward(model, levels, changed) != forward(model, levels, context)).any(1)[0].flatten()
    assert differs[2 * 5 + 3]
    assert not differs[: 2 * 5].any()


def test_a_repeated_frame_conditions_its_own_samples_and_later_ones():
    model = make("wavenet repeat")
    levels, context = random_levels(model, 1), random_context(model, 1)
    changed = context | {"frames": context["frames"].clone()}
    changed["frames"][0, 0, 2] += 1
    differs = (forward(model, levels, changed) != forward(model, levels, context)).any(1)[0]
    assert differs[12:].all()
    assert not differs[:12].any()


@pytest.mark.parametrize("case", ["pixelcnn", "gated", "pixelcnn++", "pixelsnail", "wavenet"])
def test_the_first_element_depends_on_nothing_but_the_weights(case):
    """The start is nothing: the same in training and sampling, whatever the event."""
    model = make(case)
    parameters = model.head.arrange(forward(model, random_levels(model, 5), {}), model.config.event_shape)
    assert torch.equal(parameters[:, 0], parameters[:1, 0].expand_as(parameters[:, 0]))


def test_any_length_gives_the_same_beginning():
    model = make("wavenet")
    levels = random_levels(model, 2)
    whole = forward(model, levels, {})
    for length in (1, 2, 9):
        torch.testing.assert_close(forward(model, levels[:, :length], {}), whole[:, :, :length])


def test_dropout_is_inert_in_eval_mode_only():
    model = make("pixelcnn++", dropout=0.5)
    levels = random_levels(model, 2)
    assert torch.equal(forward(model, levels, {}), forward(model, levels, {}))
    model.train()
    assert not torch.equal(forward(model, levels, {}), forward(model, levels, {}))


def test_initialisation_by_data_normalises_the_first_layers():
    model = make("pixelcnn++")
    levels = random_levels(model, 16)
    model.float().initialize(levels)
    x = torch.nn.functional.pad(model.head.to_input(levels), (0, 0, 0, 0, 0, 1), value=1.0)
    y = model.first_ul_pixel(x)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(y.shape[1]))
    assert model.loss(levels).isfinite()


@pytest.mark.parametrize(
    ("name", "config", "millions"),
    [
        ("pixelcnn_pp", {"filters": 40, "blocks": 2}, "1.52"),
        ("pixelcnn_pp", {"filters": 80, "blocks": 5}, "13.44"),
        ("gated_pixelcnn", {"layers": 5, "channels": 64, "kernel_size": 3, "head_channels": 64}, "0.42"),
        ("wavenet", {}, "1.28"),
    ],
)
def test_parameter_counts_of_the_published_networks(name, config, millions):
    model = create_model(name, **config)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == millions
