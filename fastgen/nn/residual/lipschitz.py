"""Linear layers and convolutions whose Lipschitz constant stays below a bound."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from fastgen.nn.recomputation import is_recomputation
from fastgen.nn.residual.induced_norm import CLOSED, Map, closed_form, leading_vector, power_steps
from fastgen.ops.arguments import check_integers
from fastgen.ops.precision import in_float32, without_autocast

_LIMIT = 2000
"""Products with W^T W that a search for the norm may take."""


class LipschitzLayer(nn.Module):
    """The base of ``LipschitzLinear`` and ``LipschitzConv2d``: the weight, its norm, and the bound.

    Attributes:
        direction: buffer, the input that the weight stretches most, as far as it is known; None where the norm has a
            closed form.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    direction: Tensor | None

    def __init__(
        self, coefficient: float, domain: float, codomain: float, iterations: int | None, tolerance: float
    ) -> None:
        if not 0 < coefficient < 1:
            raise ValueError(f"coefficient must be greater than 0 and less than 1, got {coefficient}")
        if (domain, codomain) not in (*CLOSED, (2, 2)):
            raise ValueError(
                f"domain and codomain must be one of {', '.join(map(str, ((2, 2), *CLOSED)))} (the norms of others are "
                f"hard to compute), got {(domain, codomain)}"
            )
        if iterations is not None:
            check_integers(iterations=iterations)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be greater than 0, got {tolerance}")
        super().__init__()
        self.coefficient, self.domain, self.codomain = coefficient, domain, codomain
        self.iterations, self.tolerance = iterations, tolerance
        self._moved_at: int | None = None  # version of the weight that the direction last followed

    def begin(self, shape: tuple[int, ...]) -> None:
        """Draws the first direction, of an input's shape."""
        if (self.domain, self.codomain) in CLOSED:
            self.register_buffer("direction", None)
            return
        direction = torch.randn(shape)
        self.register_buffer("direction", direction / vector_norm(direction))

    def apply_weight(self, weight: Tensor, v: Tensor) -> Tensor:
        """W v of one input, without the bias."""
        raise NotImplementedError

    def apply_transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        """W^T u of one output."""
        raise NotImplementedError

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        """W x + b of a batch, with the layer's own bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x, self.bounded_weight())

    def norm(self) -> Tensor:
        """The norm of ``weight``, exact in closed form, else what ``direction`` shows of it: a number with a gradient.

        After ``refresh`` it is right to half the layer's ``tolerance``. Of half precision it is computed in float32.
        """
        with without_autocast(self.weight):
            if self.direction is None:
                return closed_form(*in_float32(self.weight), self.domain, self.codomain)
            weight, direction = in_float32(self.weight, self.direction)
            unit = direction / vector_norm(direction)  # a copy: the direction may move on before backward
            return vector_norm(self.apply_weight(weight, unit))

    def scale(self) -> Tensor:
        """``1 / max(1, norm / coefficient)``, a number; in training mode the direction moves on first.

        It moves where a gradient is recorded, so that within ``torch.no_grad``, as in a fixed-point iteration, the
        layer stays what it is. Where checkpointing computes a forward again it stays too, if it moved in the first one.
        """
        if (
            self.training
            and torch.is_grad_enabled()
            and not (is_recomputation() and self._moved_at == self.weight._version)
            and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
        ):
            self._advance()
        return (self.norm() / self.coefficient).clamp_min(1).reciprocal()

    def bounded_weight(self) -> Tensor:
        """The weight, scaled down where its norm is above the coefficient."""
        return self.weight * self.scale()

    @torch.no_grad()
    def refresh(self) -> None:
        """Searches the direction until the norm is known to ``tolerance``; ``eval()`` does so too.

        Warns (RuntimeWarning) where that takes too long.
        """
        if self.direction is None:
            return
        with without_autocast(self.weight):
            found, left = leading_vector(self._normal(), *in_float32(self.direction), self.tolerance, _LIMIT)
        if left > self.tolerance:
            warnings.warn(
                f"the norm of {self} is known to {left:.1e} after {_LIMIT} products; tolerance={self.tolerance}",
                RuntimeWarning,
                stacklevel=2,
            )
        self.direction.copy_(found)

    def train(self, mode: bool = True) -> LipschitzLayer:
        super().train(mode)
        if not mode and not self.weight.is_meta:
            self.refresh()
        return self

    @torch.no_grad()
    def _advance(self) -> None:
        if not torch.compiler.is_compiling():
            self._moved_at = self.weight._version
        if self.iterations is None:
            self.refresh()
        elif self.direction is not None:
            with without_autocast(self.weight):
                self.direction.copy_(power_steps(self._normal(), *in_float32(self.direction), self.iterations))

    def _normal(self) -> Map:
        """W^T W."""
        (weight,) = in_float32(self.weight.detach())
        return lambda v: self.apply_transpose(weight, self.apply_weight(weight, v))

    def _described(self) -> str:
        norms = "" if self.domain == self.codomain == 2 else f", domain={self.domain}, codomain={self.codomain}"
        return f"coefficient={self.coefficient}{norms}"


class LipschitzLinear(LipschitzLayer):
    """``y = x W'^T + b`` with ``W' = W / max(1, norm / coefficient)``: no two outputs are further apart than
    ``coefficient`` times their inputs.

    Distances of inputs are measured by the norm of exponent ``domain``, of outputs by ``codomain``; ``norm`` is the
    norm of W that these induce. From 2 to 2 it is the largest singular value, which follows W by the power method: in
    training mode every call that records a gradient takes ``iterations`` steps, from where the last one stopped, and
    ``eval()`` searches until it is right to half of ``tolerance``. From 1, and to infinity, it is a maximum over
    columns or rows, exact at every call. The other pairs (2 to 1, infinity to 1 and to 2) are refused: their norms are
    hard to compute, and the power method, which can stop far below them, gives no bound.

    x is float [..., inputs].

    Args:
        inputs, outputs: widths.
        bias: add a number to each output.
        coefficient: the bound, greater than 0 and less than 1.
        domain, codomain: 1, 2 or ``math.inf``.
        iterations: None searches until ``tolerance`` at every call.
        tolerance: relative residual of the singular vector; see above.

    Raises:
        ValueError: a number out of range, a pair of norms that is hard to compute.

    References: Miyato, Kataoka, Koyama, Yoshida, "Spectral normalization for generative adversarial networks", ICLR
    2018; Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen, "Invertible residual networks", ICML 2019; Chen et al.,
    "Residual flows for invertible generative modeling", NeurIPS 2019, appendix D.

    Example:
        >>> layer = LipschitzLinear(3, 5, coefficient=0.9).eval()
        >>> bool(torch.linalg.matrix_norm(layer.bounded_weight(), 2) < 0.9001)
        True
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        coefficient: float = 0.97,
        domain: float = 2,
        codomain: float = 2,
        iterations: int | None = 5,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__(coefficient, domain, codomain, iterations, tolerance)
        plain = nn.Linear(inputs, outputs, bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.begin((inputs,))

    def apply_weight(self, weight: Tensor, v: Tensor) -> Tensor:
        return torch.mv(weight, v)

    def apply_transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        return torch.mv(weight.t(), u)

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight.shape
        return f"{inputs}, {outputs}, {self._described()}"


class LipschitzConv2d(LipschitzLayer):
    """``LipschitzLinear`` as a convolution of stride 1 and zero padding that keeps the size of the image.

    The norm is that of the whole map from image to image, which depends on the image's size. The spectral norm of a
    kernel of 1 is that of its matrix.

    x is float [N, inputs, H, W].

    Args:
        inputs, outputs: channels.
        kernel_size: odd.
        size: (H, W) of the images.
        bias, coefficient, domain, codomain, iterations, tolerance: as of ``LipschitzLinear``.

    Raises:
        ValueError: a number out of range; an x of another size.

    Reference: Gouk, Frank, Pfahringer, Cree, "Regularisation of neural networks by enforcing Lipschitz continuity",
    Machine Learning 2021; and those of ``LipschitzLinear``.

    Example:
        >>> layer = LipschitzConv2d(3, 5, 3, size=(8, 8), coefficient=0.9).eval()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> bool((layer(x)[0] - layer(x)[1]).norm() < 0.9001 * (x[0] - x[1]).norm())
        True
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 3,
        *,
        size: tuple[int, int],
        bias: bool = True,
        coefficient: float = 0.97,
        domain: float = 2,
        codomain: float = 2,
        iterations: int | None = 5,
        tolerance: float = 1e-3,
    ) -> None:
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be a height and a width, each at least 1, got {tuple(size)}")
        super().__init__(coefficient, domain, codomain, iterations, tolerance)
        plain = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.size, self.padding = tuple(size), kernel_size // 2
        one_pixel = kernel_size == 1 and domain == codomain == 2
        self.begin((1, inputs, 1, 1) if one_pixel else (1, inputs, *self.size))

    def apply_weight(self, weight: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(v, weight, padding=self.padding)

    def apply_transpose(self, weight: Tensor, u: Tensor) -> Tensor:
        return F.conv_transpose2d(u, weight, padding=self.padding)

    def affine(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.shape[2:] != self.size:
            inputs, (height, width) = self.weight.shape[1], self.size
            raise ValueError(f"x must have shape [N, {inputs}, {height}, {width}], got {tuple(x.shape)}")
        return F.conv2d(x, weight, self.bias, padding=self.padding)

    def extra_repr(self) -> str:
        outputs, inputs, kernel, _ = self.weight.shape
        return f"{inputs}, {outputs}, kernel_size={kernel}, size={self.size}, {self._described()}"
