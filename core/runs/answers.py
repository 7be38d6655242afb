"""Answers over time: the samples of a run by question, each with its answers from the untouched model on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from core.runs.events import SampleEvent

#: Longest expected answer, in characters, that an answer is wrong for not being, unless it is JSON: of a longer text
#: there are many good versions.
LONGEST_EXACT = 80

Verdict = Literal["right", "wrong", ""]
#: What an answer is put beside: that of the evaluation before, the first one of the run, or the wanted one.
Against = Literal["former", "first", "wanted"]


@dataclass(frozen=True)
class SampleAnswer:
    """The answer of the model as it was after ``step`` optimizer steps; the untouched one's at step 0."""

    step: int
    text: str
    verdict: Verdict
    """Whether it is the expected answer; empty where that is not known, or does not matter."""
    is_broken_json: bool
    """Whether it is no JSON where JSON was wanted."""


@dataclass
class Question:
    """A question that is asked at each evaluation."""

    prompt: str
    expected: str | None
    answers: list[SampleAnswer] = field(default_factory=list)
    """Answers by rising step."""

    def at(self, step: int) -> SampleAnswer | None:
        """The answer at a step; None where there is none."""
        return next((answer for answer in self.answers if answer.step == step), None)

    def beside(self, step: int, against: Against) -> SampleAnswer | None:
        """The earlier answer to put beside that of a step; None where there is none, or the wanted one is."""
        if against == "wanted" and self.expected is not None:
            return None
        earlier = [answer for answer in self.answers if answer.step < step]
        return next(iter(earlier if against == "first" else reversed(earlier)), None)

    @property
    def repeats(self) -> set[int]:
        """The steps at which the answer was that of the evaluation before, to the letter."""
        return {now.step for former, now in itertools.pairwise(self.answers) if now.text == former.text}


def verdict(event: SampleEvent) -> Verdict:
    """Whether an answer is right. A text of free form that differs from the expected one is not called wrong."""
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
