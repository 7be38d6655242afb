"""A dataset as the data pane shows it: cells, conversations, marks and search, without any widget."""

from __future__ import annotations

import itertools
import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.analysis.problems import Level
from core.analysis.result import Analysis
from core.data.conversation import IGNORED_LABEL, Example, Message, RowError
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE, Detection
from core.errors import UserError
from core.template.preview import PAIR
from core.text import one_line
from tui.datasets.marks import RowMarks
from tui.datasets.plan import Reading
from tui.datasets.rows import RowCells, Turn

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

#: Headings of the formats that are no plain conversations.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "segments": ("segments",),
    "tokens": ("tokens",),
    "preference": ("user", "better", "worse"),
    "kto": ("label", "user", "assistant"),
}

#: Rows that are read between two looks at whether to go on.
BATCH = 256
# Long scans leave the interpreter to the screen between two batches, or keys would wait for them.
_BREATH_SECONDS = 0.002
_CELL_LIMIT = 400

Cancelled = Callable[[], bool]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Recognized:
    """How rows are read, or why that is not known; they are then shown as they are."""

    reading: Reading
    rows: int
    """How many rows tell it."""
    detection: Detection | None
    unknown: UserError | None = None


@dataclass(frozen=True)
class Match:
    """Where a search ended: the row, and whether the end of the file lay between."""

    index: int
    wrapped: bool


