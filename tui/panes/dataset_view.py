"""A dataset as the data pane shows it: cells, conversations, problems and search, without any widget."""

from __future__ import annotations

import itertools
import json
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.analysis import Analysis
from core.data.conversation import IGNORED_LABEL, Example, Message, RowError
from core.data.formats import SAMPLE, Detection
from core.data.registry import single_source
from core.data.rows import Row
from core.errors import UserError
from core.text import one_line
from tui.widgets.conversation import Turn
from tui.widgets.row_list import RowCells

#: Formats as people call them.
FORMAT_NAMES = {
    "messages": "chat messages",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca instructions",
    "prompt_completion": "prompt and completion",
    "segments": "text in segments",
    "text": "plain text",
    "tokens": "tokens",
    "preference": "preference pairs",
    "kto": "labeled answers",
}

#: Rows that are read between two looks at whether to go on.
BATCH = 256
# Long scans leave the interpreter to the screen between two batches, or keys would wait for them.
_BREATH_SECONDS = 0.002
_CELL_LIMIT = 400

Cancelled = Callable[[], bool]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Match:
    """Where a search ended: the row, and whether the end of the file lay between."""

    index: int
    wrapped: bool


class DatasetView:
    """An open file. Every method may be called from any thread; ``close`` ends what runs in others.

    Args:
        path: What :func:`core.data.registry.resolve_source` reads: a file, a directory, an entry of a registry.

    Raises:
        UserError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        source = single_source(str(path))
        self.file = source.open()
        self.detection: Detection | None = None
        self.unknown: UserError | None = None
        """Why the format is unknown; rows are then shown as they are."""
        self.failure: UserError | None = None
        """Why rows can no longer be read: the file has changed, or its disk is gone."""
        self.problems: array[int] = array("Q")
        """Rows that training cannot use, of the first ``checked`` ones, ascending."""
        self.checked = 0
        self.analysis: Analysis | None = None
        """What every row was found to be, once that is known."""
        self.analysis_error: UserError | None = None
        self.is_closed = False
        try:
            self.detection = source.detect(self.file.rows(0, SAMPLE), one_line(path.name, 80))
        except UserError as error:
            self.unknown = error

    @property
    def count(self) -> int:
        """Rows found so far."""
        return self.file.count_known

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings for :meth:`cells`."""
        if self.detection is None:
            return ("row",)
        whole = ("text", "segments", "tokens")
        return (self.detection.format,) if self.detection.format in whole else ("user", "assistant")

    @property
    def format_name(self) -> str:
        """The format as people call it."""
        return FORMAT_NAMES[self.detection.format] if self.detection is not None else "unknown format"

    def close(self) -> None:
        """Give the file back."""
        self.is_closed = True
        self.file.close()

    def cells(self, start: int, count: int) -> list[RowCells]:
        """A window of the list; rows that can no longer be read say why, and ``failure`` is set."""
        try:
            rows = self.file.rows(start, count)
        except UserError as error:
            self.failure = error
            return [RowCells((), one_line(error.message)) for _ in range(count)]
        return [self._row_cells(row) for row in rows]

    def turns(self, index: int) -> list[Turn]:
        """One row as a conversation; a row with a problem says it first and shows what is there."""
        try:
            row = self.file.row(index)
        except UserError as error:
            self.failure = error
            return [Turn("problem", str(error))]
        try:
            example = self._example(row)
        except RowError as error:
            return [Turn("problem", error.message), *_as_it_is(row)]
        if example is None:
            return _as_it_is(row)
        return list(_turns_of(example))

    def example(self, index: int) -> Example:
        """One row as training reads it.

        Raises:
            RowError: If it cannot be used.
            UserError: If the format is unknown or the file cannot be read any more.
        """
        example = self._example(self.file.row(index))
        if example is None:
            raise self.unknown or UserError("The format of the rows is unknown.", "Set data.format.")
        return example

    def take(self, analysis: Analysis) -> None:
        """Know what an analysis has found; rows that are only noted are no problems."""
        self.analysis, self.analysis_error = analysis, None
        found: set[int] = set()
        for problem in analysis.problems:
            if problem.kind.level != "note":
                found.update(problem.indices)
        self.problems, self.checked = array("Q", sorted(found)), max(self.checked, self.count)

    def line_of(self, index: int) -> int:
        """The line of the file that a row begins on; 0 when it cannot be told any more."""
        try:
            return self.file.row(index).line
        except UserError as error:
            self.failure = error
            return 0

    def check(self, cancelled: Cancelled, progress: Progress) -> None:
        """Look at every row found, and note the ones that training could not use; blocks.

        Raises:
            UserError: If the file cannot be read any more.
        """
        if self.detection is None:
            return
        for rows in self._batches(range(self.checked, self.count, BATCH), cancelled):
            bad = [row.index for row in rows if not self._is_usable(row)]
            if self.analysis is not None:
                return  # it has found these rows, and more
            self.problems.extend(bad)
            self.checked = rows[-1].index + 1
            progress(self.checked)

    def next_problem(self, index: int) -> int | None:
        """The nearest row with a problem after this one, from the top again behind the last; None without any."""
        if not self.problems:
            return None
        position = bisect_right(self.problems, index)
        return self.problems[position % len(self.problems)]

    def previous_problem(self, index: int) -> int | None:
        """The nearest row with a problem before this one, from the end again above the first; None without any."""
        if not self.problems:
            return None
        return self.problems[bisect_left(self.problems, index) - 1]

    def has_problem(self, index: int) -> bool:
        """Whether a row has been found to have a problem."""
        position = bisect_left(self.problems, index)
        return position < len(self.problems) and self.problems[position] == index

    def search(self, term: str, start: int, step: int, cancelled: Cancelled, progress: Progress) -> Match | None:
        """The next row with a text in it, whatever its case, from the other end again at the end; blocks.

        Args:
            term: What to look for.
            start: The row to begin after (or before).
            step: 1 downwards, -1 upwards.
            cancelled: Asked between two batches.
            progress: Told how many rows have been looked at.

        Raises:
            UserError: If the file cannot be read any more.
        """
        wanted = term.lower()
        total = self.count
        seen = 0
        parts = ((start + 1, total), (0, start + 1)) if step > 0 else ((0, start), (start, total))
        for wrapped, (low, high) in enumerate(parts):
            begins = range(low, high, BATCH)
            for rows in self._batches(begins if step > 0 else begins[::-1], cancelled, high):
                for row in rows if step > 0 else reversed(rows):
                    if _mentions(row, wanted):
                        return Match(row.index, bool(wrapped))
                seen += len(rows)
                progress(seen)
        return None

    def _batches(self, begins: Sequence[int], cancelled: Cancelled, end: int | None = None) -> Iterator[list[Row]]:
        for begin in begins:
            if cancelled() or self.is_closed:
                return
            rows = self.file.rows(begin, BATCH if end is None else min(BATCH, end - begin))
            if rows:
                yield rows
            time.sleep(_BREATH_SECONDS)

    def _is_usable(self, row: Row) -> bool:
        try:
            self._example(row)
        except RowError:
            return False
        return True

    def _example(self, row: Row) -> Example | None:
        if row.data is None:
            raise RowError(row.code, row.error)
        return None if self.detection is None else self.detection.example(row)

    def _row_cells(self, row: Row) -> RowCells:
        try:
            example = self._example(row)
        except RowError as error:
            return RowCells((), one_line(error.message, _CELL_LIMIT))
        if example is None:
            return RowCells((one_line(_dump(row.data)[:_CELL_LIMIT], _CELL_LIMIT),))
        if example.text or example.ids is not None:
            return RowCells((one_line(example.text or _describe_tokens(example), _CELL_LIMIT),))
        question = next((message.content for message in example.messages if message.role == "user"), "")
        return RowCells((one_line(question, _CELL_LIMIT), one_line(example.answer, _CELL_LIMIT)))


