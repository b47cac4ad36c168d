"""Context networks as data: a list of calls of known ATen operators, and tensors.

What is read is checked before anything runs: the operators are those listed here, none of which writes to its
arguments, reads a file or makes memory of its own choosing visible; a dry run without memory shows that the calls go
together and that no result is larger than ``MOST``.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fastgen.generate.context_network import Call, ContextNetwork, Extent, Reference, Result
from fastgen.generate.files.tensor_file import one_line

PREFIX = "context_network."
"""Of the tensors' names in a sampler's file."""

_NAMES = """
    alias cat stack reshape view _unsafe_view permute transpose t numpy_T expand expand_as view_as broadcast_to slice
    select split split_with_sizes chunk unbind squeeze unsqueeze flatten unflatten narrow flip roll repeat tile
    repeat_interleave movedim swapaxes pixel_shuffle pixel_unshuffle channel_shuffle unfold diagonal tril triu clone
    contiguous detach lift_fresh_copy dropout feature_dropout alpha_dropout to _to_copy type_as pad constant_pad_nd
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d zeros_like ones_like full_like new_zeros
    new_ones new_full arange zeros ones full
    add sub rsub mul div true_divide floor_divide remainder fmod pow neg abs square exp exp2 expm1 log log1p log2 log10
    sqrt rsqrt reciprocal sin cos tan asin acos atan atan2 sinh cosh tanh sigmoid erf erfc relu relu6 elu selu celu
    leaky_relu prelu gelu silu mish softplus log_sigmoid hardtanh hardsigmoid hardswish threshold softshrink hardshrink
    glu clamp clamp_min clamp_max clip maximum minimum floor ceil round trunc frac sign where masked_fill eq ne lt le gt
    ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not isnan isinf
    nan_to_num lerp addcmul addcdiv sinc
    sum mean amax amin max min argmax argmin prod any all var std var_mean std_mean norm linalg_vector_norm logsumexp
    softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp cosine_similarity layer_norm native_layer_norm
    group_norm native_group_norm rms_norm batch_norm _native_batch_norm_legit_no_training instance_norm sort argsort
    topk gather index index_select index_put take_along_dim scatter select_scatter slice_scatter one_hot
    embedding bucketize
    linear matmul mm bmm mv dot addmm baddbmm einsum bilinear tensordot conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d convolution scaled_dot_product_attention gru lstm rnn_tanh rnn_relu gru_cell lstm_cell
    avg_pool1d avg_pool2d max_pool1d max_pool2d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d
    adaptive_max_pool1d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d
    """
_OPERATORS = frozenset(_NAMES.split())
_CONSTANTS = {
    "dtype": {str(d).removeprefix("torch."): d for d in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool,
    )},
    "layout": {"strided": torch.strided},
    "memory_format": {"contiguous_format": torch.contiguous_format, "preserve_format": torch.preserve_format},
    "device": {"cpu": torch.device("cpu")},
    "float": {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")},
}  # fmt: skip


def write_network(network: ContextNetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the network as plain JSON and tensors.

    Raises:
        NotImplementedError: an operator or an argument is none that ``read_network`` takes.
    """
    numbers = {name: number for number, name in enumerate(network.tensors)}
    config = {
        "inputs": network.inputs,
        "tensors": list(network.tensors),
        "calls": [[c.name, _name(c.operator), _written(c.arguments), _written(c.options)] for c in network.calls],
        "results": [[r.name, r.batch, r.channel] for r in network.results],
        "free": network.free and list(network.free),
    }
    return config, {f"{PREFIX}{numbers[name]}": tensor for name, tensor in network.tensors.items()}


