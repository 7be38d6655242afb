"""Scores of the answers of a prompt set."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.prompt_set import PromptItem
from core.text import one_line


def parse_json(text: str) -> Any:
    """The JSON value of a text; None if it is invalid, or a literal null."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def answers_match(expected: str, answer: str) -> bool:
    """True if an answer is the expected one: as JSON values if both are JSON, as stripped text otherwise."""
    wanted = parse_json(expected)
    if wanted is not None:
        return same_json(wanted, parse_json(answer))
    return expected.strip() == answer.strip()


def same_json(first: Any, second: Any) -> bool:
    """True if two JSON values are equal; unlike Python's ``==``, a boolean is not a number."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    return bool(first == second)


@dataclass(frozen=True)
class Expected:
    """Expected answers of held-out questions, one each; None if there is none."""

    answers: tuple[str | None, ...] = ()
    are_json: bool = False
    """True if all answers of the dataset are JSON."""

    @classmethod
    def of(cls, answers: Sequence[str | None]) -> Expected:
        """The expected answers of all held-out questions."""
        return cls(tuple(answers), bool(answers) and all(parse_json(text or "") is not None for text in answers))

    def first(self, count: int) -> Expected:
        """Answers of the first questions; ``are_json`` stays as it is."""
        return Expected(self.answers[:count], self.are_json)

    def matches(self, answers: Sequence[str]) -> list[bool | None]:
        """For each answer, whether it is the expected one; None if none is expected."""
        return [
            None if wanted is None else answers_match(wanted, answer)
            for wanted, answer in zip(self.answers, answers, strict=True)
        ]

    def valid_json(self, answers: Sequence[str]) -> list[bool | None]:
        """For each answer, whether it is JSON; None if the dataset's answers are not."""
        return [parse_json(answer) is not None if self.are_json else None for answer in answers]


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(expected: str, answer: str) -> float:
    """Token F1 as in SQuAD: the harmonic mean of precision and recall over the words that both have, counted as often
    as in the text with fewer occurrences. Letter case, ASCII punctuation and the articles a, an and the do not count;
    if a text has no words, it is 1 if neither has, else 0.

    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv 1606.05250; for texts without
    words as in SQuAD 2.0.
    """
    wanted, given = _words(expected), _words(answer)
    if not wanted or not given:
        return float(wanted == given)
    same = sum((Counter(wanted) & Counter(given)).values())
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


class SchemaCheck:
    """A JSON Schema for answers, checked by the package ``jsonschema``; nothing is fetched for it.

    Args:
        schema: The schema; its ``$schema`` names the draft, by default the newest that the package knows.
        where: Its origin, for errors.

    Raises:
        UserError: If it is invalid, or refers to something outside of itself.
    """

    def __init__(self, schema: Any, where: str) -> None:
        # Imported here: it takes a fifth of a second, and most sets of prompts have no schema.
        from jsonschema import exceptions, validators
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        if not isinstance(schema, (dict, bool)):
            raise UserError(f"{where}: the schema is no JSON object.", "Write a JSON Schema, or leave it out.")
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except (exceptions.SchemaError, RecursionError) as error:
            said = one_line(getattr(error, "message", "it is nested too deeply"), 120)
            raise UserError(f"{where}: the schema is no JSON Schema: {said}.", "Fix it.") from error
        # An empty registry has no retriever: an address in $ref is not fetched.
        self._validator = kind(schema, registry=Registry())
        self._unresolvable = Unresolvable
        self._where = where

    def accepts(self, answer: str) -> bool:
        """True if an answer is JSON that fits.

        Raises:
            UserError: If the schema refers to something that is not in it.
        """
        if not is_json(answer):
            return False
        try:
            return bool(self._validator.is_valid(parse_json(answer)))
        except RecursionError:
            return False
        except self._unresolvable as error:
            reference = one_line(str(getattr(error, "ref", error)), 80)
            raise UserError(
                f"{self._where}: the schema refers to {reference}, which is not in it, and nothing is fetched.",
                "Put it under $defs.",
            ) from error


def is_json(answer: str) -> bool:
    """True if an answer is JSON and nothing else, null included."""
    return parse_json(answer) is not None or answer.strip() == "null"


@dataclass
class Scorer:
    """Scores answers.

    Args:
        items: The questions.
        check: A user's own check; None for none.

    Raises:
        UserError: If a schema is invalid.
    """

    items: Sequence[PromptItem]
    check: Check | None = None
    _schemas: dict[int, SchemaCheck] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        asked = [item.expected for item in self.items if item.expected is not None]
        self._are_json = Expected.of(asked).are_json
        made: dict[str, SchemaCheck] = {}
        for place, item in enumerate(self.items):
            if item.schema is not None:
                key = repr(item.schema)
                if key not in made:
                    made[key] = SchemaCheck(item.schema, f"Prompt {item.id}")
                self._schemas[place] = made[key]

    def score(self, place: int, answer: str) -> dict[str, float]:
        """The scores of an answer that apply to its question, from 0 to 1.

        Args:
            place: The question's.
            answer: The model's.

        Raises:
            UserError: If the check fails, or a schema refers to something outside of itself.
        """
        item, scores = self.items[place], {}
        if item.expected is not None:
            scores["exact_match"] = float(answers_match(item.expected, answer))
            scores["f1"] = token_f1(item.expected, answer)
        schema = self._schemas.get(place)
        if schema is not None or (self._are_json and item.expected is not None):
            scores["valid_json"] = float(is_json(answer))
        if schema is not None:
            scores["schema"] = float(schema.accepts(answer))
        if self.check is not None:
            scores["check"] = self.check.score(
                {
                    "id": item.id,
                    "messages": [dict(message) for message in item.messages],
                    "expected": item.expected,
                    "answer": answer,
                }
            )
        return scores
