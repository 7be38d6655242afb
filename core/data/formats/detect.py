"""Dataset format detection: format, ambiguity and unread columns of rows, and their conversion to examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.config.choices import COMPARED, FORMATS, LEARNED, Format, Objective
from core.data.conversation import Example, RowError
from core.data.files.rows import Row
from core.data.formats.mapping import ColumnMap, UnknownColumnsError, missing_columns
from core.data.formats.media import media_columns, refuse_media, refuse_placeholders
from core.data.formats.shapes import FITS, READERS, format_of, misspelled_column, question_beside_text, read_columns
from core.errors import UserError
from core.text import one_line

#: Rows inspected to recognize a format.
SAMPLE = 200

#: Formats that ``data.format`` may name beside a column mapping, since they are read alike.
_ALIKE: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "sharegpt"),
    "prompt_completion": ("prompt_completion", "alpaca"),
}


@dataclass(frozen=True)
class Detection:
    """A recognized format.

    Args:
        format: Format of the rows.
        reason: Reason for the format, in one sentence.
        columns: The column mapping, if the configuration has one.
    """

    format: Format
    reason: str
    columns: ColumnMap | None = None

    def example(self, row: Row) -> Example:
        """Convert a row to an example; see :func:`row_example`."""
        return row_example(row, self.format, self.columns)

    def read_columns(self, data: Mapping[str, Any]) -> frozenset[str]:
        """Columns of a row that are read."""
        return read_columns(data, self.format) if self.columns is None else self.columns.read_columns


def detect(rows: Iterable[Row], source: str = "The file") -> Detection:
    """Detect the format that most of the first readable rows fit.

    Args:
        rows: Rows, of which the first 200 are inspected.
        source: Name of the rows' source, for messages.

    Raises:
        UserError: If no row can be read, or none fits a format; the message names the columns, the hint the nearest
            known column. Also if the rows have a question beside a text, which may or may not be its answer.
    """
    readable = _readable(rows, source)
    votes: dict[Format, int] = {}
    for data in readable:
        if (found := format_of(data)) is not None:
            votes[found] = votes.get(found, 0) + 1
    if not votes:
        raise _unknown_columns(readable[0], source)
    winner = max(votes, key=lambda name: votes[name])
    if winner == "text" and (asked := next(filter(None, map(question_beside_text, readable)), "")):
        raise UnknownColumnsError(
            f"{source} has {asked} beside text, and nothing says whether the text is the answer.",
            f'If it is, set data.columns = {{user = "{asked}", assistant = "text"}} '
            f"(--columns user={asked},assistant=text); to learn the text alone, "
            f'data.columns = {{text = "text"}} (--columns text=text).',
        )
    return Detection(winner, f"{_share(votes[winner], len(readable))} {FORMATS[winner]}.")


def choose(
    rows: Iterable[Row], wanted: str = "auto", source: str = "The file", columns: ColumnMap | None = None
) -> Detection:
    """The configured format, or the detected format for ``auto``.

    Args:
        rows: Rows, of which the first 200 are inspected.
        wanted: A format, or ``auto``.
        source: Name of the rows' source, for messages.
        columns: The column mapping of the configuration; it decides the format.

    Raises:
        UserError: As :func:`detect`, or if no row is of the wanted format or has the mapped columns.
    """
    if columns is not None:
        if wanted not in ("auto", *_ALIKE.get(columns.format, (columns.format,))):
            shown = one_line(wanted, 60)
            raise UserError(
                f"data.columns describes rows of the format {columns.format}, and data.format says {shown}.",
                "Remove one of the two.",
            )
        if (missing := missing_columns(columns, _readable(rows, source), source)) is not None:
            raise missing
        return Detection(columns.format, f"The columns are named: {columns.describe()}.", columns)
    if wanted == "auto":
        return detect(rows, source)
    readable = _readable(rows, source)
    chosen = next((name for name in FORMATS if name == wanted), None)
    if chosen is None:
        raise UserError(f"There is no format {one_line(wanted, 60)}.", f"The formats are {', '.join(FORMATS)}.")
    if not any(FITS[chosen](data) for data in readable):
        error = _unknown_columns(readable[0], source)
        raise UnknownColumnsError(f"{error.message[:-1]}, and {chosen} needs {FORMATS[chosen]}.", error.hint)
    return Detection(chosen, f"The configuration says {chosen}: {FORMATS[chosen]}.")


def refuse_untrainable(detection: Detection, source: str, objective: Objective) -> None:
    """Refuse rows that the training objective cannot use.

    Args:
        detection: Format of the rows.
        source: Name of the rows' source, for messages.
        objective: As ``train.objective``.

    Raises:
        UserError: For preference pairs and labeled answers if the objective needs other rows, and vice versa.
    """
    noun = COMPARED.get(detection.format)
    wanted = LEARNED.get(objective)
    if wanted is None and noun is not None:
        raise UserError(
            f"{source} holds {noun}, and train.objective is sft, which learns answers as they are.",
            "Set train.objective = dpo or orpo. To train on the good answers alone, name them: "
            'data.columns = {user = "prompt", assistant = "chosen"}.'
            if detection.format == "preference"
            else "Set train.objective = kto. To train on all answers alike: "
            'data.columns = {user = "prompt", assistant = "completion"}.',
        )
    if wanted is not None and detection.format != wanted:
        held = noun or f"rows of the format {detection.format}"
        fitting = "kto" if detection.format == "kto" else "dpo" if detection.format == "preference" else "sft"
        raise UserError(
            f"{source} holds {held}, and train.objective is {objective}, which learns from {COMPARED[wanted]}.",
            f"Give it {FORMATS[wanted]}, or set train.objective = {fitting}.",
        )


def row_example(row: Row, format: Format, columns: ColumnMap | None = None) -> Example:  # noqa: A002
    """Convert a row of a file to an example.

    Raises:
        RowError: The error of an unreadable row, ``has_media`` if it has more than text, or as :func:`to_example`.
    """
    if row.data is None:
        raise RowError(row.code, row.error)
    holders = media_columns(row.data, columns)
    refuse_media(row.data, holders, columns)
    example = to_example(row.data if columns is None else columns.apply(row.data), format)
    refuse_placeholders(example, holders)
    return example


def to_example(data: Mapping[str, Any], format: Format) -> Example:  # noqa: A002
    """Convert the columns of a row to a checked example.

    Raises:
        RowError: With a code listed in :class:`~core.data.conversation.RowError`.
    """
    return READERS[format](data)


def _readable(rows: Iterable[Row], source: str) -> list[Mapping[str, Any]]:
    readable: list[Mapping[str, Any]] = []
    first_error: Row | None = None
    for seen, row in enumerate(rows):
        if seen >= SAMPLE:
            break
        if row.data is not None:
            readable.append(row.data)
        elif first_error is None:
            first_error = row
    if readable:
        return readable
    if first_error is None:
        raise UserError(f"{source} has no rows.", "Give a file with at least one row.")
    raise UserError(
        f"{source} has no row that can be read: {first_error.place}: {one_line(first_error.error, 300)}",
        "Each row must be one JSON object, or one record of a CSV with a header.",
    )


def _share(count: int, total: int) -> str:
    if total == 1:
        return "The first row has"
    return f"Each of the first {total} rows has" if count == total else f"{count} of the first {total} rows have"


def _unknown_columns(data: Mapping[str, Any], source: str) -> UnknownColumnsError:
    columns = [str(key) for key in data]
    shown = ", ".join(one_line(name, 40) for name in columns[:12]) + (", …" if len(columns) > 12 else "")
    message = f"{source} has rows of no known format: their columns are {shown or 'none'}."
    if (guess := misspelled_column(columns)) is not None:
        name, known = guess
        return UnknownColumnsError(message, f"Did you mean {known}? Rename the column {one_line(name, 40)}.")
    every = "; ".join(f"{name} ({description})" for name, description in FORMATS.items())
    parts = "user", "assistant"
    shown_parts = ", ".join(f'{part} = "{one_line(name, 40)}"' for part, name in zip(parts, columns, strict=False))
    example = f": data.columns = {{{shown_parts}}}, with the right ones" if len(columns) > 1 else " in data.columns"
    return UnknownColumnsError(message, f"Name the columns{example}. The formats read as they are: {every}.")


#: Share of rows in another format above which a file is reported as mixed.
MIXED_SHARE = 0.05
# Formats that rows of one file may mix without ambiguity.
_COMPATIBLE: tuple[frozenset[Format], ...] = (
    frozenset({"messages", "sharegpt"}),
    frozenset({"alpaca", "prompt_completion"}),
)


def find_ambiguity(rows: Iterable[Row], detection: Detection, wanted: str = "auto") -> str:
    """Reason why the format of rows is ambiguous, in one sentence; empty if it is clear, or the user has chosen.

    Args:
        rows: The first rows.
        detection: The detected format.
        wanted: ``data.format``.
    """
    if wanted != "auto" or detection.columns is not None:
        return ""
    readable = [row.data for row in rows if row.data is not None]
    votes = Counter(found for data in readable if (found := format_of(data)) is not None)
    others = [(name, count) for name, count in votes.most_common() if not _same(name, detection.format)]
    if others and others[0][1] > MIXED_SHARE * len(readable):
        name, count = others[0]
        return (
            f"{votes[detection.format]} of the first {len(readable)} rows are {detection.format}, {count} are {name}."
        )
    # A second conversation in a row, in columns of its own.
    structured: tuple[Format, ...] = ("alpaca", "prompt_completion")
    for data in readable if detection.format in ("messages", "sharegpt") else ():
        for second in structured:
            if FITS[detection.format](data) and FITS[second](data):
                return f"The rows have the columns of {detection.format} and those of {second}."
    return ""


def _same(one: Format, other: Format) -> bool:
    return one == other or any({one, other} <= group for group in _COMPATIBLE)


#: Most names counted, and most names shown.
MOST_NAMES, SHOWN_NAMES = 1000, 12
_NAME_LENGTH = 80
#: Most cached sets of columns; most files have one.
_KEPT_SETS = 64


class UnreadColumns:
    """Finds the filled columns of rows that nothing reads.

    Args:
        detection: Format of the rows.
    """

    def __init__(self, detection: Detection) -> None:
        self._detection = detection
        self._by_columns: dict[tuple[str, ...], tuple[str, ...]] = {}

    def of(self, data: Mapping[str, Any]) -> list[str]:
        """Names of the filled, unread columns of a usable row."""
        columns = tuple(data)
        unread = self._by_columns.get(columns)
        if unread is None:
            read = self._detection.read_columns(data)
            unread = tuple(name for name in columns if name not in read)
            if len(self._by_columns) >= _KEPT_SETS:
                self._by_columns.clear()
            self._by_columns[columns] = unread
        return [name[:_NAME_LENGTH] for name in unread if _holds(data[name])]


def count_names(counts: Counter[str], found: Mapping[str, int]) -> None:
    """Add counts of columns, for at most :data:`MOST_NAMES` names, since every row may have other columns."""
    for name, count in found.items():
        if name in counts or len(counts) < MOST_NAMES:
            counts[name] += count


def describe_columns(names: Collection[str]) -> str:
    """Sorted names, safe to show: ``category, id``, or the first names and the number of the rest."""
    ordered = sorted(names)
    shown = ", ".join(one_line(name, 40) for name in ordered[:SHOWN_NAMES])
    more = len(ordered) - SHOWN_NAMES
    if more <= 0:
        return shown
    return f"{shown} and {'at least ' if len(ordered) >= MOST_NAMES else ''}{more} more"


def _holds(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value) and not value.isspace()
    return value is not None and value != [] and value != {}
