"""Derived columns: rows composed from several columns, for dataset types that need it."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from core.config.choices import Format
from core.data.conversation import RowError
from core.data.formats.mapping import ColumnMap
from core.errors import UserError
from core.text import one_line

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