class DatasetView:
    """An open file. Every method may be called from any thread; ``close`` ends what runs in others.

    Args:
        path: A file, a directory or an entry of a registry (see :mod:`core.data.registries.resolve`).
        reading: How its rows are read.

    Raises:
        UserError: If it cannot be opened.
    """

    def __init__(self, path: Path, reading: Reading = Reading()) -> None:  # noqa: B008 - it cannot be changed
        self.path = path
        # Whatever is wrong with the reading, the file itself can be opened and its rows shown.
        self._source = Reading().source(path)
        self.file = self._source.open_shared()
        self.failure: UserError | None = None
        """Why rows can no longer be read: the file has changed, or its disk is gone."""
        self.marks = RowMarks()
        """Rows with a problem: all of them once there is an ``analysis``, before that the ones seen."""
        self.analysis: Analysis | None = None
        """What every row was found to be, once that is known."""
        self.analysis_error: UserError | None = None
        """Why that cannot be known."""
        self.is_closed = False
        try:
            self._recognized = self.recognize(reading)
        except BaseException:
            self.close()
            raise

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry of a registry, which says itself how its rows are read."""
        return self._source.path != self.path

    @property
    def count(self) -> int:
        """Rows found so far, as many of them as are used at most."""
        known, limit = self.file.count_known, self._source.limit
        return known if limit is None else min(known, limit)

    @property
    def reading(self) -> Reading:
        """How the configuration has its rows read."""
        return self._recognized.reading

    @property
    def detection(self) -> Detection | None:
        """How its rows are read; None where that is not known."""
        return self._recognized.detection

    @property
    def unknown(self) -> UserError | None:
        """Why that is not known."""
        return self._recognized.unknown

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings for :meth:`cells`."""
        if self.detection is None:
            return ("row",)
        return _COLUMNS.get(self.detection.format, ("user", "assistant"))

    @property
    def format_name(self) -> str:
        """The format as people call it."""
        return FORMAT_NAMES[self.detection.format] if self.detection is not None else "unknown format"

    def close(self) -> None:
        """Give the file back."""
        self.is_closed = True
        self.file.close()

    def recognize(self, reading: Reading) -> Recognized:
        """How rows are read in some way, from the first of them; blocks.

        Args:
            reading: The way. An entry of a registry says its own.
        """
        rows: list[Row] = []
        try:
            source = self._source if self.is_entry else reading.source(self.path)
            rows = self.file.rows(0, SAMPLE)
            return Recognized(reading, len(rows), source.detect(rows, one_line(self.path.name, 80)))
        except UserError as error:
            return Recognized(reading, len(rows), None, error)

    @property
    def is_guess(self) -> bool:
        """Whether there are rows now that would have had a say in how they are read."""
        return self._recognized.rows < min(SAMPLE, self.file.count_known)

    def read_as(self, recognized: Recognized) -> None:
        """Read the rows in another way from now on; what was found of them no longer counts."""
        self._recognized = recognized
        self.forget()

    def take(self, analysis: Analysis, marks: RowMarks) -> None:
        """Know what an analysis has found, and the marks that follow from it."""
        self.analysis, self.analysis_error, self.marks = analysis, None, marks

    def forget(self) -> None:
        """Know nothing of the whole file any more."""
        self.analysis, self.analysis_error, self.marks = None, None, RowMarks()

    def note(self, index: int, level: Level) -> None:
        """Remember the problem of a row that has been seen; an analysis knows better."""
        if self.analysis is None:
            self.marks.note(index, level)

    def cells(self, indices: Sequence[int]) -> list[RowCells]:
        """Rows of the list; those that can no longer be read say why, and ``failure`` is set."""
        try:
            rows = self._rows(indices)
        except UserError as error:
            self.failure = error
            return [RowCells((), one_line(error.message), number=index + 1) for index in indices]
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
        return list(turns_of(example))

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

    def line_of(self, index: int) -> int:
        """The line of the file that a row begins on; 0 when it cannot be told any more."""
        try:
            return self.file.row(index).line
        except UserError as error:
            self.failure = error
            return 0

    def search(
        self,
        term: str,
        start: int,
        step: int,
        cancelled: Cancelled,
        progress: Progress,
        among: Sequence[int] | None = None,
    ) -> Match | None:
        """The next row with a text in it, whatever its case, from the other end again at the end; blocks.

        Args:
            term: What to look for.
            start: The row to begin after (or before).
            step: 1 downwards, -1 upwards.
            cancelled: Asked between two batches.
            progress: Told how many rows have been looked at.
            among: The rows to look at, ascending; None for all.

        Raises:
            UserError: If the file cannot be read any more.
        """
        wanted = term.lower()
        order = range(self.count) if among is None else among
        place = bisect_right(order, start) if step > 0 else bisect_left(order, start)
        seen = 0
        parts = ((place, len(order)), (0, place)) if step > 0 else ((0, place), (place, len(order)))
        for wrapped, (low, high) in enumerate(parts):
            begins = range(low, high, BATCH)
            for begin in begins if step > 0 else begins[::-1]:
                if cancelled() or self.is_closed:
                    return None
                rows = self._rows(order[begin : min(begin + BATCH, high)])
                for row in rows if step > 0 else reversed(rows):
                    if _mentions(row, wanted):
                        return Match(row.index, bool(wrapped))
                seen += len(rows)
                progress(seen)
                time.sleep(_BREATH_SECONDS)
        return None

    def _rows(self, indices: Sequence[int]) -> list[Row]:
        if isinstance(indices, range) and indices.step == 1:
            return self.file.rows(indices.start, len(indices))
        return [self.file.row(index) for index in indices]

    def _example(self, row: Row) -> Example | None:
        if row.data is None:
            raise RowError(row.code, row.error)
        return None if self.detection is None else self.detection.example(row)

    def _row_cells(self, row: Row) -> RowCells:
        number = row.index + 1
        try:
            example = self._example(row)
        except RowError as error:
            self.note(row.index, "drop")
            return RowCells((), one_line(error.message, _CELL_LIMIT), number)
        mark = self.marks.level(row.index) or ""
        if example is None:
            return RowCells((one_line(_dump(row.data)[:_CELL_LIMIT], _CELL_LIMIT),), "", number, mark)
        if example.text or example.ids is not None:
            return RowCells((one_line(example.text or _describe_tokens(example), _CELL_LIMIT),), "", number, mark)
        question = next((message.content for message in example.messages if message.role == "user"), "")
        label = () if example.label is None else (label_word(example.label),)
        worse = (example.rejected[-1].content,) if example.is_preference else ()
        texts = (one_line(text, _CELL_LIMIT) for text in (question, example.answer, *worse))
        return RowCells((*label, *texts), "", number, mark)


def turns_of(example: Example) -> Iterator[Turn]:
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
    for label, answer in zip(PAIR, (example.chosen, example.rejected), strict=True):
        for message in answer:
            yield from (Turn(label if turn.role == "assistant" else turn.role, turn.text) for turn in _spoken(message))
    if example.label is not None:
        yield Turn("label", label_word(example.label))


def label_word(label: bool) -> str:
    """What an answer is called that has a label."""
    return "good" if label else "bad"


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


def _dump(data: object) -> str:
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


def _texts(value: object) -> Iterator[str]:
    """Every text in a row; an explicit stack, as rows may be nested deeper than Python's."""
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
