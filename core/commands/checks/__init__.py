"""The checks of ``doctor``, one module per subject; every check returns its findings and raises nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Finding of a check: ``what`` is the result, ``hint`` the remedy; empty when there is nothing to do."""

    name: str
    status: Status
    what: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """The finding as fields for ``--json``."""
        return asdict(self)
