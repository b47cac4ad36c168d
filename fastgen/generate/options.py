"""The options that ``Sampler.sample``, ``start``, ``stream`` and ``sample_naive`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from fastgen.generate.heads import DrawOptions, Head


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one generation; see ``Sampler.sample`` and ``Sampler.start``."""

    context: object = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    log_prob: bool = False
    proposal_log_prob: bool = False
    threads: int | None = None
    first_sample: int = 0

    @classmethod
    def of(cls, caller: str, options: dict, without: Sequence[str] = ()) -> SamplingOptions:
        """Returns the options that a caller was given by name; it has none of those named in ``without``.

        Raises:
            TypeError: a name is not one of them.
        """
        names = [field.name for field in fields(cls) if field.name not in without]
        for name in options:
            if name not in names:
                raise TypeError(f"an option of {caller} must be one of {', '.join(names)}, got {name!r}")
        return cls(**options)

    def check(self, head: Head) -> DrawOptions:
        """Returns how the head's distribution is altered.

        Raises:
            ValueError: the head cannot draw so.
        """
        return head.check_sampling(
            self.temperature, self.top_k, self.top_p, bool(self.log_prob), bool(self.proposal_log_prob)
        )
