"""Roles of columns by their names and contents: names in another spelling, pairs of answers, and guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config.choices import ColumnRole
from core.data.conversation import parsed, read_transcript
from core.text import one_line

#: Names of a question and of an answer, the surest first.
_QUESTIONS = (
    *("question", "instruction", "prompt", "query", "problem", "input", "inputs", "request", "utterance", "task"),
    "ask",
)
_ANSWERS = (
    *("answer", "response", "completion", "output", "outputs", "solution", "reply", "sql", "target", "targets"),
    *("truth", "summary", "translation", "assistant"),
)
#: Further names of an answer where another column is the question: a program, or the query of text-to-SQL.
_ANSWERS_TO = (*_ANSWERS, "code", "query")
#: Last words of the names of texts that a question is about.
_CONTEXTS = frozenset(("context", "passage", "document", "schema", "background"))
_LABELS = ("label", "labels", "category", "class", "intent", "sentiment", "emotion", "topic")
#: Last words of the names of columns about a row.
_ABOUT = frozenset(
    (
        *("id", "ids", "uid", "uuid", "idx", "index", "hash", "key", "name", "title", "url", "link", "path", "file"),
        *("date", "time", "timestamp", "lang", "language", "source", "type", "split", "model", "version", "author"),
        *("user", "role", "test", "tests", "provider", "domain", "tokens", "context", "passage", "system", "level"),
    )
)
#: Words of the better and the worse of two answers. Of ``j`` and ``k``, StackExchange's, ``j`` is the better one.
_BETTER_WORSE = (
    *(("chosen", "rejected"), ("j", "k"), ("better", "worse"), ("preferred", "rejected"), ("accepted", "rejected")),
    *(("preferred", "dispreferred"), ("preferred", "other"), ("winner", "loser"), ("win", "lose"), ("good", "bad")),
)
_WORDS = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])|\d+")
#: Values that are not texts to learn: numbers, dates, addresses, hashes and identifiers. Long texts take
#: linear time.
_CODES = re.compile(r"[\d\s.,:/TZ+-]+|\w+://\S+|[0-9a-f-]{16,}|(?:[^\W\d_]|[.-])*[\d_/][\w./-]*", re.IGNORECASE)
#: Mean width from which texts are long; names and labels are shorter.
_LONG = 20
#: Longest name that a hint writes out.
_NAME_LENGTH = 80


def folded(name: str) -> str:
    """A column name without case, spaces, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def width(text: str) -> float:
    """Characters of a text, of which Chinese and Japanese ones count twice, since they say more than a letter."""
    return (len(text) + len(text.encode(errors="surrogatepass"))) / 2


def is_context(name: str) -> bool:
    """True for the name of a text that a question is about."""
    return not _CONTEXTS.isdisjoint(_words(name)[-1:])


