"""Answers compared with the expected ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def parse_json(text: str) -> Any:
    """The JSON value that a text is, or None when it is none (a literal null counts as none)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def answers_match(expected: str, answer: str) -> bool:
    """Whether an answer is the expected one: as JSON values where both are JSON, as stripped text otherwise."""
    wanted = parse_json(expected)
    if wanted is not None:
        return same_json(wanted, parse_json(answer))
    return expected.strip() == answer.strip()


def same_json(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal; other than for Python's ``==``, a boolean is no number."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    return bool(first == second)


@dataclass(frozen=True)
class Expected:
    """Expected answers of held-out questions, one each; None where there is none."""

    answers: tuple[str | None, ...] = ()
    are_json: bool = False
    """Whether the answers of the dataset are JSON, all of them."""

    @classmethod
    def of(cls, answers: Sequence[str | None]) -> Expected:
        """The expected answers of all held-out questions."""
        return cls(tuple(answers), bool(answers) and all(parse_json(text or "") is not None for text in answers))

    def first(self, count: int) -> Expected:
        """Those of the first questions; whether the dataset's are JSON stays as it is."""
        return Expected(self.answers[:count], self.are_json)

    def matches(self, answers: Sequence[str]) -> list[bool | None]:
        """Whether each answer is the expected one; None where there is none."""
        return [
            None if wanted is None else answers_match(wanted, answer)
            for wanted, answer in zip(self.answers, answers, strict=True)
        ]

    def valid_json(self, answers: Sequence[str]) -> list[bool | None]:
        """Whether each answer is JSON; None where the dataset's answers are not."""
        return [parse_json(answer) is not None if self.are_json else None for answer in answers]
