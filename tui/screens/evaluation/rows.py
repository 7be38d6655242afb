"""The answers of an evaluation as rows: which are shown, the one under the cursor, and their lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from textual.content import Content

from core.evaluation.record import EvaluationRecord
from core.evaluation.table import TITLES, Comparison, EvaluationTable, Outcome
from core.text import one_line, sanitize
from core.units import format_fixed

Shown = Literal["all", "won", "lost"]
_ORDER: tuple[Shown, ...] = ("all", "won", "lost")
MARKS: dict[Outcome, tuple[str, str]] = {
    "won": ("+ won ", "$success"),
    "lost": ("- lost", "$error"),
    "same": ("  same", "$muted"),
}


@dataclass
class EvaluationRows:
    """The rows of a record, compared with one model at a time.

    Args:
        record: The record.
        table: Its table.
    """

    record: EvaluationRecord
    table: EvaluationTable
    shown: Shown = "all"
    against: int = 0
    """Place of the model that is compared with."""
    cursor: int = 0
    """Place of the row under the cursor, among those shown."""
    first: int = 0
    """Place of the row at the top."""
    places: list[int] = field(init=False)
    """Places of the questions that are shown."""

    def __post_init__(self) -> None:
        self._choose()

    @property
    def comparison(self) -> Comparison | None:
        """The comparison in view; None where there is only one model."""
        comparisons = self.table.comparisons
        return comparisons[self.against % len(comparisons)] if comparisons else None

    @property
    def place(self) -> int | None:
        """The question under the cursor; None where none is shown."""
        return self.places[self.cursor] if self.places else None

    def _choose(self) -> None:
        comparison = self.comparison
        if comparison is None or self.shown == "all":
            self.places = list(range(len(self.record.items)))
        else:
            self.places = [*(comparison.won if self.shown == "won" else comparison.lost)]
        self.cursor = self.first = 0

    def turn_filter(self) -> None:
        """Show the rows that are won, those that are lost, or all."""
        if self.comparison is not None:
            self.shown = _ORDER[(_ORDER.index(self.shown) + 1) % len(_ORDER)]
            self._choose()

    def turn_comparison(self) -> None:
        """Compare with the next model."""
        if len(self.table.comparisons) > 1:
            self.against = (self.against + 1) % len(self.table.comparisons)
            self._choose()

    def move(self, by: int) -> None:
        """Move the cursor."""
        self.cursor = min(max(self.cursor + by, 0), max(len(self.places) - 1, 0))

    def outcome(self, place: int) -> Outcome:
        """What became of a question."""
        return self.comparison.outcome(place) if self.comparison is not None else "same"

    def head(self) -> str:
        """What is shown, and of how many: ``won 3 of 12 against base``."""
        comparison = self.comparison
        if comparison is None:
            return f"{len(self.places)} prompts"
        against = f" against {one_line(comparison.against, 40)}"
        if self.shown == "all":
            return f"all {len(self.places)}: {len(comparison.won)} won, {len(comparison.lost)} lost{against}"
        return f"{self.shown}: {len(self.places)} of {len(self.record.items)}{against}"

    def lines(self, height: int, width: int) -> Content:
        """The rows around the cursor."""
        height = max(height, 1)
        self.first = min(max(self.first, self.cursor - height + 1), self.cursor)
        shown = self.places[self.first : self.first + height]
        if not shown:
            return Content.styled("None is." if self.shown != "all" else "There is no prompt.", "$muted")
        return Content("\n").join(
            self._line(place, width, is_chosen=number == self.cursor) for number, place in enumerate(shown, self.first)
        )

    def _line(self, place: int, width: int, *, is_chosen: bool) -> Content:
        item = self.record.items[place]
        mark, style = MARKS[self.outcome(place)]
        front = "▸ " if is_chosen else "  "
        head = Content.assemble(front, (mark, style), f"  {one_line(item.id, 12):<6} ")
        question = one_line(item.question, max(width - head.cell_length, 4))
        return head + (Content.styled(question, "bold") if is_chosen else Content(question))

    def detail(self) -> Content:
        """The question under the cursor, with what is expected and each answer with its scores."""
        place = self.place
        if place is None:
            return Content("")
        item = self.record.items[place]
        parts = [Content.styled("prompt", "$muted"), Content(sanitize(item.question))]
        if item.expected is not None:
            parts += [Content.styled("expected", "$muted"), Content(sanitize(item.expected))]
        comparison = self.comparison
        names = list(self.record.targets[:1])
        names += [comparison.against] if comparison is not None else []
        names += [name for name in self.record.targets if name not in names]
        for name in names:
            answer = self.record.answers[name][place]
            scores = (
                ""
                if answer is None
                else ", ".join(
                    f"{TITLES[metric]} {format_fixed(answer.scores[metric], 2)}"
                    for metric in self.table.metrics
                    if metric in answer.scores
                )
            )
            head = Content.assemble((one_line(name, 60), "$primary bold"), (f"  {scores}" if scores else "", "$muted"))
            text = sanitize(answer.text) if answer is not None else ""
            parts += [head, Content(text) if text.strip() else Content.styled("–", "$muted")]
        return Content("\n").join(parts)
