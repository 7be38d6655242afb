"""Answers of a run by question, from the untouched model on, and the words in which two answers differ.

Texts that have little in common, or are long and differ in many places, count as rewritten: marks everywhere would not
help a reader.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from core.runs.record.events import SampleEvent

#: Longest expected answer, in characters, from which another text is called wrong, unless it is JSON: a longer text has
#: many good versions.
LONGEST_EXACT = 80

Verdict = Literal["right", "wrong", ""]
#: Counterpart of an answer: the answer of the evaluation before, the first answer of the run, or the expected one.
Against = Literal["former", "first", "wanted"]


@dataclass(frozen=True)
class SampleAnswer:
    """The answer of the model after ``step`` optimizer steps; at step 0, of the untouched model."""

    step: int
    text: str
    verdict: Verdict
    """Verdict by the expected answer; empty if that is unknown or does not matter."""
    is_broken_json: bool
    """True if JSON was expected and the answer is not JSON."""


@dataclass
class Question:
    """A question that is asked at each evaluation."""

    prompt: str
    expected: str | None
    answers: list[SampleAnswer] = field(default_factory=list)
    """Answers by rising step."""

    def at(self, step: int) -> SampleAnswer | None:
        """The answer at a step; None without one."""
        return next((answer for answer in self.answers if answer.step == step), None)

    def beside(self, step: int, against: Against) -> SampleAnswer | None:
        """The earlier answer to compare a step's answer with; None without one, or for the expected answer."""
        if against == "wanted" and self.expected is not None:
            return None
        earlier = [answer for answer in self.answers if answer.step < step]
        return next(iter(earlier if against == "first" else reversed(earlier)), None)

    @property
    def repeats(self) -> set[int]:
        """The steps at which the answer was identical to the one before."""
        return {now.step for former, now in itertools.pairwise(self.answers) if now.text == former.text}


def verdict(event: SampleEvent) -> Verdict:
    """Verdict on an answer. Free text that differs from the expected text is not called wrong."""
    if event.exact_match is None or event.expected is None:
        return ""
    if event.exact_match:
        return "right"
    has_one_answer = event.valid_json is not None or len(event.expected.strip()) <= LONGEST_EXACT
    return "wrong" if has_one_answer else ""


def questions_of(samples: Iterable[SampleEvent]) -> list[Question]:
    """The questions of a run in the order in which they were first asked."""
    found: dict[tuple[str, str | None, int], Question] = {}
    step, asked = None, Counter[tuple[str, str | None]]()
    for event in samples:
        if event.step != step:
            step, asked = event.step, Counter()
        key = (event.prompt, event.expected)
        # Rows may differ only in their earlier turns; then the same question is asked more than once.
        question = found.setdefault((*key, asked[key]), Question(*key))
        asked[key] += 1
        question.answers.append(
            SampleAnswer(event.step, event.text, verdict(event), is_broken_json=event.valid_json is False)
        )
    return list(found.values())


def steps_of(questions: Iterable[Question]) -> list[int]:
    """The steps at which any question was answered, rising."""
    return sorted({answer.step for question in questions for answer in question.answers})


Kind = Literal["same", "changed", "rewritten"]
#: Begin and end of a piece of text, in characters; the end is exclusive.
Span = tuple[int, int]

#: Share of the words in common below which a text counts as rewritten.
LEAST_COMMON = 0.3
#: Most pairs of equal words in two texts that are compared, for 0.1 s of work; with more, both are long and differ in
#: many places.
_MOST_PAIRS = 50_000
#: A character of a script without spaces, a word, or a punctuation mark.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]")


@dataclass(frozen=True)
class WordDiff:
    """The difference of two texts, as ranges of characters that begin and end with words.

    Texts that differ only in their spaces are ``changed``, without ranges.
    """

    kind: Kind
    before: tuple[Span, ...] = ()
    """Words of the former text only; empty if it was rewritten."""
    after: tuple[Span, ...] = ()
    """Words of the new text only; empty if it was rewritten."""


@lru_cache(maxsize=512)
def word_diff(before: str, after: str) -> WordDiff:
    """The difference between two texts."""
    if before == after:
        return WordDiff("same")
    places, new_places = _words(before), _words(after)
    words = [before[start:end] for start, end in places]
    new_words = [after[start:end] for start, end in new_places]
    if _is_little(words, new_words, (Counter(words) & Counter(new_words)).elements()):
        # The words have little in common in any order.
        return WordDiff("rewritten")
    kept = _kept(words, new_words)
    if kept is None or _is_little(words, new_words, [words[old] for old, _ in kept]):
        return WordDiff("rewritten")
    return WordDiff(
        "changed", _left_over(places, {old for old, _ in kept}), _left_over(new_places, {new for _, new in kept})
    )


def _words(text: str) -> list[Span]:
    found: list[Span] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        is_mark = not text[start].isascii() and unicodedata.category(text[start]).startswith("M")
        if is_mark and found and found[-1][1] == start:
            # Combining accents and vowel signs belong to the character before.
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _kept(words: Sequence[str], new_words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Places of the common words in both texts; None if finding them takes too long."""
    from difflib import SequenceMatcher  # not before the first paint

    shorter = min(len(words), len(new_words))
    head = next((place for place in range(shorter) if words[place] != new_words[place]), shorter)
    rest = shorter - head
    tail = next((place for place in range(rest) if words[-1 - place] != new_words[-1 - place]), rest)
    old, new = words[head : len(words) - tail], new_words[head : len(new_words) - tail]
    counts = Counter(new)
    if sum(counts[word] for word in old) > _MOST_PAIRS:
        return None
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    return [
        *((place, place) for place in range(head)),
        *((head + block.a + place, head + block.b + place) for block in blocks for place in range(block.size)),
        *((len(words) - tail + place, len(new_words) - tail + place) for place in range(tail)),
    ]


def _is_little(words: Sequence[str], new_words: Sequence[str], common: Iterable[str]) -> bool:
    """True if two texts have little in common, unless all words of one are in the other."""
    kept = list(common)
    if len(kept) == min(len(words), len(new_words)):
        return not kept and bool(words) and bool(new_words)
    # Punctuation counts only in texts without words.
    counted = [sum(map(_is_word, texts)) for texts in (words, new_words, kept)]
    ours, theirs, both = counted if counted[0] + counted[1] else map(len, (words, new_words, kept))
    return 2 * both < LEAST_COMMON * (ours + theirs)


def _is_word(text: str) -> bool:
    return text[0].isalnum()


def _left_over(places: Sequence[Span], kept: set[int]) -> tuple[Span, ...]:
    """The ranges of the words that are not kept; neighbors are joined."""
    found: list[Span] = []
    for number, (start, end) in enumerate(places):
        if number in kept:
            continue
        if found and number and number - 1 not in kept:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)
