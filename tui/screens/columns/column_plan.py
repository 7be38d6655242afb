"""The column mapping, without any widget: the columns of a file, the choices, and the resulting rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.config.choices import FORMATS, ROLES, ColumnRole, Objective
from core.config.schema import find_option
from core.data.conversation import CONTENT_KEYS, ROLE_KEYS, RowError, parsed
from core.data.files.rows import Row
from core.data.formats.detect import FITS, SAMPLE, Detection, choose, detect, find_parts, refuse_untrainable
from core.data.formats.mapping import ColumnMap, UnknownColumnsError
from core.errors import UserError
from core.text import one_line
from tui.datasets.view import DatasetView, Turn, turns_of

#: Maximum number of columns offered; a file with more has none that a person would look for in a list.
COLUMN_LIMIT = 20_000
#: Number of rows in the preview.
SHOWN_ROWS = 3
#: Characters of the rows that are kept; a few rows of a file with enormous ones are as good.
_SAMPLE_CHARACTERS = 16 << 20
_EXAMPLE_CHARACTERS = 120

#: The parts in groups: the title, and the parts with the content of their column.
GROUPS: tuple[tuple[str, tuple[tuple[ColumnRole, str], ...]], ...] = (
    (
        "Question and answer",
        (
            ("user", "what is asked"),
            ("assistant", "the answer, which is learned"),
            ("context", "put under what is asked"),
            ("system", "the system message"),
            ("history", "earlier questions and answers, in pairs"),
            ("tools", "tools that may be called"),
        ),
    ),
    (
        "A conversation in one column",
        (
            ("messages", "the list of messages"),
            ("role", "key of a message: who speaks"),
            ("content", "key of a message: what is said"),
            ("train", "key of a message: whether it is learned"),
            ("user_role", "name of the user"),
            ("assistant_role", "name of the assistant"),
            ("system_role", "name of the system message"),
            ("tool_role", "name of a tool's answer"),
            ("call_role", "name of a call of a tool"),
        ),
    ),
    ("Plain text", (("text", "learned as it is"),)),
    (
        "Answers that are judged",
        (("chosen", "the better answer"), ("rejected", "the worse answer"), ("label", "whether the answer is good")),
    ),
    ("Tokens", (("input_ids", "token ids"), ("labels", "what of them is learned"))),
)
#: Parts that are keys inside a message.
KEY_ROLES: tuple[ColumnRole, ...] = ("role", "content", "train")
#: Parts that are names of speakers.
SPEAKER_ROLES: tuple[ColumnRole, ...] = ("user_role", "assistant_role", "system_role", "tool_role", "call_role")


@dataclass(frozen=True)
class Candidate:
    """A candidate for a part; texts may be anything: sanitize them."""

    value: str
    example: str = ""


@dataclass(frozen=True)
class ColumnSample:
    """The first rows of a file, and the columns found in them."""

    source: str
    """The name of the file in messages."""
    rows: tuple[Row, ...]
    columns: tuple[Candidate, ...]
    left_out: int = 0
    """The number of columns left out: too many, or with a name that no configuration can hold."""
    detection: Detection | None = None
    """The detected format and columns, without the configuration's."""
    unknown: UserError | None = None
    """The reason why the detection failed."""

    @property
    def guess(self) -> Mapping[ColumnRole, str]:
        """The guessed columns of an unknown format; empty without a guess."""
        return self.unknown.columns if isinstance(self.unknown, UnknownColumnsError) else {}

    def parts(self, wanted: str) -> dict[ColumnRole, str]:
        """The columns read by a format, or the detected or guessed columns for ``auto``; empty if nothing is known."""
        if wanted == "auto":
            return dict(self.detection.parts) if self.detection is not None else dict(self.guess)
        known = next((name for name in FORMATS if name == wanted), None)
        if known is None:
            return {}
        row = next((row.data for row in self.rows if row.data is not None and FITS[known](row.data)), {})
        found = find_parts(row, known)
        return {role: found[role] for role in ROLES if role in found}

    def example(self, column: str) -> str:
        """An example value of a column, on one line."""
        return next((one.example for one in self.columns if one.value == column), "")


