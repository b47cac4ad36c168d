"""``freeze_masks`` gives a module that computes the same without writing, or says that it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastgen.generate import freeze_masks
from tests.generate.test_untouched import assert_untouched
from tests.generate.writing_networks import WRITING, Masked, Network, mask_of


class WithActivation(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class MarksWhatIsRemoved(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.mask = 1 - self.mask

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= 1 - self.mask
        return nn.Conv2d.forward(self, x)


class Boolean(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.mask = self.mask == 0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data[self.mask] = 0
        return nn.Conv2d.forward(self, x)


class MaskOfAnotherKind(nn.Conv2d):
    """Has a ``mask`` of its weight's shape for another purpose."""

    def __init__(self) -> None:
        super().__init__(1, 6, 3, padding=1)
        self.register_buffer("mask", mask_of(self.weight.data))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.mask.sum()


LAYERS = {kind.__name__: kind for kind in (WithActivation, MarksWhatIsRemoved, Boolean)} | {
    name: WRITING[name] for name in ("Masked", "Broadcast", "Attribute", "Removed", "WithoutGradient", "Helper")
}
PURE = ("Masked", "Broadcast", "Attribute", "Removed", "Helper", "MarksWhatIsRemoved", "Boolean")
WHOLE = ("OwnModule", "WeightNorm", "NewParameter", "AfterUse", "MaxNorm")
X = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        module(X)
        return module(X)


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_frozen_module_computes_what_the_module_computes(name, called):
    """Fault generation_07: whatever else a layer does, and whichever way its mask is written."""
    torch.manual_seed(0)
    module = Network(LAYERS[name]())
    if called:
        module(X)
    frozen = []
    assert_untouched(module, lambda: frozen.append(freeze_masks(module)))
    with torch.no_grad():
        assert torch.equal(frozen[0](X), outputs(module))
    assert (type(frozen[0].first) is nn.Conv2d) == (name in PURE)
    assert frozen[0].training


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", [*LAYERS, *WHOLE])
def test_with_an_example_the_whole_module_is_called(name):
    torch.manual_seed(0)
    module = Network((LAYERS | WRITING)[name]())
    module(torch.zeros(1, 1, 4, 4))
    frozen = []
    assert_untouched(module, lambda: frozen.append(freeze_masks(module, X)))
    with torch.no_grad():
        assert torch.equal(frozen[0](X), outputs(module))


@pytest.mark.parametrize("kind", [Masked, WithActivation])
def test_a_frozen_layer_can_be_frozen_again_only_if_it_still_writes(kind):
    frozen = freeze_masks(Network(kind()))
    if kind is Masked:
        with pytest.raises(ValueError, match="must have a layer whose forward writes to its parameters"):
            freeze_masks(frozen)
    else:
        freeze_masks(frozen)


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 6, 3, padding=1), MaskOfAnotherKind(), WRITING["TrainingOnly"]()])
def test_a_module_that_writes_no_masks_is_refused(layer):
    with pytest.raises(ValueError, match=r"none is found: pass example"):
        freeze_masks(Network(layer))
    with pytest.raises(ValueError, match=r"none is found\. fastgen\.Sampler takes"):
        freeze_masks(Network(layer), X)


def test_a_write_that_never_settles_is_refused():
    class Halves(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data *= 0.5
            return super().forward(x)

    with pytest.raises(ValueError, match="forward changes 'weight' at every call"):
        freeze_masks(nn.Sequential(Halves(1, 2, 3)))


def test_a_copy_that_computes_something_else_is_refused():
    """A hook holds the layer of the original, so that the copy's is never masked."""
    module = Network(Masked())
    output = module.output

    def mask(layer: nn.Module, inputs: tuple) -> None:
        output.weight.data[0] = 0

    output.register_forward_pre_hook(mask)
    with pytest.raises(ValueError, match="cannot be frozen"):
        freeze_masks(module, X)