def read_network(
    config: Any, tensors: dict[str, Tensor], leaves: list[Tensor], free: Sequence[tuple[int, int]] = ()
) -> ContextNetwork:
    """Returns the network of a ``write_network``; ``leaves`` have the shapes and dtypes of its contexts.

    ``free`` are the dimensions of the leaves that may have other sizes.

    Raises:
        ValueError: a field is missing or wrong, an operator is not allowed, or the calls do not go together.
    """
    fields = ("inputs", "tensors", "calls", "results")
    given = isinstance(config, dict) and config.keys() == {*fields, "free"}
    if not given or not all(type(config[f]) is list for f in fields):
        raise ValueError(f"context_network must have free and the lists {', '.join(fields)}")
    if config["free"] is not None and tuple(config["free"]) not in free:
        raise ValueError(f"context_network must follow a free dimension of the context, got {config['free']!s:.100}")
    names = [*config["inputs"], *config["tensors"]]
    if len(config["inputs"]) != len(leaves) or len(config["tensors"]) != len(tensors) or not leaves:
        raise ValueError("context_network must have the contexts and the tensors of the file")
    if not all(type(name) is str for name in names) or len(names) != len({*names}):
        raise ValueError("context_network must have different names of its contexts and tensors")
    try:
        held = {name: tensors[f"{PREFIX}{number}"] for number, name in enumerate(config["tensors"])}
        calls = [_call(*call) for call in config["calls"]]
        results = [Result(*result) for result in config["results"]]
        if not all(
            type(r.name) is str and type(r.batch) is int and type(r.channel) in (int, type(None)) for r in results
        ):
            raise ValueError("a result is a name, the dimension of the samples and that of the channels")
        follows = None if config["free"] is None else tuple(config["free"])
        network = ContextNetwork(config["inputs"], held, calls, results, [], follows)
        network.sizes = network.dry_run(leaves)
    except RecursionError as error:
        raise ValueError("context_network is nested too deeply") from error
    except Exception as error:  # of the operators, which raise what they like
        raise ValueError(f"context_network cannot run: {one_line(error)}") from error
    return network


# ---- calls


def _name(function) -> str:
    if function is operator.getitem:
        return "getitem"
    name = function._schema.name.removeprefix("aten::") if isinstance(function, OpOverload) else ""
    if not _allowed(function, name):
        raise NotImplementedError(
            f"a sampler's file takes context networks of known ATen operators, not of {function}; make the context's "
            "code a module of its own, and give the sampler what it returns"
        )
    return f"{name}.{function._overloadname}"


def _allowed(function, name: str) -> bool:
    return name in _OPERATORS and not function._schema.is_mutable


def _call(name: str, function: str, arguments: list, options: dict) -> Call:
    packet, _, overload = function.partition(".")
    if type(name) is not str:
        raise ValueError("a call has a name")
    if function == "getitem":
        found = operator.getitem
    else:
        found = getattr(getattr(torch.ops.aten, packet), overload, None) if packet in _OPERATORS else None
        if not isinstance(found, OpOverload) or not _allowed(found, packet):
            raise ValueError(f"operator {function!r:.100} is none that a sampler's file may call")
    arguments, options = _read(arguments), _read(options)
    if function == "getitem" and not (
        len(arguments) == 2 and isinstance(arguments[0], Reference) and type(arguments[1]) is int and not options
    ):
        raise ValueError("getitem takes a value and an integer")
    return Call(name, found, arguments, options)


def _written(value):
    if isinstance(value, Reference):
        return {"value": value.name}
    if isinstance(value, Extent):
        return {"extent": [value.offset, value.stride]}
    if isinstance(value, list | tuple):
        return [_written(part) for part in value]
    if isinstance(value, dict):
        return {"options": {name: _written(part) for name, part in value.items()}}
    if value is None or type(value) in (bool, int, str) or (type(value) is float and abs(value) < float("inf")):
        return value
    for kind, constants in _CONSTANTS.items():
        for name, constant in constants.items():
            if type(value) is type(constant) and (value == constant or value != value):
                return {kind: name}
    raise NotImplementedError(f"a sampler's file takes no argument {value!r} of a context network's operator")


def _read(written):
    if isinstance(written, list):
        return [_read(part) for part in written]
    if not isinstance(written, dict):
        return written
    if len(written) != 1:
        raise ValueError(f"an argument has one kind, got {written!s:.100}")
    ((kind, value),) = written.items()
    if kind == "value" and type(value) is str:
        return Reference(value)
    if kind == "extent" and isinstance(value, list) and [type(n) for n in value] == [int, int]:
        return Extent(*value)
    if kind == "options" and isinstance(value, dict):
        return {name: _read(part) for name, part in value.items()}
    if kind in _CONSTANTS and type(value) is str and value in _CONSTANTS[kind]:
        return _CONSTANTS[kind][value]
    raise ValueError(f"an argument is not known: {written!s:.100}")