def read_sample(view: DatasetView) -> ColumnSample:
    """Read the first rows of an open file; blocking.

    Raises:
        UserError: If the file can no longer be read.
    """
    rows: list[Row] = []
    examples: dict[str, str] = {}
    left_out: set[str] = set()
    size = 0
    while len(rows) < SAMPLE and size < _SAMPLE_CHARACTERS:
        page = view.file.rows(len(rows), 20)
        if not page:
            break
        for row in page[: SAMPLE - len(rows)]:
            rows.append(row)
            size += _collect(row.data or {}, examples, left_out)
            if size >= _SAMPLE_CHARACTERS:
                break
    source = one_line(view.path.name, 80)
    detection, unknown = None, None
    try:
        detection = detect(rows, source)
    except UserError as error:
        unknown = error
    columns = tuple(Candidate(name, text) for name, text in examples.items())
    return ColumnSample(source, tuple(rows), columns, len(left_out), detection, unknown)


def _collect(data: Mapping[str, Any], examples: dict[str, str], left_out: set[str]) -> int:
    """Collect the columns of a row with their first non-empty value; returns the size of the row in characters."""
    size = 0
    for name, value in data.items():
        text = _text(value)
        size += len(name) + len(text)
        if not examples.get(name):
            if not _is_writable(name) or (name not in examples and len(examples) >= COLUMN_LIMIT):
                left_out.add(name)
            else:
                shown = "" if value is None else text.strip()[:_EXAMPLE_CHARACTERS]
                examples[name] = one_line(shown)
    return size


