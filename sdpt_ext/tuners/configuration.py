"""What the options of all tuning methods have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What to tune.

    Attributes:
        host_dropout: keep dropout of the frozen host active while training.
    """

    host_dropout: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


__all__ = ["TuningConfig"]
