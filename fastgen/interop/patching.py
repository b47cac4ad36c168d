"""Replaces attributes of another library until they are restored."""

from __future__ import annotations

import threading
from typing import Any


class Patches:
    """The replaced attributes of one library, which are restored in the opposite order.

    Example:
        >>> import math
        >>> patches = Patches()
        >>> patches.replace(math, "tau", 6)
        >>> math.tau
        6
        >>> patches.restore()
        >>> round(math.tau, 3)
        6.283
    """

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, bool, Any]] = []
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._replaced)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Sets ``owner.name``, of a module or a class, whether or not ``owner`` has it itself.

        Raises:
            AttributeError: ``owner`` has no such attribute.
        """
        getattr(owner, name)
        own = name in vars(owner)
        with self._lock:
            self._replaced.append((owner, name, own, vars(owner).get(name)))
            setattr(owner, name, value)

    def restore(self) -> None:
        """Restores every original."""
        with self._lock:
            while self._replaced:
                owner, name, own, original = self._replaced.pop()
                if own:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)