def first_filled(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Every column of some rows, with its first filled value."""
    found: dict[str, Any] = {}
    for data in rows:
        for name, value in data.items():
            if found.get(name) in (None, "", [], {}):
                found[name] = value
    return found


def mapping_line(columns: Mapping[ColumnRole, str]) -> str:
    """A column mapping as the whole line for a configuration, and for the command if its form can hold the names."""
    # JSON's escapes are those of TOML.
    quoted = {role: json.dumps(one_line(name, 200), ensure_ascii=False) for role, name in columns.items()}
    pairs = ", ".join(f"{role} = {name}" for role, name in quoted.items())
    line = f"data.columns = {{{pairs}}}"
    if any("," in name or '"' in name or name != name.strip() for name in columns.values()):
        return line
    flag = ",".join(f"{role}={name}" for role, name in columns.items())
    flag = f'"{flag}"' if " " in flag else flag
    return f"{line} (--columns {flag})"


def find_pair(rows: Sequence[Mapping[str, Any]]) -> dict[ColumnRole, str]:
    """Columns of a better and a worse answer, with the question if there is one; empty without such a pair."""
    filled = first_filled(rows)
    by_words = {_words(name): name for name, value in filled.items() if isinstance(value, (str, list, dict))}
    for words, name in by_words.items():
        for better, worse in _BETTER_WORSE if len(words) > 1 or words[:1] in (("chosen",), ("preferred",)) else ():
            other = by_words.get(tuple(worse if word == better else word for word in words))
            if better not in words or other is None:
                continue
            rest = [column for column in _columns(rows) if column.name not in (name, other)]
            pair: dict[ColumnRole, str] = {"chosen": name, "rejected": other}
            if (asked := _named(rest, _QUESTIONS)) is not None:
                return {"user": asked.name, **pair}
            if isinstance(filled[name], str) and read_transcript(filled[name]):
                return pair
    return {}


def find_transcripts(rows: Sequence[Mapping[str, Any]]) -> dict[ColumnRole, str]:
    """Column with a transcript in most rows; empty without one."""
    for name, value in first_filled(rows).items():
        if isinstance(value, str) and read_transcript(value):
            read = sum(isinstance(text := data.get(name), str) and bool(read_transcript(text)) for data in rows)
            if 2 * read > len(rows):
                return {"messages": name}
    return {}


def answer_beside(rows: Sequence[Mapping[str, Any]], text: str) -> str:
    """Column that may be the answer to a text, such as a label; empty without one."""
    for column in _columns(rows):
        if column.is_text and column.name != text and folded(column.name) in (*_ANSWERS_TO, *_LABELS):
            return column.name
    return ""


def guess_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[ColumnRole, str], str]:
    """Guess at question and answer: known names first, then long texts that differ from row to row.

    Names of rows, addresses, dates, nested values, and labels without a text to label are never taken for an answer.

    Returns:
        The columns by role, empty without an honest guess; and then, in words, what the rows lack.
    """
    columns = [column for column in _columns(rows) if column.is_writable]
    texts = [column for column in columns if column.is_text and column.words[-1:] and column.words[-1] not in _ABOUT]
    long = [column for column in texts if column.is_long]
    asked = _named(texts, _QUESTIONS)
    left = [column for column in texts if column is not asked]
    answer = _named(left, _ANSWERS if asked is None else _ANSWERS_TO)
    if asked is None:
        left = [column for column in long if column is not answer]
        if answer is None and left:
            short = [column for column in texts if not column.is_long]
            labels = [column for column in short if column.is_repeated] if len(left) == 1 else []
            answer = _named(short, _LABELS) or (labels[0] if len(labels) == 1 else None)
        if answer is not None:
            asked = max(left, key=lambda column: column.length, default=None)
        elif len(left) == 2 and _named(left, _ANSWERS_TO) is None:
            asked, answer = left
    elif answer is None:
        left = [column for column in long if column is not asked]
        answer = max(left, key=lambda column: column.length, default=None)
    if answer is not None and (alike := [column for column in texts if _are_alike(column, answer)]):
        names = f"{one_line(answer.name, 40)} and {one_line(alike[0].name, 40)}"
        return {}, f"{names} side by side: write the better answer to chosen and the worse to rejected, or map one."
    if asked is not None and answer is not None:
        pair: dict[ColumnRole, str] = {"user": asked.name, "assistant": answer.name}
        about = [column.name for column in columns if column.is_text and is_context(column.name)]
        if about and about[0] not in pair.values():
            pair["context"] = about[0]
        return pair, ""
    lacking = [noun for noun, found in (("questions", asked), ("answers", answer)) if found is None]
    nested = [one_line(column.name, 40) for column in columns if column.is_nested][:4]
    why = f" ({', '.join(nested)}: lists and objects are not read as texts)" if nested else ""
    alone = ""
    if asked is None and answer is None and len(long) == 1:
        alone = f" To learn {one_line(long[0].name, 40)} alone as plain text: {mapping_line({'text': long[0].name})}."
    return {}, f"no column of {' and none of '.join(lacking)}{why}.{alone}"


@dataclass(frozen=True)
class _Column:
    """A column in the first rows."""

    name: str
    words: tuple[str, ...]
    is_text: bool
    is_nested: bool
    is_repeated: bool
    """Its texts are short and few, as labels are."""
    is_long: bool
    """Its texts are long and differ from row to row."""
    length: float
    """Mean width of its texts."""

    @property
    def is_writable(self) -> bool:
        return self.name == one_line(self.name, _NAME_LENGTH)


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORDS.findall(name))


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[_Column]:
    values: dict[str, list[Any]] = {}
    for data in rows:
        for name, value in data.items():
            if value not in (None, ""):
                values.setdefault(name, []).append(value)
    return [_column(name, found, len(rows)) for name, found in values.items()]


def _column(name: str, values: Sequence[Any], rows: int) -> _Column:
    texts = [value for value in values if isinstance(value, str) and not isinstance(parsed(value), (list, dict))]
    is_text = 2 * len(texts) > rows
    length = sum(map(width, texts)) / len(texts) if texts else 0.0
    codes = sum(_CODES.fullmatch(text.strip()) is not None for text in texts)
    is_varied = 2 * len(set(texts)) > len(texts) and 2 * codes <= len(texts)
    is_nested = any(isinstance(value, (list, dict)) for value in values)
    is_long = length >= _LONG
    is_repeated = is_text and not is_long and 2 * len(set(texts)) <= len(texts)
    return _Column(name, _words(name), is_text, is_nested, is_repeated, is_text and is_varied and is_long, length)


def _are_alike(one: _Column, other: _Column) -> bool:
    """True for two columns of answers: ``response_a`` and ``response_b`` differ in one letter or number."""
    pairs = zip(one.words, other.words, strict=False)
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    return (
        min(one.length, other.length) >= _LONG
        and len(one.words) == len(other.words) > 1
        and len(differing) == 1
        and all(len(word) == 1 or word.isdecimal() for word in differing[0])
    )


def _named(columns: Iterable[_Column], names: Sequence[str]) -> _Column | None:
    """The text column with the surest of some names: as its whole name, its last word, or any word."""
    found = [column for column in columns if column.is_text]
    ranked = [
        (names.index(word), place != len(column.words) - 1, len(column.words), order)
        for order, column in enumerate(found)
        for place, word in enumerate(column.words)
        if word in names
    ]
    return found[min(ranked)[-1]] if ranked else None
