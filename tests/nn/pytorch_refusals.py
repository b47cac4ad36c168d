"""The cells of ``docs/pytorch.md`` that do not work, and why; ``test_pytorch_matrix.py`` tests that they do not."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """What is raised, some words of it, and the reason that the page gives."""

    error: str
    words: str
    reason: str


_ADAPTIVE = Refusal(
    "NotImplementedError",
    "solver must have fixed steps",
    "an adaptive solver chooses its steps by the numbers, which are not there while a function is transformed or "
    "exported: use a solver of fixed steps",
)
_BREAK = Refusal(
    "Unsupported",
    "disable",
    "an adaptive solver chooses its steps by the numbers: the solve stays outside of the graph, so that "
    "`fullgraph=True` is refused; with `fullgraph=False` what is around it is compiled",
)

REFUSALS: dict[tuple[str, str], Refusal] = {
    **{("ContinuousFlow with an adaptive solver", column): _BREAK for column in ("compile", "compile, dynamic")},
    **{
        ("ContinuousFlow with an adaptive solver", column): _ADAPTIVE
        for column in ("export", "grad", "vmap", "vmap(grad)", "jvp")
    },
    ("ContinuousFlow with an adaptive solver", "export, strict"): _ADAPTIVE._replace(
        error="Unsupported", words="Observed exception"
    ),
    ("ConvResNet", "pickle"): Refusal(
        "RuntimeError",
        "parametrized modules",
        "PyTorch pickles no module with a parametrization, which weight normalisation is: save the state dict",
    ),
    ("HutchinsonTrace of any network", "export"): Refusal(
        "RuntimeError",
        "fake tensor",
        "PyTorch's tracer cannot follow the backward of a network that fastgen does not know: use an `MLPField` or a "
        "`ConvNetField`",
    ),
    ("HutchinsonTrace of any network", "export, strict"): Refusal(
        "RuntimeError",
        "data pointer of Tensor that doesn't have storage",
        "nor can TorchDynamo: use an `MLPField` or a `ConvNetField`",
    ),
    **{
        (layer, "export, strict"): Refusal(
            "NotImplementedError",
            "storage of TensorWrapper",
            "it is exported, but `torch.export.save` cannot write what `torch.func.vjp` leaves in a program that "
            "TorchDynamo made: use `strict=False`",
        )
        for layer in ("InvertibleResidual", "InvertibleResidual, exact")
    },
    **{
        ("VectorQuantizer", column): Refusal(
            "AssertionError",
            "not close",
            "the first forward has moved the codebook when it is computed again, so that in training mode the loss is "
            "that of the next codebook: call it outside of what is checkpointed",
        )
        for column in ("checkpoint", "checkpoint, reentrant")
    },
}
