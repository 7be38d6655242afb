"""Dataset problems: the catalog of their kinds, and a tally of those found."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tomli

from core.data.exclusion import row_line
from core.text import one_line

if TYPE_CHECKING:
    from core.data.files.rows import Row

#: Most rows of a problem listed with their lines.
EXAMPLES = 20
#: Most rows of a problem whose numbers are kept, to filter by.
INDEXED = 1_000_000

#: ``drop``: the row is not used; ``warn``: it is used but should not be; ``note``: it may be intended.
Level = Literal["drop", "warn", "note"]
LEVELS: tuple[Level, ...] = ("drop", "warn", "note")


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Args:
        level: Consequence for the rows.
        title: Name of the problem, a few words.
        hint: Remedy, one sentence.
    """

    level: Level
    title: str
    hint: str


#: Code of the note about columns that nothing reads.
COLUMNS_NOT_READ = "columns_not_read"

_FILE = tomli.loads(Path(__file__).with_name("problems.toml").read_text(encoding="utf-8"))
#: All problems by code.
KINDS: dict[str, Kind] = {code: Kind(level, *words) for level in LEVELS for code, words in _FILE[level].items()}

_OTHER = Kind("drop", "not usable", "Look at these rows.")


def kind_of(code: str) -> Kind:
    """The kind with a code; a generic one for unknown codes."""
    return KINDS.get(code, _OTHER)


@dataclass(frozen=True)
class RowPlace:
    """Position of a row.

    Args:
        index: Number of the row, from 0, through all sources in their order.
        line: Line of its file, from 1; 0 if it shares the line with others.
        file: Name of its file if there are several, else empty. Untrusted: sanitize it.
    """

    index: int
    line: int
    file: str = ""

    @property
    def shown(self) -> str:
        """Position for messages: the line, or the row number if it shares its line; with the file if there are
        several.
        """
        where = str(self.line) if self.line else f"row {self.index + 1}"
        return f"{self.file}:{where}" if self.file and self.line else f"{self.file} {where}" if self.file else where


@dataclass(frozen=True)
class Problem:
    """A kind of problem and the rows that have it.

    Args:
        code: A key of :data:`KINDS`.
        count: Number of rows with it.
        places: Positions of the first :data:`EXAMPLES` rows.
        indices: Numbers of the first :data:`INDEXED` rows, ascending.
        detail: A sentence about the first row. It may quote the row: sanitize it.
    """

    code: str
    count: int
    places: tuple[RowPlace, ...] = ()
    indices: array[int] = field(default_factory=lambda: array("I"))
    detail: str = ""

    @property
    def kind(self) -> Kind:
        """Kind of the problem, with title and hint."""
        return kind_of(self.code)

    @property
    def hint(self) -> str:
        """Remedy, one sentence."""
        return self.kind.hint

    def rank(self) -> tuple[int, int, str]:
        """Sort key: problems that cost rows first, then by number of rows."""
        return LEVELS.index(self.kind.level), -self.count, self.code

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON, with the row numbers packed."""
        # Not base 85: Python's encoder takes a hundred megabytes for a million rows.
        return {
            "code": self.code,
            "count": self.count,
            "places": [[place.index, place.line, place.file] for place in self.places],
            "indices": base64.b64encode(self.indices.tobytes()).decode("ascii"),
            "detail": self.detail,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """The inverse of :meth:`to_dict`."""
        indices = array("I")
        indices.frombytes(base64.b64decode(data["indices"]))
        places = tuple(RowPlace(*place) for place in data["places"])
        return cls(data["code"], data["count"], places, indices, data["detail"])


class ProblemTally:
    """Collects problems row by row, in the order of the rows."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._indices: dict[str, array[int]] = {}
        self._details: dict[str, str] = {}

    def add(self, code: str, number: int, detail: str = "") -> None:
        """Record a problem of a row."""
        count = self._counts.get(code, 0)
        self._counts[code] = count + 1
        if count == 0:
            self._indices[code], self._details[code] = array("I"), detail
        if count < INDEXED:
            self._indices[code].append(number)

    def problems(self, place: Callable[[int], RowPlace]) -> list[Problem]:
        """The problems found; ``place`` returns the position of a row."""
        return [
            Problem(
                code,
                count,
                tuple(place(number) for number in self._indices[code][:EXAMPLES]),
                self._indices[code],
                self._details[code],
            )
            for code, count in self._counts.items()
        ]


#: Most lines listed; the rest are counted.
NAMED_LINES = 40


class FileLine(NamedTuple):
    """File and line of a row; in a file without lines, its row number."""

    file: str
    line: int

    @classmethod
    def of(cls, path: Path, row: Row) -> FileLine:
        """The place of a row, as a run names it.

        Args:
            path: Path of the file, or of the directory of files, that it was read from.
            row: The row.
        """
        return cls(row.file or path.name, row_line(path, row)[1])


def name_places(places: Iterable[FileLine]) -> str:
    """Positions in words, safe to show: ``train.jsonl lines 3, 17 and 24; more.csv line 2``; each once, in order."""
    by_file: dict[str, list[int]] = {}
    for place in sorted(set(places)):
        by_file.setdefault(place.file, []).append(place.line)
    left, named = NAMED_LINES, []
    for file, lines in by_file.items():
        shown, hidden = lines[:left], len(lines) - len(lines[:left])
        left -= len(shown)
        words = [str(line) for line in shown] + ([f"{hidden} more"] if hidden else [])
        text = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
        named.append(f"{one_line(file, 120)} {'line' if len(lines) == 1 else 'lines'} {text}")
    return "; ".join(named) or "their places are not known"
