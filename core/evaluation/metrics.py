"""Scores of answers: exact match, JSON and its schema, and token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

from core.errors import UserError
from core.evaluation.answers import parse_json
from core.text import one_line

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1(expected: str, answer: str) -> float:
    """Token F1 as in SQuAD: the harmonic mean of precision and recall over the words that both have, counted as often
    as in the one that has them less often. Letter case, ASCII punctuation and the articles a, an and the do not count;
    where one of the two has no words, it is 1 if neither has, else 0.

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
    """A JSON Schema that answers are held against, by the package ``jsonschema``; nothing is fetched for it.

    Args:
        schema: The schema; its ``$schema`` names the draft, by default the newest that the package knows.
        where: Where it is from, for errors.

    Raises:
        UserError: If it is no schema, or refers to something outside of itself.
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
        # A registry of its own has no retriever: an address in $ref is not fetched.
        self._validator = kind(schema, registry=Registry())
        self._unresolvable = Unresolvable
        self._where = where

    def accepts(self, answer: str) -> bool:
        """Whether an answer is JSON that fits.

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
    """Whether an answer is JSON, and nothing beside it; null is."""
    return parse_json(answer) is not None or answer.strip() == "null"
