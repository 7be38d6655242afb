"""Column mapping: the columns of a row by role, as set in ``data.columns``, and rows composed from several columns."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from core.config.choices import ROLES, ColumnRole, Format
from core.data.conversation import CALL_ROLE, RowError, parsed, read_transcript
from core.data.formats.guess import mapping_line, width
from core.errors import UserError
from core.text import one_line

#: Roles that stand for keys of a message, or names of speakers, instead of columns.
_KEYS: tuple[ColumnRole, ...] = ("role", "content", "train")
_SPEAKERS: dict[ColumnRole, str] = {
    "user_role": "user",
    "assistant_role": "assistant",
    "system_role": "system",
    "tool_role": "tool",
    "call_role": CALL_ROLE,
}
_ASKED: frozenset[ColumnRole] = frozenset({"user", "messages", "context", "system", "history", "tools"})
#: Roles of columns that a format reads.
_READ: dict[Format, frozenset[ColumnRole]] = {
    "tokens": frozenset({"input_ids", "labels"}),
    "preference": _ASKED | {"chosen", "rejected"},
    "kto": _ASKED | {"assistant", "label"},
    "messages": frozenset({"messages", "system", "tools"}),
    "prompt_completion": _ASKED - {"messages"} | {"assistant"},
    "text": frozenset({"text"}),
}
_OPTIONAL: frozenset[ColumnRole] = frozenset({"context", "system", "history", "tools", "labels"})
#: Column names in the format of the mapped row.
_CANONICAL: dict[ColumnRole, str] = {"user": "prompt", "assistant": "completion"}

_NUMBER = re.compile(r"[-+]?\d[\d.,]*%?")
#: Fewest words of a sentence.
_SENTENCE = 5

#: Most columns, and characters of their names, compared to find a similar name.
_LOOKED_AT, _NAME_LENGTH = 64, 40


class UnknownColumnsError(UserError):
    """The columns of the rows fit no format; ``data.columns`` can name them.

    Args:
        message: As in :class:`~core.errors.UserError`.
        hint: As in :class:`~core.errors.UserError`.
        columns: Guessed columns by role; empty without a guess.
    """

    def __init__(self, message: str, hint: str = "", columns: Mapping[ColumnRole, str] | None = None) -> None:
        super().__init__(message, hint)
        self.columns = dict(columns or {})


@dataclass(frozen=True)
class ColumnMap:
    """Column mapping from roles to the columns of a dataset; other columns are not read.

    Args:
        columns: For ``messages``, ``user``, ``assistant``, ``context`` (put under the user's text), ``system``,
            ``history``, ``tools``, ``text``, ``chosen``, ``rejected``, ``label``, ``input_ids``, ``labels``: the
            column. For ``role``, ``content`` and ``train`` (the flag of trained messages): the key of a message. For
            ``user_role`` and the like: names of the speaker, separated by commas.
        constants: Columns with the same value in every row, under their canonical names: ``system``.
        media: Columns that hold pictures, video or sound, with their kinds: ``image``, ``video``, ``audio``.

    Raises:
        UserError: If the roles do not make a trainable row.
    """

    columns: Mapping[ColumnRole, str]
    constants: Mapping[str, str] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = set(self.columns)
        hint = 'Write, for example, data.columns = {user = "question", assistant = "answer"}.'
        if unknown := sorted(named - set(ROLES)):
            meant = nearest_column(unknown[0], ROLES)
            raise UserError(
                f"data.columns has no part {one_line(unknown[0], 40)}.",
                f"Did you mean {meant}?" if meant else f"The parts are {', '.join(ROLES)}.",
            )
        if ("chosen" in named) != ("rejected" in named):
            raise UserError("data.columns names only one of chosen and rejected.", "Name both, or neither.")
        if self._format() is None:
            raise UserError("data.columns names no column to learn from.", hint)
        if "assistant" in named and not named & {"user", "messages", "history"}:
            raise UserError("data.columns names an answer and nothing that is asked.", hint)
        if named & {*_KEYS, *_SPEAKERS} and not named & {"messages", "chosen"}:
            raise UserError("data.columns names keys of messages and no column of messages.", 'Add messages = "...".')

    @property
    def format(self) -> Format:
        """Format of the rows that :meth:`apply` makes."""
        return cast(Format, self._format())

    @functools.cached_property
    def read_columns(self) -> frozenset[str]:
        """Columns with a role that the format reads."""
        return frozenset(column for role, column in self.columns.items() if role in _READ[self.format])

    @property
    def numbers(self) -> frozenset[str]:
        """The columns, if all are named by their numbers, as in a CSV without a header; empty otherwise."""
        return self.read_columns if all(map(str.isdecimal, self.read_columns)) else frozenset()

    def _format(self) -> Format | None:
        known: tuple[tuple[ColumnRole, Format], ...] = (
            ("input_ids", "tokens"),
            ("chosen", "preference"),
            ("label", "kto"),
            ("messages", "messages"),
            ("assistant", "prompt_completion"),
            ("text", "text"),
        )
        return next((name for role, name in known if role in self.columns), None)

    @functools.cached_property
    def _speakers(self) -> dict[str, str]:
        named = [(name, self.columns[part]) for part, name in _SPEAKERS.items() if part in self.columns]
        return {speaker.strip(): name for name, speakers in named for speaker in speakers.split(",")}

    def describe(self) -> str:
        """The roles and their columns, in words."""
        pairs = [f"{role} is {one_line(column, 40)}" for role, column in self.columns.items()]
        return ", ".join(pairs)

    def missing(self, data: Mapping[str, Any]) -> list[str]:
        """The required columns that a row lacks."""
        needed = [role for role in self.columns if role not in (*_OPTIONAL, *_KEYS, *_SPEAKERS)]
        return [self.columns[role] for role in needed if self.columns[role] not in data]

    def apply(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A row converted to the columns that its format reads.

        Raises:
            RowError: ``wrong_keys`` if a column is missing.
        """
        if absent := self.missing(data):
            near = nearest_column(absent[0], data)
            guess = f" Did you mean {one_line(near, 40)}?" if near else ""
            raise RowError(
                "wrong_keys", f"The row has no column '{one_line(absent[0], 40)}', which data.columns names.{guess}"
            )
        row: dict[str, Any] = dict(self.constants)
        for role, column in self.columns.items():
            if role in (*_KEYS, *_SPEAKERS, "context") or column not in data:
                continue
            value = data[column]
            if role == "messages" and isinstance(value, str) and (turns := read_transcript(value)) is not None:
                value = [turn.fields() for turn in turns]
            row[_CANONICAL.get(role, role)] = (
                self._renamed(value) if role in ("messages", "chosen", "rejected") else value
            )
        context = data.get(self.columns["context"]) if "context" in self.columns else None
        if isinstance(context, str) and context.strip() and isinstance(row.get("prompt"), str):
            row["prompt"] = f"{row['prompt']}\n{context}" if row["prompt"].strip() else context
        return row

    def _renamed(self, value: Any) -> Any:
        """Messages with their keys and speakers renamed to the standard ones."""
        found = parsed(value)
        if isinstance(found, dict):
            return self._renamed_turn(found)
        return [self._renamed_turn(turn) for turn in found] if isinstance(found, list) else value

    def _renamed_turn(self, turn: Any) -> Any:
        if not isinstance(turn, dict):
            return turn
        role_key, content_key, train_key = (self.columns.get(part) for part in _KEYS)
        kept = {key: value for key, value in turn.items() if key not in (role_key, content_key)}
        if train_key in turn:
            kept["train"] = turn[train_key]
        role = turn.get(role_key) if role_key else next((turn[key] for key in ("role", "from") if key in turn), None)
        content_keys = (content_key,) if content_key else ("content", "value")
        for key in content_keys:
            if key in turn:
                kept["content"] = turn[key]
                break
        if role is not None:
            kept["role"] = self._speakers.get(role.strip(), role) if isinstance(role, str) else role
        return kept


def missing_columns(columns: ColumnMap, rows: Iterable[Mapping[str, Any]], source: str) -> UserError | None:
    """The error if no row has the mapped columns; None if any row has them."""
    first: tuple[str, list[str]] | None = None
    for data in rows:
        absent = columns.missing(data)
        if not absent:
            return None
        if first is None:
            first = absent[0], [str(key) for key in data]
    if first is None:
        return None
    column, present = first
    near = nearest_column(column, present)
    shown = ", ".join(one_line(name, 40) for name in present[:12]) + (", …" if len(present) > 12 else "")
    return UnknownColumnsError(
        f"{source} has no column '{one_line(column, 40)}', which data.columns names; it has {shown or 'none'}.",
        f"Did you mean {one_line(near, 40)}?" if near else "Name one of these in data.columns.",
    )


def headless(rows: Sequence[Mapping[str, Any]], source: str) -> UnknownColumnsError | None:
    """The question if a CSV has a header, if the names of its columns look like the cells of a record; None otherwise.

    Of the two widest columns the first is taken for the question, unless it repeats itself, as labels do.

    Args:
        rows: The first rows.
        source: Name of the rows' source, for the message.
    """
    names = list(rows[0])
    cell = next(filter(_is_cell, names), None)
    if cell is None or not all(isinstance(value, str) for value in rows[0].values()):
        return None
    cells = [[name, *(text for data in rows if isinstance(text := data.get(name), str))] for name in names]
    widest = sorted(range(len(names)), key=lambda place: -sum(map(width, cells[place])))[:2]
    asked, *answers = sorted(widest, key=lambda place: (2 * len(set(cells[place])) <= len(cells[place]), place))
    parts: dict[ColumnRole, str] = {"text": "1"}
    if answers:
        parts = {"user": str(asked + 1), "assistant": str(answers[0] + 1)}
    return UnknownColumnsError(
        f"The first line of {source} looks like a record ({one_line(cell, 40)}): has the file a header?",
        f"If not, number its columns: {mapping_line(parts)}. If it has, name two of its columns in the same way.",
    )


def _is_cell(name: str) -> bool:
    """True if the name of a column is rather a number or a sentence."""
    name = name.strip()
    return bool(_NUMBER.fullmatch(name)) or len(name.split()) >= _SENTENCE or name.endswith(tuple("?!。？！"))


def nearest_column(name: str, columns: Iterable[str]) -> str | None:
    """The column with the most similar name, ignoring case; None if none is similar."""
    shown = tuple(str(column)[:_NAME_LENGTH] for column in itertools.islice(columns, _LOOKED_AT))
    return _nearest(name[:_NAME_LENGTH], shown)


@functools.lru_cache(maxsize=256)
def _nearest(name: str, columns: tuple[str, ...]) -> str | None:
    """:func:`nearest_column`, cached, since row after row lacks the same column."""
    by_fold = {column.casefold(): column for column in columns}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[near[0]] if near else None


Build = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class TextFormat:
    """A format string with named fields, such as ``"Q: {question}"``; doubled braces are literal.

    Args:
        pieces: Literal text before each field, and the name of the field; None at the end.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, names: Collection[str], where: str) -> TextFormat:
        """Parse a format string.

        Args:
            text: The text.
            names: Allowed names of fields.
            where: Name of the format string, for the error.

        Raises:
            UserError: If braces do not match, or a field is not just a name from ``names``.
        """
        pieces: list[tuple[str, str | None]] = []
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if name is not None and (name not in names or spec or conversion):
                    raise UserError(
                        f"{where} has the place {{{one_line(name, 40)}}}, which is not known.",
                        f"The places are {', '.join(f'{{{known}}}' for known in names)}; double other braces.",
                    )
                pieces.append((literal, name))
        except ValueError as error:
            raise UserError(f"{where} cannot be read: {one_line(str(error), 100)}.", "Double single braces.") from error
        return cls(tuple(pieces))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with its fields filled in; braces in the values are literal."""
        return "".join(literal + (values[name] if name is not None else "") for literal, name in self.pieces)


@dataclass(frozen=True)
class BuiltColumns(ColumnMap):
    """A :class:`~core.data.formats.mapping.ColumnMap` that composes rows with a function.

    Args:
        columns: Required columns, under arbitrary roles.
        constants: As in :class:`~core.data.formats.mapping.ColumnMap`.
        media: As in :class:`~core.data.formats.mapping.ColumnMap`.
        reads: Format of the rows that ``build`` makes.
        build: Makes a row of that format; may raise :class:`~core.data.conversation.RowError`.
        words: Description of the composed row.
        optional: Columns read if present.
    """

    reads: Format = "prompt_completion"
    build: Build = dict
    words: str = ""
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Skip the checks of :class:`~core.data.formats.mapping.ColumnMap`, since roles are arbitrary here."""

    @property
    def format(self) -> Format:
        """Format of the rows that :meth:`apply` makes."""
        return self.reads

    @functools.cached_property
    def read_columns(self) -> frozenset[str]:
        """Columns that are read."""
        return frozenset((*self.columns.values(), *self.optional))

    def describe(self) -> str:
        """Description of the composed row."""
        return self.words

    def missing(self, data: Mapping[str, Any]) -> list[str]:
        """The required columns that a row lacks."""
        return [column for column in self.columns.values() if column not in data]

    def apply(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A row converted to the columns that its format reads.

        Raises:
            RowError: ``wrong_keys`` if a column is missing, or any that ``build`` raises.
        """
        if absent := self.missing(data):
            raise RowError("wrong_keys", f"The row has no column '{one_line(absent[0], 40)}'.")
        return {**self.constants, **self.build(data)}


def text_of(data: Mapping[str, Any], column: str) -> str:
    """Text of a column; empty if the column is missing or null.

    Raises:
        RowError: ``bad_content`` if it is not text.
    """
    value = data.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("bad_content", f"The column '{one_line(column, 40)}' is not a text.")
    return value
