"""The ops: one public function each, and the choice of what runs them."""

from fastgen.ops.philox_uniform import philox_uniform
from fastgen.ops.registry import Backend, backend, backends

__all__ = ["Backend", "backend", "backends", "philox_uniform"]