def _is_writable(name: str) -> bool:
    """True if a configuration file, which is UTF-8, can hold the name."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


# Candidates.


def visible_roles(columns: Mapping[ColumnRole, str]) -> Iterator[tuple[str, list[tuple[ColumnRole, str]]]]:
    """Groups with their applicable parts; keys and speakers need a column of messages."""
    has_messages = bool({"messages", "chosen"} & set(columns))
    for title, parts in GROUPS:
        shown = [
            (role, about)
            for role, about in parts
            if has_messages or role in columns or role not in (*KEY_ROLES, *SPEAKER_ROLES)
        ]
        yield title, shown


def candidates(role: ColumnRole, columns: Mapping[ColumnRole, str], sample: ColumnSample) -> Sequence[Candidate]:
    """Candidates for a part, found in the first rows: columns, keys of messages, or names of speakers."""
    if role not in (*KEY_ROLES, *SPEAKER_ROLES):
        return sample.columns
    role_keys = (columns["role"],) if "role" in columns else ROLE_KEYS
    contents = (columns["content"],) if "content" in columns else CONTENT_KEYS
    found: dict[str, str] = {}
    for turn in _turns(columns, sample):
        named = dict(turn)
        if role in SPEAKER_ROLES:
            speaker = next((turn[k] for k in role_keys if k in turn), None)
            said = next((turn[k] for k in contents if k in turn), "")
            named = {speaker.strip(): said} if isinstance(speaker, str) else {}
        for name, value in named.items():
            if _is_writable(name):
                found.setdefault(name, one_line(_text(value), _EXAMPLE_CHARACTERS))
    return [Candidate(name, text) for name, text in list(found.items())[:200]]


def _turns(columns: Mapping[ColumnRole, str], sample: ColumnSample) -> Iterator[Mapping[str, Any]]:
    for row in sample.rows:
        for role in ("messages", "chosen", "rejected"):
            found = parsed((row.data or {}).get(columns.get(role, "")))
            for turn in found if isinstance(found, list) else [found]:
                if isinstance(turn, dict):
                    yield turn


def format_candidates(sample: ColumnSample) -> list[Candidate]:
    """Formats accepted by the configuration, with a description of their rows."""
    option = find_option("data.format")
    found = sample.detection
    reason = f"{found.format}: {found.reason}" if found is not None else "no known format is recognized"
    known: dict[str, str] = {"auto": reason, **{str(name): text for name, text in FORMATS.items()}}
    return [Candidate(name, known.get(name, "")) for name in (option.choices if option is not None else ("auto",))]


# Choice.

#: The subject of a line of the form: a column for a part, or the format of all rows.
Choosable = ColumnRole | Literal["format"]
FORMAT: Literal["format"] = "format"


@dataclass
class ColumnChoice:
    """The chosen format and columns."""

    wanted: str = "auto"
    """The format."""
    columns: dict[ColumnRole, str] = field(default_factory=dict)
    """The columns by part, named by hand or detected."""
    by_hand: bool = False
    """True if the columns are named by hand."""

    @property
    def named(self) -> dict[ColumnRole, str] | None:
        """The columns for the configuration; None if it names none."""
        return dict(self.columns) if self.by_hand and self.columns else None

    @property
    def is_plain(self) -> bool:
        """True if nothing has been chosen."""
        return self.named is None and self.wanted == "auto"

    def value(self, part: Choosable) -> str:
        """The choice for a part; empty for none."""
        return self.wanted if part == FORMAT else self.columns.get(part, "")

    def recognize(self, sample: ColumnSample) -> None:
        """Fill in the detected columns, unless they are named by hand."""
        if not self.by_hand:
            self.columns = sample.parts(self.wanted)
            # A guess is no recognition: it holds only once it is saved.
            self.by_hand = self.wanted == "auto" and bool(sample.guess)

    def take(self, part: Choosable, value: str, sample: ColumnSample) -> bool:
        """Choose a value for a part; an empty text clears it.

        Returns:
            Whether the choice may have changed.
        """
        if part == FORMAT:
            self.wanted = value or "auto"
            self.recognize(sample)
            return True
        if value == self.columns.get(part, ""):
            return False
        changed = {**self.columns, part: value}
        self.columns = {known: changed[known] for known in ROLES if changed.get(known)}
        self.by_hand = True
        return True

    def clear(self, sample: ColumnSample) -> None:
        """Clear the columns and detect the format."""
        self.by_hand, self.wanted = False, "auto"
        self.recognize(sample)

    def candidates(self, part: Choosable, sample: ColumnSample) -> Sequence[Candidate]:
        """The candidates for a part."""
        return format_candidates(sample) if part == FORMAT else candidates(part, self.columns, sample)


# Preview.


@dataclass(frozen=True)
class ColumnPreview:
    """The first rows, read with a format and columns."""

    turns: tuple[Turn, ...] = ()
    problem: UserError | None = None
    """The reason why no row can be read this way."""
    detection: Detection | None = None
    used: int = 0
    total: int = 0
    warning: str = ""
    """A warning about an unusable row, or about a format that the objective cannot train on."""


def preview_columns(
    sample: ColumnSample, wanted: str, columns: Mapping[ColumnRole, str] | None, objective: Objective = "sft"
) -> ColumnPreview:
    """Read the first rows with a format and optional columns; never raises for their content."""
    total = len(sample.rows)
    try:
        named = ColumnMap(dict(columns)) if columns is not None else None
        detection = choose(sample.rows, wanted, sample.source, named)
    except UserError as error:
        turns = tuple(_numbered(sample.rows, lambda row: [Turn(one_line(k, 40), _text(v)) for k, v in _cells(row)]))
        return ColumnPreview(turns, error, total=total)
    failures: list[tuple[Row, RowError]] = []
    for row in sample.rows:
        try:
            detection.example(row)
        except RowError as error:
            failures.append((row, error))

    def shown(row: Row) -> list[Turn]:
        try:
            return list(turns_of(detection.example(row)))
        except RowError as error:
            return [Turn("problem", error.message)]

    warning = ""
    try:
        refuse_untrainable(detection, sample.source, objective)
    except UserError as error:
        warning = str(error)
    if failures and not warning:
        row, first = failures[0]
        warning = f"row {row.index + 1}: {first.message}"
    turns = tuple(_numbered(sample.rows, shown))
    return ColumnPreview(turns, None, detection, total - len(failures), total, warning)


def _numbered(rows: Iterable[Row], show: Callable[[Row], Iterable[Turn]]) -> Iterator[Turn]:
    for row in list(rows)[:SHOWN_ROWS]:
        yield Turn(f"── row {row.index + 1}", "")
        yield from show(row)


def _cells(row: Row) -> list[tuple[str, Any]]:
    return list(row.data.items())[:40] if row.data is not None else [("file", row.raw)]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):  # nested as deep as it could just be read
        return "…"
