"""Rows put together from several columns, as some datasets want it before anything can be learned of them."""

from __future__ import annotations

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
    """A text with named places in it, as ``"Q: {question}"``; doubled braces are braces.

    Args:
        pieces: What stands before each place, and the place's name; None at the end.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, names: Collection[str], where: str) -> TextFormat:
        """Read one.

        Args:
            text: The text.
            names: What places may be called.
            where: What it is, for the error.

        Raises:
            UserError: If its braces do not match, or a place is none of those or more than a name.
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
        """The text with its places filled; braces in the values are only braces."""
        return "".join(literal + (values[name] if name is not None else "") for literal, name in self.pieces)


@dataclass(frozen=True)
class BuiltColumns(ColumnMap):
    """A :class:`~core.data.formats.mapping.ColumnMap` that puts rows together by a function.

    Args:
        columns: The columns that a row must have, by any part; they are looked for and named in messages.
        constants: See there.
        reads: The format of the rows that ``build`` makes.
        build: Makes a row of that format; may raise :class:`~core.data.conversation.RowError`.
        words: What is put together, in words.
        optional: Columns that are read where they are there.
    """

    reads: Format = "prompt_completion"
    build: Build = dict
    words: str = ""
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Nothing to check: whoever makes one knows what it needs."""

    @property
    def format(self) -> Format:
        """The format of the rows that :meth:`apply` makes."""
        return self.reads

    @property
    def read_columns(self) -> frozenset[str]:
        """The columns that something is read from."""
        return frozenset((*self.columns.values(), *self.optional))

    def describe(self) -> str:
        """What is put together, in words."""
        return self.words

    def missing(self, data: Mapping[str, Any]) -> list[str]:
        """The columns that a row should have and has not."""
        return [column for column in self.columns.values() if column not in data]

    def apply(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A row with the columns that its format reads.

        Raises:
            RowError: ``wrong_keys`` if a column is missing, or what ``build`` raises.
        """
        if absent := self.missing(data):
            raise RowError("wrong_keys", f"The row has no column '{one_line(absent[0], 40)}'.")
        return {**self.constants, **self.build(data)}


def text_of(data: Mapping[str, Any], column: str) -> str:
    """A column's text; an absent one is empty.

    Raises:
        RowError: ``bad_content`` if it is none.
    """
    value = data.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError("bad_content", f"The column '{one_line(column, 40)}' is not a text.")
    return value
