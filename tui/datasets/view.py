"""View of a dataset for the Data pane, without widgets: cells, conversations, marks and search."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, ParamSpec

from core.analysis.problems import FileLine, Level
from core.analysis.result import Analysis
from core.data.conversation import IGNORED_LABEL, Example, Message, RowError
from core.data.files.rows import Row
from core.data.formats.detect import SAMPLE, Detection
from core.errors import UserError
from core.template.preview import PAIR
from core.text import one_line
from core.units import format_count
from tui.datasets.marks import RowMarks
from tui.datasets.plan import Reading


@dataclass(frozen=True)
class RowCells:
    """Cells of a row in the list, sanitized and without newlines."""

    cells: tuple[str, ...]
    problem: str = ""
    """The reason why the row cannot be read, shown instead of the cells."""
    number: int = 0
    """The row number, from 1."""
    mark: Level | Literal[""] = ""
    """The worst problem of a readable row; empty for none."""


@dataclass(frozen=True)
class Turn:
    """Turn of a speaker; the text is sanitized when it is drawn."""

    role: str
    """``system``, ``user``, ``assistant``, or another label; ``problem`` is drawn as an error."""
    text: str


#: Display names of the formats.
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

#: Headings of the formats that are not conversations.
_COLUMNS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "segments": ("segments",),
    "tokens": ("tokens",),
    "preference": ("user", "better", "worse"),
    "kto": ("label", "user", "assistant"),
}

#: Rows read between two checks for cancellation.
BATCH = 256
# Long scans sleep between two batches, so that keys need not wait for the interpreter lock.
_BREATH_SECONDS = 0.002
_CELL_LIMIT = 400


@dataclass(frozen=True)
class Recognized:
    """Result of format detection, or its error, with which rows are shown raw."""

    reading: Reading
    rows: int
    """The number of examined rows."""
    detection: Detection | None
    unknown: UserError | None = None


@dataclass(frozen=True)
class Match:
    """Result of a search: the row, and whether the search wrapped around."""

    index: int
    wrapped: bool


class DatasetView:
    """Open dataset. All methods are thread-safe; ``close`` ends scans in other threads.

    Args:
        path: A file, a directory or an entry of a registry (see :mod:`core.data.registries.resolve`).
        reading: The reading of its rows.

    Raises:
        UserError: If it cannot be opened.
    """

    def __init__(self, path: Path, reading: Reading = Reading()) -> None:  # noqa: B008 - it cannot be changed
        self.path = path
        try:
            self._source = reading.source(path)
        except UserError:
            # If the reading is wrong, the file is still opened, and its rows shown raw.
            self._source = Reading().source(path)
        self.file = self._source.open()
        self.failure: UserError | None = None
        """The error with which reading failed: the file has changed, or its disk is gone."""
        self.marks = RowMarks()
        """Marks of rows with a problem: of all rows once there is an ``analysis``, before that of rows seen so far."""
        self.analysis: Analysis | None = None
        """The analysis of all rows, once it is done."""
        self.analysis_error: UserError | None = None
        """The error with which the analysis failed."""
        self.is_closed = False
        try:
            self._recognized = self.recognize(reading)
        except BaseException:
            self.close()
            raise

    @property
    def is_entry(self) -> bool:
        """True for an entry of a registry, which declares the reading of its rows."""
        return self._source.path != self.path

    @property
    def data_path(self) -> Path:
        """The path of its data: of an entry that of its file."""
        return self._source.path

    @cached_property
    def is_directory(self) -> bool:
        """True if its rows are in the files of a directory."""
        return self.data_path.is_dir()

    @property
    def count(self) -> int:
        """The number of rows found so far, up to the entry's limit."""
        known, limit = self.file.count_known, self._source.limit
        return known if limit is None else min(known, limit)

    @property
    def reading(self) -> Reading:
        """The reading from the configuration."""
        return self._recognized.reading

    @property
    def detection(self) -> Detection | None:
        """The detected format; None if unknown."""
        return self._recognized.detection

    @property
    def unknown(self) -> UserError | None:
        """The reason why the format is unknown."""
        return self._recognized.unknown

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings for :meth:`cells`."""
        if self.detection is None:
            return ("row",)
        return _COLUMNS.get(self.detection.format, ("user", "assistant"))

    @property
    def format_name(self) -> str:
        """The display name of the format."""
        return FORMAT_NAMES[self.detection.format] if self.detection is not None else "unknown format"

    def close(self) -> None:
        """Close the file."""
        self.is_closed = True
        self.file.close()

    def recognize(self, reading: Reading) -> Recognized:
        """Detect the format from the first rows; blocks.

        Args:
            reading: The reading; ignored by an entry of a registry.
        """
        rows: list[Row] = []
        try:
            source = self._source if self.is_entry else reading.source(self.path)
            rows = self.file.rows(0, SAMPLE)
            return Recognized(reading, len(rows), source.detect(rows, one_line(self.path.name, 80), self.file.note))
        except UserError as error:
            return Recognized(reading, len(rows), None, error)

    @property
    def is_guess(self) -> bool:
        """True if further rows have been found that could change the detection."""
        return self._recognized.rows < min(SAMPLE, self.file.count_known)

    def read_as(self, recognized: Recognized) -> None:
        """Change the reading of the rows, and drop the analysis."""
        self._recognized = recognized
        self.forget()

    def take(self, analysis: Analysis, marks: RowMarks) -> None:
        """Set the result of an analysis, with its marks."""
        self.analysis, self.analysis_error, self.marks = analysis, None, marks

    def forget(self) -> None:
        """Drop the analysis."""
        self.analysis, self.analysis_error, self.marks = None, None, RowMarks()

    def note(self, index: int, level: Level) -> None:
        """Mark a row with a problem, unless there is an analysis."""
        if self.analysis is None:
            self.marks.note(index, level)

    def cells(self, indices: Sequence[int]) -> list[RowCells]:
        """The cells of rows for the list; on a read error, every row shows it, and ``failure`` is set."""
        try:
            rows = self._rows(indices)
        except UserError as error:
            self.failure = error
            return [RowCells((), one_line(error.message), number=index + 1) for index in indices]
        return [self._row_cells(row) for row in rows]

    def turns(self, index: int) -> list[Turn]:
        """The turns of a row; an invalid row has its error first, then its content."""
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
        """The training example of a row.

        Raises:
            RowError: If the row is invalid.
            UserError: If the format is unknown or the file can no longer be read.
        """
        example = self._example(self.file.row(index))
        if example is None:
            raise self.unknown or UserError("The format of the rows is unknown.", "Set data.format.")
        return example

    def line_of(self, index: int) -> int:
        """The line of the file at which a row begins; 0 if it can no longer be read."""
        try:
            return self.file.row(index).line
        except UserError as error:
            self.failure = error
            return 0

    def places(self, start: int, count: int = 1) -> list[FileLine]:
        """File and line of consecutive rows, as a run names them.

        Raises:
            UserError: If the file can no longer be read.
        """
        return [FileLine.of(self.data_path, row) for row in self.file.rows(start, count)]

    def search(
        self,
        term: str,
        start: int,
        step: int,
        cancelled: Callable[[], bool],
        progress: Callable[[int], None],
        among: Sequence[int] | None = None,
    ) -> Match | None:
        """The next row that contains a text, ignoring case and wrapping around; blocks.

        Args:
            term: The text.
            start: The row before the first searched one, in search direction.
            step: 1 downwards, -1 upwards.
            cancelled: Called between two batches; True ends the search.
            progress: Called with the number of searched rows.
            among: The rows to search, ascending; None for all.

        Raises:
            UserError: If the file can no longer be read.
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
    """The turns of an example, with tools, reasoning and rejected answers."""
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
    """The word for the label of an answer."""
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
    return f"{format_count(len(example.ids or ()))} tokens, {format_count(learned)} of them learned"


def _dump(data: object) -> str:
    return json.dumps(data, ensure_ascii=False)


def _as_it_is(row: Row) -> list[Turn]:
    """The columns of a row, or its raw text if it could not be parsed."""
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
    """All strings in a row. Not recursive, as rows may be nested deeper than Python's stack."""
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


#: Seconds between two progress reports of a scan.
REPORT_SECONDS = 0.25

_P = ParamSpec("_P")


def paced(report: Callable[_P, object]) -> Callable[_P, None]:
    """A progress callback limited to a report every :data:`REPORT_SECONDS`."""
    last = time.monotonic()

    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= REPORT_SECONDS:
            last = now
            report(*args, **kwargs)

    return call


async def open_dataset(path: Path, reading: Reading) -> DatasetView:
    """Open a dataset in a thread; after a cancellation, it is closed as soon as it is open.

    Raises:
        UserError: If it cannot be opened.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(DatasetView, path, reading))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        reason = one_line(str(error) or type(error).__name__, 200).rstrip(".")
        raise UserError(f"{one_line(str(path))} cannot be read: {reason}.", "Check the file.") from error


def _close(opened: asyncio.Future[DatasetView]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
