"""Sample answers to the same few questions at each evaluation, to show the model's progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.chat.corrections import read_corrections
from core.chat.prompts import PROMPT_LIMIT, read_prompts
from core.config.schema import Config
from core.errors import UserError
from core.evaluation.score import Expected
from core.runs.record.events import SampleEvent
from core.worker.data.batches import supervised_count
from core.worker.data.dataset import Dataset
from core.worker.generate.generate import generate_batch
from core.worker.model.model import LoadedModel, evaluation_mode

#: Extra tokens for an answer beyond the longest expected one.
ANSWER_MARGIN_TOKENS = 16


@dataclass(frozen=True)
class Questions:
    """Questions of each evaluation."""

    conversations: list[list[dict[str, Any]]]
    """Messages in the format of chat templates, the last one from the user."""
    max_new_tokens: int
    """Maximum length of an answer in tokens."""
    expected: Expected = field(default_factory=Expected)
    """Expected answers, if known; empty if none is."""
    corrected: int = 0
    """Number of the first questions, whose answers the user corrected."""


def choose_questions(config: Config, held_out: Dataset | None) -> Questions:
    """The corrected questions of ``data.corrections``, then the prompts of ``eval.prompts``; with neither, the first
    few distinct held-out questions.

    With ``eval.exact_match`` the held-out questions are answered anyway, so they are not asked again.

    Raises:
        UserError: If the file of corrections or of prompts cannot be used.
    """
    longest = config.chat.max_new_tokens
    prompts = [] if config.eval.prompts is None else [*read_prompts(Path(config.eval.prompts), config.chat.system)]
    if config.data.corrections is not None:
        corrected = read_corrections(Path(config.data.corrections))[-PROMPT_LIMIT:]
        # Expected answers are those of corrections alone, so that a result can count them.
        return Questions(
            [*([dict(turn) for turn in one.messages] for one in corrected), *prompts],
            longest,
            Expected.of([*(one.answer for one in corrected), *(None for _ in prompts)]),
            len(corrected),
        )
    if prompts:
        return Questions(prompts, longest)
    if held_out is None or config.eval.exact_match:
        return Questions([], longest)
    chosen = {id(example): (example, row) for row, example in zip(held_out.rows, held_out.examples, strict=True)}
    every = [(example, row) for example, row in chosen.values() if example.messages]
    asked = every[: config.eval.samples]
    most = max((supervised_count(row) for _, row in asked), default=0)
    # An answer labeled bad is not expected.
    expected = Expected.of([example.answer if example.label is not False else None for example, _ in every])
    return Questions(
        [[message.fields() for message in example.prompt] for example, _ in asked],
        min(longest, most + ANSWER_MARGIN_TOKENS),
        expected.first(len(asked)),
    )


@dataclass
class SampleWriter:
    """Answers the same questions each time, greedily.

    Args:
        loaded: The model; back in training mode each time.
        questions: The questions.
        autocast: Context of the forward passes.
        template: A chat template instead of the tokenizer's own.
        warn: Receives the reason, once, if there are no answers: ``warn(message, hint)``.
    """

    loaded: LoadedModel
    questions: Questions
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    template: str | None
    warn: Callable[[str, str], None]
    failing: bool = field(default=False, init=False)
    """True if the last attempt gave no answers."""

    @property
    def is_needed(self) -> bool:
        """True if there is anything to answer."""
        return bool(self.questions.conversations)

    def write(self, step: int, progress: Callable[[int, int], None]) -> list[SampleEvent]:
        """Answers of the model after ``step`` optimizer steps; empty if it cannot answer.

        Args:
            step: Optimizer steps done.
            progress: Called with rows done, of how many, every few tokens; may raise to stop.
        """
        asked = self.questions
        if not asked.conversations:
            return []
        try:
            with evaluation_mode(self.loaded.model), self.autocast():
                texts = generate_batch(
                    self.loaded.model,
                    self.loaded.tokenizer,
                    asked.conversations,
                    asked.max_new_tokens,
                    progress,
                    template=self.template,
                )
        except UserError as error:
            # Samples are for information only; failing to write them never ends a run.
            if not self.failing:
                self.warn(f"There are no samples: {error.message}", error.hint)
            self.failing = True
            return []
        answers = samples_of(step, asked.conversations, texts, asked.expected)
        return [replace(answer, correction=place < asked.corrected) for place, answer in enumerate(answers)]


def samples_of(
    step: int, conversations: Sequence[Sequence[dict[str, Any]]], texts: Sequence[str], expected: Expected
) -> list[SampleEvent]:
    """Answers as events, each with its question, the expected answer and the comparison."""
    wanted = expected if expected.answers else Expected((None,) * len(texts))
    return [
        SampleEvent(
            step=step,
            prompt=str(messages[-1]["content"]) if messages else "",
            text=text,
            source=f"step-{step}" if step else "base",
            expected=answer,
            exact_match=match,
            valid_json=is_json,
        )
        for messages, text, answer, match, is_json in zip(
            conversations, texts, wanted.answers, wanted.matches(texts), wanted.valid_json(texts), strict=True
        )
    ]
