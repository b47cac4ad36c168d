"""Data movement: the operator itself, applied to ids."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fastgen.generate.errors import UnsupportedOperator
from fastgen.generate.frontend.rules.contraction import lookup
from fastgen.generate.frontend.rules.ordering import gather_computed
from fastgen.generate.frontend.rules.registry import RULES, register_rule
from fastgen.generate.ir.graph import Constant, Graph, Value, derive

aten = torch.ops.aten


def moved(graph: Graph, operator, *args, **kwargs):
    """``operator`` on ids; constants become ids too."""
    beside = next((a for a in tree_leaves(args) if isinstance(a, Value)), None)

    def ids(argument):
        if isinstance(argument, Value):
            return argument.ids
        return graph.constant_ids(argument, beside) if isinstance(argument, Constant) else argument

    result = operator(*tree_map(ids, args), **tree_map(ids, kwargs))
    return tree_map(lambda r: Value(r) if isinstance(r, Tensor) else r, result)


MOVEMENT = (  # of elements, whatever they are

    aten.alias.default, aten.cat.default, aten.stack.default, aten.reshape.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.expand.default, aten.expand_as.default, aten.view_as.default,
    aten.slice.Tensor, aten.select.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default,
    aten.unbind.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
    aten.flatten.using_ints, aten.unflatten.int, aten.narrow.default, aten.flip.default, aten.roll.default,
    aten.repeat.default, aten.tile.default, aten.repeat_interleave.self_int, aten.movedim.int, aten.movedim.intlist,
    aten.swapaxes.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default,
    aten.as_strided.default, aten.unfold.default, aten.diagonal.default, aten.select_scatter.default,
    aten.slice_scatter.default, aten.tril.default, aten.triu.default, aten.rot90.default, aten.broadcast_to.default,
    aten.numpy_T.default,
)  # fmt: skip
for _operator in MOVEMENT:
    register_rule(_operator)(lambda graph, *args, _op=_operator, **kwargs: moved(graph, _op, *args, **kwargs))

VIEWS = (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)


@register_rule(*VIEWS)
def view(graph: Graph, x: Value, shape, *_) -> Value:
    return Value(x.ids.reshape(shape))


@register_rule(
    aten.clone.default, aten.contiguous.default, aten.detach.default, aten.detach_.default,
    aten.lift_fresh_copy.default, aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.to.device,
)  # fmt: skip
def same(graph: Graph, x: Value, *_, **__) -> Value:
    """Copies, and dropout, which does nothing in eval."""
    return x


@register_rule(aten.copy.default)
def copy(graph: Graph, x: Value | Constant, source: Value | Constant, *_, result: torch.dtype) -> Value:
    """Returns what an assignment to a slice writes; floats become integers towards zero."""
    if isinstance(source, Value) and not result.is_floating_point:
        source = (
            RULES[aten.ne.Scalar](graph, source, 0.0)
            if result == torch.bool
            else RULES[aten.trunc.default](graph, source)
        )
    shape = x.shape if isinstance(x, Value) else x.tensor.shape
    ids = source.ids if isinstance(source, Value) else graph.constant_ids(source)
    return Value(ids.expand(shape))


def _through_float(operator):
    """Runs an operator without an integer kernel in float64, where ids are exact."""

    def rule(graph: Graph, x: Value, *args, **kwargs) -> Value:
        return Value(operator(x.ids.double(), *args, **kwargs).long())

    return rule


for _operator in (
    aten.im2col.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
):
    register_rule(_operator)(_through_float(_operator))


@register_rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(graph: Graph, x: Value, padding, mode="constant", value=None) -> Value:
    if not isinstance(mode, str):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    if mode != "constant":
        return Value(aten.pad.default(x.ids.double(), padding, mode).long())
    fill = graph.constant_ids(Constant.literal(float(value or 0.0))).item()
    return Value(torch.nn.functional.pad(x.ids, padding, value=fill))


@register_rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(graph: Graph, x: Value | Constant, indices) -> Value:
    if isinstance(x, Constant):
        (where,) = indices
        return lookup(graph, x, where)
    if any(isinstance(i, Value) for i in indices):
        raise UnsupportedOperator(
            graph,
            "indexing at places that depend on the input",
            change="Use torch.gather over channels, or torch.where with a mask",
        )
    return Value(aten.index.Tensor(x.ids, [_fixed(graph, i) if isinstance(i, Constant) else i for i in indices]))


def _fixed(graph: Graph, where: Constant) -> Tensor:
    """Returns where to read, which new parameters must not change."""
    fixed = where.tensor.clone()  # the module's own tensor may change in place
    graph.assume(where.recipe, lambda t: torch.equal(t, fixed))
    return fixed


@register_rule(aten.index_select.default, aten.gather.default)
def index_select(graph: Graph, x: Value | Constant, dim: int, where: Value | Constant, *, operator, **_) -> Value:
    if isinstance(x, Constant) and where.ids.dim() == 1 and dim == 0:
        return lookup(graph, x, where)
    if isinstance(where, Value):
        if operator is not aten.gather.default or isinstance(x, Constant):
            raise UnsupportedOperator(
                graph,
                f"operator {operator} at places that depend on the input",
                change="Use torch.gather over the channels of a tensor, or an embedding of a constant table",
            )
        return gather_computed(graph, x, dim, where)
    at = _fixed(graph, where)
    if x.ids.dim() == at.dim() and at.dim() > 1:
        return Value(torch.gather(x.ids, dim, at))
    return Value(torch.index_select(x.ids, dim, at))


@register_rule(aten.index_put.default)
def index_put(
    graph: Graph, x: Value | Constant, indices, values: Value | Constant, accumulate: bool = False, *, node
) -> Value:
    """Puts values at fixed places; or one value wherever a mask that depends on the input is true."""
    if accumulate:
        raise UnsupportedOperator(
            graph, "index_put that accumulates", change="Write the sum as a matrix product, or pad and add"
        )
    if any(isinstance(i, Value) for i in indices):
        masks = [a for a in node.args[1] if a is not None and a.meta["val"].dtype == torch.bool]
        one = math.prod(values.shape if isinstance(values, Value) else values.tensor.shape) == 1
        if len(indices) != 1 or len(masks) != 1 or not one:
            raise UnsupportedOperator(
                graph,
                "an assignment of several values to places that depend on the input",
                change="Use torch.where(mask, values, x), with all places in it",
            )
        shape = x.shape if isinstance(x, Value) else x.tensor.shape
        mask = Value(indices[0].ids.reshape(*indices[0].shape, *[1] * (len(shape) - indices[0].ids.dim())))
        value = Value(values.ids.reshape(())) if isinstance(values, Value) else derive(lambda v: v.reshape(()), values)
        return graph.map("where", mask, value, x)
    at = tuple(slice(None) if i is None else _fixed(graph, i) for i in indices)
    ids, values = (o.ids if isinstance(o, Value) else graph.constant_ids(o) for o in (x, values))
    ids = ids.clone()
    ids[at] = values
    return Value(ids)


@register_rule(aten.scatter.value, aten.scatter.src)
def scatter(graph: Graph, x: Value | Constant, dim: int, where: Value | Constant, source) -> Value:
    """Moves elements to fixed places; or one to a place that the input says, as a one-hot encoding does."""
    shape = x.shape if isinstance(x, Value) else x.tensor.shape
    source = source if isinstance(source, (Value, Constant)) else Constant.literal(float(source))
    if isinstance(where, Constant):
        ids, source = (o.ids if isinstance(o, Value) else graph.constant_ids(o) for o in (x, source))
        return Value(ids.scatter(dim, _fixed(graph, where), source.expand(where.tensor.shape)))
    dim = dim % len(shape)
    if where.shape != torch.Size([1 if d == dim else n for d, n in enumerate(shape)]):
        raise UnsupportedOperator(
            graph,
            "scatter to several places that depend on the input",
            change="Scatter to one place, as a one-hot encoding does, and add the results",
        )
    places = torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return graph.map("where", graph.map("eq", where, Constant.literal(places)), source, x)


@register_rule(
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default, aten.fill.Scalar, aten.fill.Tensor, aten.empty_like.default,
)  # fmt: skip
def filled(graph: Graph, x: Value, *args, operator, result: torch.dtype, **_) -> Constant:
    """Constants that only take their shape from a value."""
    name = operator._schema.name.split("::")[1]
    size = args[0] if name.startswith("new_") else x.shape
    if name in ("full_like", "new_full", "fill"):
        fill = args[-1].tensor.item() if isinstance(args[-1], Constant) else args[-1]
    else:
        fill = 1.0 if "ones" in name else 0.0
    return Constant.literal(torch.full(tuple(size), fill, dtype=torch.float32).to(result))
