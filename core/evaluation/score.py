"""Scores of the answers of a prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from core.evaluation.answers import Expected, answers_match
from core.evaluation.check import Check
from core.evaluation.metrics import SchemaCheck, is_json, token_f1
from core.evaluation.prompt_set import PromptItem


@dataclass
class Scorer:
    """Gives answers their scores.

    Args:
        items: The questions.
        check: A user's own check; None for none.

    Raises:
        UserError: If a schema is none.
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
