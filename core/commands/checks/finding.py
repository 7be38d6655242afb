"""One thing that ``doctor`` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """``what`` is a sentence, ``hint`` says what to do about it; empty when there is nothing to do."""

    name: str
    status: Status
    what: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return asdict(self)
