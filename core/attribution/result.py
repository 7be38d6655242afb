"""Request and result of an attribution: the rows that pull an answer toward its words, and those that pull it away.

:mod:`core.attribution.job` computes the result in a separate process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Rows listed for an answer, and against it.
ROWS_FOR, ROWS_AGAINST = 5, 3


@dataclass(frozen=True)
class AttributionRequest:
    """A question about an answer of a run's model.

    Args:
        run: Directory of the run.
        messages: The conversation up to the question, ``{"role", "content"}`` each, system prompt included.
        answer: The model's answer.
        wanted: The answer that it should have given; empty to ask about the answer alone.
        step: The step whose model answered; None for the run's result.
    """

    run: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    wanted: str = ""
    step: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttributionRequest:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**data, "messages": tuple(data["messages"])})


@dataclass(frozen=True)
class AttributedRow:
    """A training row with its score."""

    file: str
    """Name of its file."""
    line: int
    """Its line, or its row in a table, from 1."""
    score: float
    """Divided by the largest score of all rows: 1 for the first row, below 0 for rows against. Where no row is for the
    answer, -1 for the strongest against it."""
    question: str
    """The row's last question, in one line."""
    answer: str
    """The row's answer, in one line."""
    words: tuple[tuple[int, int], ...] = ()
    """Spans of ``answer``, ``(begin, end)`` in characters, that matter most."""


@dataclass(frozen=True)
class Attribution:
    """Rows behind an answer."""

    answer: str
    wanted: str
    base: str
    """The base model's answer to the same question."""
    rows: tuple[AttributedRow, ...]
    """Rows that pull the answer toward its words: the strongest :data:`ROWS_FOR` and all up to the gap in the scores,
    strongest first."""
    against: tuple[AttributedRow, ...]
    """The strongest :data:`ROWS_AGAINST` of the rows that pull it away."""
    like: int
    """Number of ``rows`` up to the gap in the scores: those to leave out together."""
    steps: tuple[int, ...]
    """Steps of the checkpoints that were compared."""
    considered: int
    """Rows whose gradients were compared."""
    total: int
    """Training rows of the run; more than ``considered`` where hidden states chose the candidates."""

    @property
    def is_base(self) -> bool:
        """True if the base model gives the same answer, so that training is not behind it."""
        return self.base.strip() == self.answer.strip()

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Attribution:
        """The inverse of :meth:`to_dict`."""
        found = {name: _rows(data[name]) for name in ("rows", "against")}
        return cls(**{**data, **found, "steps": tuple(data["steps"])})


def _rows(items: Sequence[Mapping[str, Any]]) -> tuple[AttributedRow, ...]:
    return tuple(
        AttributedRow(**{**item, "words": tuple((begin, end) for begin, end in item["words"])}) for item in items
    )