def _turns_of(example: Example) -> Iterator[Turn]:
    """Who says what in an example, tools, thoughts and second answers included."""
    if example.ids is not None:
        yield Turn("tokens", _describe_tokens(example))
    if example.segments:
        yield from (Turn("learned" if segment.train else "given", segment.text) for segment in example.segments)
    elif example.text:
        yield Turn("text", example.text)
    if example.tools:
        yield Turn("tools", _dump(example.tools))
    yield from itertools.chain.from_iterable(map(_spoken, example.messages))
    for label, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
        for message in answer:
            yield from (Turn(label if turn.role == "assistant" else turn.role, turn.text) for turn in _spoken(message))
    if example.label is not None:
        yield Turn("label", "good" if example.label else "bad")


def _spoken(message: Message) -> Iterator[Turn]:
    if message.reasoning:
        yield Turn("reasoning", message.reasoning)
    if message.content or not message.tool_calls:
        yield Turn(message.role, message.content)
    for call in message.tool_calls:
        yield Turn("calls", _dump(call.get("function", call)))


def _describe_tokens(example: Example) -> str:
    learned = sum(label != IGNORED_LABEL for label in example.labels or ())
    return f"{len(example.ids or ())} tokens, {learned} of them learned"


def _dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def _as_it_is(row: Row) -> list[Turn]:
    """The columns of a row, or the text of one that is no row."""
    if row.data is None:
        return [Turn("file", row.raw)]
    return [
        Turn(one_line(str(key), 40), value if isinstance(value, str) else _dump(value))
        for key, value in row.data.items()
    ]


def _mentions(row: Row, wanted: str) -> bool:
    if row.data is None:
        return wanted in row.raw.lower()
    return any(wanted in text.lower() for text in _texts(row.data))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a row; an explicit stack, as rows may be nested deeper than Python's."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
