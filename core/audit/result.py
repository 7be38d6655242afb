"""The result of an audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

#: ``equal``: every byte; ``differs``: something; ``inexact``: it differs, and bit equality is not to be expected here;
#: ``skipped``: it could not be executed again.
Outcome = Literal["equal", "differs", "inexact", "skipped"]
#: ``verified``: the chain is whole and all intervals that were chosen were equal; ``differs``: something is not what
#: was recorded; ``unproven``: neither, as something could not be executed again, or not be compared bit for bit.
Verdict = Literal["verified", "differs", "unproven"]
#: Differences of one kind that are told one by one.
MOST = 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not what was recorded."""

    what: str
    """In a sentence."""
    step: int | None = None
    """The optimizer step that it is of."""
    file: str | None = None
    """Relative to the run directory, or a path outside of it."""
    tensor: str | None = None
    """Name of the tensor, or of the option."""
    recorded: str | None = None
    """The first value that differs, as recorded."""
    found: str | None = None
    """The same as it is now, or as it came out again."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Difference:
        """What :func:`dataclasses.asdict` made."""
        return cls(**{item.name: values.get(item.name) for item in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SpanResult:
    """An interval between two checkpoints, executed again."""

    begin: int
    """The step that it begins after: 0 for the untouched base."""
    end: int
    outcome: Outcome
    reason: str = ""
    """Why it was skipped, or why bits are not to be expected equal; a sentence."""
    differences: tuple[Difference, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = asdict(self)
        return {"from": values.pop("begin"), "to": values.pop("end"), **values, "differences": _dicts(self.differences)}


@dataclass(frozen=True, kw_only=True)
class ChainResult:
    """The hash chain of a run, checked."""

    head: str | None = None
    """The last link; None where there is no chain."""
    links: int = 0
    notes: tuple[str, ...] = ()
    """What it does not cover, in sentences."""
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "head": self.head,
            "links": self.links,
            "notes": list(self.notes),
            "differences": _dicts(self.differences),
        }


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All of it."""

    run: str
    chain: ChainResult
    inputs: tuple[Difference, ...]
    """What base, rows and files are not any more."""
    spans: tuple[SpanResult, ...]
    notes: tuple[str, ...]
    """What could not be looked at, in sentences."""
    seed: int
    seconds: float
    complete: bool = True
    """Whether all was executed again that was to be: each step up to the last checkpoint, where that was all of the
    run."""

    @property
    def verdict(self) -> Verdict:
        """What it comes to."""
        if self.chain.differences or self.inputs or any(span.outcome == "differs" for span in self.spans):
            return "differs"
        are_equal = bool(self.spans) and all(span.outcome == "equal" for span in self.spans)
        return "verified" if are_equal and self.complete else "unproven"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": self.run,
            "verdict": self.verdict,
            "chain": self.chain.to_dict(),
            "inputs": _dicts(self.inputs),
            "spans": [span.to_dict() for span in self.spans],
            "notes": list(self.notes),
            "seed": self.seed,
            "seconds": self.seconds,
            "complete": self.complete,
        }


def _dicts(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    return [asdict(difference) for difference in differences]
