"""What i-ResNet and Residual Flow share in their tests."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import svdvals, vector_norm

from fastgen.models import create_model
from fastgen.models.flows import FlowModel
from fastgen.nn import InvertibleResidual, LipschitzConv2d
from fastgen.nn.residual.lipschitz import LipschitzLayer

EXACT = {"log_det": "exact", "tolerance": 1e-11}
"""What the laws of an exact density need; the estimates are tested beside them."""

VECTOR = EXACT | {"event_shape": (3,), "levels": 0, "blocks": 1, "hidden": 6, "hidden_layers": 2}
IMAGE = EXACT | {
    "event_shape": (1, 2, 2),
    "levels": 17,
    "scales": 2,
    "blocks": 1,
    "hidden": 4,
    "dense_blocks": 1,
    "dense_hidden": 5,
}


def two_moons(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(n, generator=generator)
    upper = (torch.rand(n, generator=generator) < 0.5).float()
    x = torch.stack((upper - 0.5 + (2 * upper - 1) * -angle.cos(), (2 * upper - 1) * (angle.sin() - 0.25)), 1)
    return x + 0.1 * torch.randn(n, 2, generator=generator)


def trained(name: str, steps: int, **config) -> FlowModel:
    """A small model of the two moons after some steps, in eval mode."""
    torch.manual_seed(0)
    model = create_model(name, preset="tiny", **{"blocks": 3, "hidden": 16, "hidden_layers": 2} | config)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(two_moons(128, step)).backward()
        optimizer.step()
    return model.eval()


def matrix_of(layer: LipschitzLayer) -> Tensor:
    """The bounded weight, unrolled for a convolution."""
    weight = layer.bounded_weight().detach()
    if not isinstance(layer, LipschitzConv2d):
        return weight
    inputs = weight.shape[1] * layer.size[0] * layer.size[1]
    units = torch.eye(inputs, dtype=weight.dtype).reshape(inputs, weight.shape[1], *layer.size)
    return layer.apply_weight(weight, units).flatten(1).t()


def check_the_bound(model: FlowModel) -> None:
    """Every layer by its singular values, every g by random pairs, far and near."""
    layers = [module for module in model.modules() if isinstance(module, LipschitzLayer)]
    norms = torch.stack([svdvals(matrix_of(layer))[0] for layer in layers])
    coefficient, tolerance = model.config.coefficient, layers[0].tolerance
    assert norms.max() <= coefficient * (1 + tolerance)
    assert norms.max() >= coefficient * (1 - tolerance), "no layer needed its bound"
    for block in (module for module in model.modules() if isinstance(module, InvertibleResidual)):
        first = block.net.layers[0]
        shape = (first.weight.shape[1], *getattr(first, "size", ()))
        bound = (coefficient * (1 + tolerance)) ** len(block.net.layers)
        for distance in (1.0, 1e-2):
            x = 2 * torch.randn(300, *shape)
            y = x + distance * torch.randn_like(x)
            apart = vector_norm((block.net(x) - block.net(y)).flatten(1), dim=1)
            assert (apart <= bound * vector_norm((x - y).flatten(1), dim=1)).all()
