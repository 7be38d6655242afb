"""Dataset problems: the catalog of their kinds, and a tally of those found."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from core.text import one_line

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


def _drop(title: str, hint: str) -> Kind:
    return Kind("drop", title, hint)


#: Code of the note about columns that nothing reads.
COLUMNS_NOT_READ = "columns_not_read"

#: All problems by code. Codes of level ``drop`` come from :class:`~core.data.conversation.RowError`, and
#: ``not_trained_on`` from a format that a run refuses.
KINDS: dict[str, Kind] = {
    "not_json": _drop("no JSON", "Fix these lines: each must be one whole JSON object."),
    "not_an_object": _drop("JSON, but no object", "Make each row an object with named columns."),
    "not_utf8": _drop("not UTF-8", "Save the file as UTF-8."),
    "bad_csv": _drop("not as wide as the header", "Quote fields that hold the delimiter or a line break."),
    "too_long": _drop("too large to be read", "Cut these rows into several."),
    "wrong_keys": _drop("columns of another format", "Rename the columns, set data.columns, or split the file."),
    "no_messages": _drop("no messages", "Remove these rows."),
    "bad_role": _drop("unknown role", "Use system, user, assistant and tool, or name the roles in data.columns."),
    "role_order": _drop("turns out of order", "Let user and assistant take turns, a system message first."),
    "bad_content": _drop("unreadable content", "Make each content a text."),
    "has_media": _drop(
        "pictures, video or sound",
        "Only text is read. Where the texts do without the rest, remove its column and its placeholders.",
    ),
    "bad_tool_call": _drop("broken tool call", "Write each call with a name and its arguments."),
    "empty_answer": _drop("empty answer", "Fill in the answers, or remove these rows."),
    "no_answer": _drop("no answer", "Answer the last turn, or remove these rows."),
    "bad_label": _drop("labels that do not fit", "Label each token by itself or -100, weigh each message 0 or 1."),
    "bad_tokens": _drop("tokens that the model does not know", "Tokenize the rows with this model's tokenizer."),
    "overlong": _drop("longer than train.max_length", 'Raise train.max_length, or set data.overlong = "truncate".'),
    "nothing_supervised": _drop("nothing to learn", "See that an answer of the row is learned and not cut off."),
    "no_stop_token": _drop(
        "no token ends the answer", "Name a template that ends answers in template.name or template.file."
    ),
    "special_in_content": _drop(
        "a special token written out in a message", "Remove it from the text, or write it in another way."
    ),
    "template_error": _drop("refused by the chat template", "Fix the row, or name another template in template.name."),
    "template_rewrites": _drop(
        "not shown by the template as at inference",
        "Name another template, or tell this one to think (docs/templates.md).",
    ),
    "template_drops": _drop("left out by the chat template", "Name a template that shows this in template.file."),
    "no_reasoning": _drop(
        "no reasoning where the template begins with it",
        "Add the reasoning, or tell the template not to think (docs/templates.md).",
    ),
    "not_trained_on": _drop(
        "of a format that train.objective does not learn from",
        "Set train.objective, or name the columns to learn from in data.columns.",
    ),
    "empty_content": Kind("warn", "empty question or system message", "Fill these turns in, or remove the rows."),
    "duplicate": Kind("warn", "the same as an earlier row", "Keep one of each, unless you mean to weigh them more."),
    "near_duplicate": Kind(
        "note", "almost the same as an earlier row", "Keep one of each; copies are learned by heart."
    ),
    "leaked": Kind("warn", "also among the held-out rows", "Remove these rows from data.train or from data.eval."),
    "near_leaked": Kind(
        "note", "almost the same as a held-out row", "Remove these rows from data.train; what is measured is memory."
    ),
    "truncated": Kind("warn", "cut at train.max_length", "Raise train.max_length; a cut answer is never ended."),
    "encoding_damage": Kind(
        "warn", "damaged characters", "Read the source again in its true encoding; the model learns what is there."
    ),
    "control_characters": Kind("warn", "control characters", "Remove them; the model would learn to write them."),
    "secret": Kind("warn", "what looks like a key or a password", "Remove it, and revoke it if the file was shared."),
    "email": Kind("note", "e-mail addresses", "Replace them, if they are those of real people."),
    "label_only": Kind(
        "note", "an answer that is only a label", "Fine for a classifier; otherwise name the column with the answer."
    ),
    "test_answers": Kind(
        "note", "unread columns that look like test answers", "See that this is no benchmark that you measure on."
    ),
    "placeholder": Kind(
        "note",
        "placeholders of pictures, video or sound",
        "Fine where markup is meant; otherwise remove these rows: the model would answer about what it is never shown.",
    ),
    COLUMNS_NOT_READ: Kind(
        "note",
        "columns not read",
        "Nothing of them is learned. If one belongs to the rows, name all columns that do in data.columns.",
    ),
    "prompt_drops": Kind(
        "warn",
        "a part of the prompt that the chat template leaves out",
        "The model never sees it: name a template that shows it in template.file or template.name, or move its text "
        "into the question.",
    ),
    "answer_in_prompt": Kind(
        "note",
        "an answer that stands in the question as it is",
        "Fine where it is to be quoted; otherwise take it out of the question: the model would learn to copy.",
    ),
    "no_stop_learned": Kind(
        "warn", "the end of the answer is not learned", "Let the labels take in the token that ends the answer."
    ),
    "format_ambiguous": Kind("warn", "rows that may be read in another way", "Say how they are read: set data.format."),
}

_OTHER = _drop("not usable", "Look at these rows.")


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
