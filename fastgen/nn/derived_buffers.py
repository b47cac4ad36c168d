"""Buffers that follow from how a layer was made, or from its state, and so are not in its state dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class DerivedBuffers(nn.Module):
    """A layer with such buffers: they are made again whenever the layer is moved, and when its state is loaded.

    So a layer whose tensors have lost their values, on the meta device or by ``to_empty``, has them back. A subclass
    says in ``derived`` what they are, and calls ``derive`` when it is made.
    """

    def derived(self) -> dict[str, Tensor]:
        """The buffers by name, on the device of the layer's state."""
        raise NotImplementedError

    def derive(self) -> None:
        """Makes the buffers."""
        for name, value in self.derived().items():
            self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.derive()
        return self

    def _load_from_state_dict(self, *arguments, **others) -> None:
        super()._load_from_state_dict(*arguments, **others)
        self.derive()
