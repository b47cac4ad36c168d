"""Operators that call functions of the user's, ``flex_attention`` or ``scan``: run as what they consist of.

PyTorch hands such an operator to its compiler with the functions. While ``written_out`` is on, they are plain
operators: a scan is a Python loop over positions, FlexAttention a product of queries and keys, what the functions make
of the scores, a softmax and a product with the values. The rules know these as they know what is written by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


@contextmanager
def written_out() -> Iterator[None]:
    """Runs operators that call functions as the operators that they consist of, without ``torch.compile``.

    An associative scan combines positions in their order, as a step program does, where PyTorch combines them in pairs.
    """
    names = "_higher_order_ops.associative_scan", "_higher_order_ops.utils", "nn.attention.flex_attention"
    scans, compiled, flex = (importlib.import_module(f"torch.{name}") for name in names)  # they load the compiler
    with ExitStack() as replaced:

        def replace(owner: object, name: str, value: object) -> None:
            replaced.enter_context(patch.object(owner, name, value, create=True))

        replaced.enter_context(torch.compiler.set_stance("force_eager"))
        for module in (compiled, flex):  # what hides from torch.export what is compiled
            replace(module, "setup_compilation_env", lambda: nullcontext("eager"))
        for name, plain in _PLAIN.items():
            kind = type(getattr(torch.ops.higher_order, name))
            replace(kind, "__call__", lambda _, *args, plain=plain, **kwargs: plain(*args, **kwargs))
        replace(scans, "generic_associative_scan", _associative_scan)
        replace(flex, "_WARNINGS_SHOWN", {"flex_attention_performance"})
        yield


# ---- loops


def _scan(function: Callable, carried, inputs: Sequence[Tensor], additional_inputs: Sequence = ()):
    """``carry, y[t] = function(carry, x[t])``: returns the last carry, and all y."""
    results = []
    for position in zip(*[x.unbind(0) for x in inputs], strict=True):
        carried, result = function(*tree_leaves(carried), *position, *additional_inputs)
        results.append(result)
    return carried, _stacked(results)


def _map(function: Callable, inputs: Sequence[Tensor], further: Sequence):
    """``y[t] = function(x[t])``."""
    return _stacked([function(*x, *further) for x in zip(*[x.unbind(0) for x in inputs], strict=True)])


def _stacked(results: list):
    return tree_map(lambda *parts: torch.stack(parts), *results)


def _associative_scan(operator: Callable, leaves: list[Tensor], dim: int = 0, additional_inputs=()) -> list[Tensor]:
    """``y[t] = operator(y[t - 1], x[t])``, ``y[0] = x[0]``."""
    states = [[leaf.narrow(dim, 0, 1) for leaf in leaves]]
    for position in range(1, leaves[0].shape[dim]):
        read = [leaf.narrow(dim, position, 1) for leaf in leaves]
        states.append(tree_leaves(operator(*states[-1], *read, *additional_inputs)))
    return [torch.cat(parts, dim) for parts in zip(*states, strict=True)]


def _while_loop(condition: Callable, function: Callable, carried: Sequence, further: Sequence):
    while condition(*carried, *further):
        carried = function(*carried, *further)
    return carried


def _cond(condition, if_true: Callable, if_false: Callable, operands: Sequence):
    return (if_true if condition else if_false)(*operands)


# ---- attention


def _flex_attention(
    query: Tensor, key: Tensor, value: Tensor, score_mod: Callable, block_mask: tuple, scale: float, options: dict,
    of_scores: Sequence = (), of_mask: Sequence = (),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``softmax(score_mod(q k^T scale) where mask_mod, else -inf) v``, 0 where a query sees no key.

    The further results, which PyTorch does not give on the CPU, are empty.
    """
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (t.repeat_interleave(repeats, 1) for t in (key, value))
    scores = (query @ key.transpose(-2, -1)) * scale
    places = [torch.arange(n, dtype=torch.int32) for n in scores.shape]
    with TransformGetItemToIndex():  # a table is looked up at places of any number of dimensions
        scores = _everywhere(lambda s, *at: score_mod(s, *at, *of_scores), (0,))(scores, *places)
        seen = _everywhere(lambda *at: block_mask[-1](*at, *of_mask), ())(*places)
    scores = torch.where(seen, scores, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return weights @ value, scores.new_empty(0), scores.new_empty(0)


def _everywhere(function: Callable, first: tuple) -> Callable:
    """Returns a function of places, and of one score before them, for all samples, heads, queries and keys."""
    for place in (3, 2, 1, 0):
        function = torch.vmap(function, (*first, *(0 if other == place else None for other in range(4))))
    return function


_PLAIN = {
    "scan": _scan,
    "map_impl": _map,
    "while_loop": _while_loop,
    "cond": _cond,
    "flex_attention": _flex_attention,
}
