"""A module's forward with every operator in one floating-point precision."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from fastgen.generate.frontend.called_functions import written_out


class Precision:
    """Inside, every operator takes and gives floats of ``dtype``, whatever the module holds or casts to.

    The module itself is not touched: what it holds is cast where an operator reads it. An operator without a kernel
    for ``dtype`` is computed in float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._operators, self._functions = _Operators(dtype), _Functions(dtype)
        # nn.RNN, LSTM and GRU compare the dtypes of their input and weights in Python
        self._recurrent = patch.object(nn.RNNBase, "check_input", lambda *arguments: None)
        self._written_out = written_out()

    @property
    def saw_less(self) -> bool:
        """Whether an operator was to take or give floats of less than 32 bits."""
        return self._operators.saw_less

    def __enter__(self) -> Precision:
        self._recurrent.start()
        self._written_out.__enter__()
        self._functions.__enter__()
        self._operators.__enter__()
        return self

    def __exit__(self, *raised) -> None:
        self._operators.__exit__(*raised)
        self._functions.__exit__(*raised)
        self._written_out.__exit__(*raised)
        self._recurrent.stop()


class _Functions(TorchFunctionMode):
    """Some functions compare the dtypes of their arguments before any operator is reached."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        writes = name.endswith("_") and (not name.endswith("__") or name.startswith(("__i", "__set")))
        floats = {a.dtype for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor) and a.is_floating_point()}
        if len(floats) > 1 and not writes:
            args, kwargs = _cast((args, kwargs), self.dtype)
        return function(*args, **kwargs)


class _Operators(TorchDispatchMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.saw_less = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.saw_less |= tree_any(_has_less, (args, kwargs))
        returns = [r.alias_info for r in operator._schema.returns]
        if any(alias is not None and not alias.is_write for alias in returns):
            return operator(*args, **kwargs)  # a view: what is written to it must reach its base
        if operator._schema.is_mutable:
            given = _given(operator, args, kwargs)
            written = [v for a, v in given if a.alias_info is not None and a.alias_info.is_write]
            floats = [t.dtype for t in written if isinstance(t, Tensor) and t.is_floating_point()]
            args, kwargs = _cast((args, kwargs), floats[0] if floats else self.dtype)
            return operator(*args, **kwargs)
        try:
            result = operator(*_cast(args, self.dtype), **_cast(kwargs, self.dtype))
        except (NotImplementedError, RuntimeError):
            if self.dtype == torch.float32:
                raise
            result = operator(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
        return _cast(result, self.dtype)


def _given(operator, args, kwargs):
    for number, argument in enumerate(operator._schema.arguments):
        yield argument, args[number] if number < len(args) else kwargs.get(argument.name)


def _has_less(value) -> bool:
    dtype = value.dtype if isinstance(value, Tensor) else value
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < 4


def _cast(tree, dtype: torch.dtype):
    def cast(value):
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() and value.dtype != dtype else value
        return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

    return tree_map(cast, tree)
