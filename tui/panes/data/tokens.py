"""Rows as tokens: made in a thread, shown with the supervised ones, and counted for the list."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from core.analysis.problems import Level
from core.data.conversation import RowError
from core.errors import UserError
from core.template.preview import PreviewRow, Refusal
from core.template.preview import RowLength as Measured
from core.template.sandboxed import RowMasks
from core.units import format_count
from tui.datasets.plan import DataPlan
from tui.datasets.summary import counted
from tui.datasets.view import DatasetView, label_word
from tui.widgets.lists.mask_view import TokenCell, TokenPart

#: Rows whose lengths are kept; the oldest are dropped.
KEPT_LENGTHS = 20_000

TokenRows: TypeAlias = tuple[PreviewRow, ...] | Refusal | RowError | UserError
_Length: TypeAlias = Measured | Refusal | RowError | UserError

_CUT_LABELS = {
    "drop": "train.max_length = {limit}: longer rows are dropped",
    "truncate": "train.max_length = {limit}: what follows is cut off",
    "refuse": "train.max_length = {limit}: longer rows stop the run",
}


@dataclass(frozen=True)
class RowLength:
    """The columns of a row's length in the list."""

    tokens: str = "–"
    learned: str = "–"
    level: Level | Literal[""] = ""
    """The level of its problem: whether it is used."""


# In threads.


def mask_row(view: DatasetView, masks: RowMasks, index: int) -> tuple[TokenRows, bool | None]:
    """A row as tokens, or the reason that it has none; and whether its answer is called good (None for other rows)."""
    try:
        example = view.example(index)
        return masks.row(example), example.label
    except (RowError, UserError) as error:
        return error, None


def measure_rows(view: DatasetView, masks: RowMasks, indices: Sequence[int], *, cuts: bool) -> dict[int, RowLength]:
    """The lengths of rows.

    Args:
        view: The dataset.
        masks: Tokenizer and template.
        indices: The rows.
        cuts: Whether rows that are too long are truncated; else they are dropped.
    """
    return {index: _length_of(length, cuts) for index, length in _measured(view, masks, indices).items()}


def _measured(view: DatasetView, masks: RowMasks, indices: Sequence[int]) -> dict[int, _Length]:
    """The lengths of rows; the reason for each that has none."""
    found: dict[int, _Length] = {}
    examples = []
    for index in indices:
        try:
            examples.append((index, view.example(index)))
        except (RowError, UserError) as error:
            found[index] = error
    try:
        lengths = masks.lengths([example for _, example in examples])
    except UserError as error:
        found.update((index, error) for index, _ in examples)
    else:
        found.update((index, length) for (index, _), length in zip(examples, lengths, strict=True))
    return found


def _length_of(result: _Length, cuts: bool) -> RowLength:
    if isinstance(result, UserError):
        return RowLength("✗")
    if not isinstance(result, Measured):
        return RowLength("✗", level="drop")
    level: Level | Literal[""] = ("warn" if cuts else "drop") if result.is_long else ""
    return RowLength(str(result.tokens), str(result.learned), level)


# Display.


class KnownLengths:
    """A cache of the lengths of rows, with the newest of them."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, RowLength] = OrderedDict()

    def get(self, index: int) -> RowLength | None:
        """The length of a row, if it is known."""
        return self._known.get(index)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """The rows of a selection that have not been counted."""
        return [index for index in indices if index not in self._known]

    def take(self, lengths: Mapping[int, RowLength]) -> None:
        """Add lengths."""
        self._known.update(lengths)
        while len(self._known) > KEPT_LENGTHS:
            self._known.popitem(last=False)


def token_parts(rows: Sequence[PreviewRow], label: bool | None, plan: DataPlan) -> list[TokenPart]:
    """The parts of a row for display: all that the model sees of it, with the cut at the greatest length."""
    cut_label = _CUT_LABELS[plan.reading.overlong].format(limit=format_count(plan.tokens.max_length))
    return [
        TokenPart(
            [TokenCell(token.text, token.learned, token.special) for token in row.tokens],
            row.cut,
            cut_label,
            _heading(row, label),
        )
        for row in rows
    ]


def describe_tokens(rows: Sequence[PreviewRow]) -> str:
    """The number of tokens of a row, and of the supervised ones."""
    tokens, learned = sum(row.length for row in rows), sum(row.learned for row in rows)
    pair = f"pair of {' and '.join(format_count(row.length) for row in rows)} tokens"
    counts = pair if rows[0].answer else counted(tokens, "token")
    return f"{counts} · {format_count(learned)} learned · {learned / max(tokens, 1):.0%}"


def _heading(row: PreviewRow, label: bool | None) -> str:
    """The heading of a part: the answers of a pair, and those with a label, are named."""
    name = row.answer if label is None else label_word(label)
    return f"{name} answer · {counted(row.length, 'token')} · {format_count(row.learned)} learned" if name else ""
