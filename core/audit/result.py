"""Result of an audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

#: ``equal``: every byte is equal; ``differs``: some are not; ``inexact``: some are not, and bit equality cannot be
#: expected here; ``skipped``: the interval could not be executed again.
Outcome = Literal["equal", "differs", "inexact", "skipped"]
#: ``verified``: the chain is whole and all chosen intervals are equal; ``differs``: there are differences;
#: ``unproven``: neither, as an interval could not be executed again or compared bit for bit.
Verdict = Literal["verified", "differs", "unproven"]
#: Most differences of a kind that are listed.
MOST = 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference from the record."""

    what: str
    """Description in a sentence."""
    step: int | None = None
    """Its optimizer step."""
    file: str | None = None
    """Relative to the run directory, or a path outside of it."""
    tensor: str | None = None
    """Name of the tensor, or of the option."""
    recorded: str | None = None
    """The first value that differs, as recorded."""
    found: str | None = None
    """The present or recomputed value."""


@dataclass(frozen=True, kw_only=True)
class SpanResult:
    """An interval between two checkpoints, executed again."""

    begin: int
    """The step before its first; 0 for the untouched base."""
    end: int
    outcome: Outcome
    reason: str = ""
    """Why it was skipped, or why bit equality cannot be expected; a sentence."""
    differences: tuple[Difference, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """Result of checking a run's hash chain."""

    head: str | None = None
    """The last link; None without a chain."""
    links: int = 0
    notes: tuple[str, ...] = ()
    """Gaps of the chain, in sentences."""
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Result of an audit."""

    run: str
    chain: ChainResult
    inputs: tuple[Difference, ...]
    """Changes of base, rows and files."""
    spans: tuple[SpanResult, ...]
    notes: tuple[str, ...]
    """Gaps of the audit, in sentences."""
    seed: int
    seconds: float
    complete: bool = True
    """False if the whole run was to be executed again, and a step up to the last checkpoint was not."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run."""
        if self.chain.differences or self.inputs or any(span.outcome == "differs" for span in self.spans):
            return "differs"
        are_equal = bool(self.spans) and all(span.outcome == "equal" for span in self.spans)
        return "verified" if are_equal and self.complete else "unproven"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = asdict(self, dict_factory=_json)
        spans = [{"from": span.pop("begin"), "to": span.pop("end"), **span} for span in values["spans"]]
        return {"run": self.run, "verdict": self.verdict, **values, "spans": spans}


def _json(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}
