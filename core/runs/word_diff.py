"""Word differences of two texts: which words of each the other one does not have in that place.

Myers' greedy algorithm ("An O(ND) Difference Algorithm and Its Variations", 1986) over words, its work bounded: texts
that have little in common, or are long and differ in many places, are told to be rewritten: marks everywhere say no
more.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Kind = Literal["same", "changed", "rewritten"]
#: First character of a piece of text, and the one after its last.
Span = tuple[int, int]

#: Share of the words in common below which a text counts as rewritten.
LEAST_COMMON = 0.3
#: Most steps of the search, some 0.1 s; texts that take more are long, and differ in many places.
_MOST_WORK = 200_000
#: Words; signs, each by itself; characters of scripts that are written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


@dataclass(frozen=True)
class WordDiff:
    """The difference of two texts, as ranges of characters that hold whole words and no space at their ends.

    Texts that differ in their spaces alone are ``changed``, without ranges.
    """

    kind: Kind
    before: tuple[Span, ...] = ()
    """What the former text alone has; empty where the text was rewritten."""
    after: tuple[Span, ...] = ()
    """What the new text alone has; empty where the text was rewritten."""


@lru_cache(maxsize=512)
def word_diff(before: str, after: str) -> WordDiff:
    """The difference between two texts."""
    if before == after:
        return WordDiff("same")
    places, new_places = _words(before), _words(after)
    words = [before[start:end] for start, end in places]
    new_words = [after[start:end] for start, end in new_places]
    if _is_little(words, new_words, (Counter(words) & Counter(new_words)).elements()):
        # Not even in another order.
        return WordDiff("rewritten")
    kept = _kept(words, new_words)
    if kept is None or _is_little(words, new_words, [words[old] for old, _ in kept]):
        return WordDiff("rewritten")
    return WordDiff(
        "changed",
        _left_over(places, {old for old, _ in kept}),
        _left_over(new_places, {new for _, new in kept}),
    )


def _words(text: str) -> list[Span]:
    found: list[Span] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        is_mark = not text[start].isascii() and unicodedata.category(text[start]).startswith("M")
        if is_mark and found and found[-1][1] == start:
            # Accents and vowel signs are no signs of their own.
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _kept(words: Sequence[str], new_words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Places of the words that stay, in both texts; None where looking for them takes too long."""
    shorter = min(len(words), len(new_words))
    head = 0
    while head < shorter and words[head] == new_words[head]:
        head += 1
    tail = 0
    while tail < shorter - head and words[-1 - tail] == new_words[-1 - tail]:
        tail += 1
    old_end, new_end = len(words) - tail, len(new_words) - tail
    middle = _in_common(words[head:old_end], new_words[head:new_end])
    if middle is None:
        return None
    return [
        *((place, place) for place in range(head)),
        *((head + old, head + new) for old, new in middle),
        *((old_end + place, new_end + place) for place in range(tail)),
    ]


def _in_common(words: Sequence[str], new_words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Places of a longest common subsequence, by rising place; None where looking for it takes too long."""
    if not words or not new_words:
        return []
    length, new_length = len(words), len(new_words)
    # The furthest place on each diagonal. Those below 0 are at the end of the list, where Python counts them from.
    reached = [0] * (2 * (length + new_length) + 3)
    rounds: list[list[int]] = []
    work = 0
    for edits in range(length + new_length + 1):
        rounds.append(reached[: edits + 2] + reached[-edits - 1 :])
        for diagonal in range(-edits, edits + 1, 2):
            start = old = _entry(reached, diagonal, edits)
            while old < length and old - diagonal < new_length and words[old] == new_words[old - diagonal]:
                old += 1
            reached[diagonal] = old
            if old >= length and old - diagonal >= new_length:
                return _traced(rounds, old, diagonal)
            work += 1 + old - start
        if work > _MOST_WORK:
            return None
    raise AssertionError("deleting all words and inserting the others is always a way")


def _entry(reached: Sequence[int], diagonal: int, edits: int) -> int:
    """Where the furthest path enters a diagonal: by a word inserted, or by one deleted."""
    inserted, deleted = reached[diagonal + 1], reached[diagonal - 1]
    return inserted if diagonal == -edits or (diagonal != edits and deleted < inserted) else deleted + 1


def _traced(rounds: Sequence[Sequence[int]], old: int, diagonal: int) -> list[tuple[int, int]]:
    """The words in common along the path that ends at a place."""
    found: list[tuple[int, int]] = []
    for edits in range(len(rounds) - 1, -1, -1):
        start = _entry(rounds[edits], diagonal, edits)
        found += [(place, place - diagonal) for place in range(old - 1, start - 1, -1)]
        inserted = start == rounds[edits][diagonal + 1]
        old, diagonal = (start, diagonal + 1) if inserted else (start - 1, diagonal - 1)
    return found[::-1]


def _is_little(words: Sequence[str], new_words: Sequence[str], common: Iterable[str]) -> bool:
    """Whether two texts have little in common; not where one only goes on, or stops earlier."""
    kept = list(common)
    if len(kept) == min(len(words), len(new_words)):
        return not kept and bool(words) and bool(new_words)
    # Signs count where there is nothing else.
    counted = [sum(map(_is_word, texts)) for texts in (words, new_words, kept)]
    ours, theirs, both = counted if counted[0] + counted[1] else map(len, (words, new_words, kept))
    return 2 * both < LEAST_COMMON * (ours + theirs)


def _is_word(text: str) -> bool:
    return text[0].isalnum()


def _left_over(places: Sequence[Span], kept: set[int]) -> tuple[Span, ...]:
    """The ranges of the words that are not kept, neighbors as one."""
    found: list[Span] = []
    for number, (start, end) in enumerate(places):
        if number in kept:
            continue
        if found and number and number - 1 not in kept:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)
