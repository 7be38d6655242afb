"""Evaluation on held-out rows: the loss, and where asked, exact matches of the model's own answers."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from core.runs.events import EvalEvent, SampleEvent
from core.worker.data.batches import MicroBatch, collate, supervised_count
from core.worker.data.dataset import Dataset
from core.worker.evaluate.samples import ANSWER_MARGIN_TOKENS, samples_of
from core.worker.generate.generate import generate_batch
from core.worker.loss.objectives import Objective, SupervisedObjective
from core.worker.model.model import LoadedModel, evaluation_mode
from core.worker.oom.no_grad_batches import NoGradBatches
from core.worker.oom.retry import MemoryShortageError, ignore


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


class Evaluator:
    """Measures a model on the same held-out rows each time.

    Args:
        loaded: The model; it is put back into training mode after each measurement.
        dataset: The held-out rows.
        objective: The training objective on these rows.
        token_budget: The most tokens at once, padding included.
        autocast: Makes the context of the forward passes.
        max_new_tokens: The longest answer; 0 to measure the loss only.
        template: A chat template instead of the tokenizer's own.
        check: Called often; may raise to give up.
        samples: Of the answers, so many are given as samples.
        notice: Told of what is cut or left out when memory runs out: ``notice(code, message, hint)``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        dataset: Dataset,
        *,
        objective: Objective,
        token_budget: int,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
        max_new_tokens: int,
        template: str | None,
        check: Callable[[], None],
        samples: int = 3,
        notice: Callable[[str, str, str], None] = ignore,
    ) -> None:
        self._loaded = loaded
        self._objective = objective
        self._has_perplexity = isinstance(self._objective, SupervisedObjective)
        self._dataset = dataset
        self._batches = NoGradBatches(
            token_budget, self._warn_of_cut, self._refusal, sequences_per_row=self._objective.sequences_per_row
        )
        self._autocast = autocast
        self._template = template
        self._check = check
        self._samples = samples
        self._notice = notice
        # An example may have several rows, and is asked once; what is called a bad answer is not expected.
        examples = {id(item): item for item in dataset.examples if item.messages and item.label is not False}
        self._asked = list(examples.values()) if max_new_tokens else []
        self._conversations = [[message.fields() for message in example.prompt] for example in self._asked]
        longest = max((supervised_count(row) for row in dataset.rows), default=0)
        self._max_new_tokens = min(max_new_tokens, longest + ANSWER_MARGIN_TOKENS)

    @property
    def rows(self) -> int:
        """The number of held-out rows."""
        return len(self._dataset.rows)

    def measure(self, step: int, progress: Callable[[str, int, int], None]) -> tuple[EvalEvent, list[SampleEvent]]:
        """Measure the model as it is after ``step`` optimizer steps.

        Args:
            step: Optimizer steps done.
            progress: Told what is measured (``loss`` or ``answers``), rows done, of how many.

        When memory runs out, fewer rows are measured at once from then on; answers that do not fit one by one are left
        out.

        Raises:
            MemoryShortageError: If a single row does not fit.
        """
        began = time.monotonic()
        with evaluation_mode(self._loaded.model):
            loss = self._mean_loss(functools.partial(progress, "loss"))
            rewards = self._objective.rewards()
            answers = self._answers_that_fit(step, functools.partial(progress, "answers"))
        exact = valid = None
        if answers:
            expected = [example.answer for example in self._asked]
            exact = sum(map(answers_match, expected, answers)) / len(answers)
            if all(parse_json(text) is not None for text in expected):
                valid = sum(parse_json(text) is not None for text in answers) / len(answers)
        event = EvalEvent(
            step=step,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)) if self._has_perplexity else None,
            seconds=time.monotonic() - began,
            exact_match=exact,
            valid_json=valid,
            rows=len(self._dataset.rows),
            reward_margin=rewards.margin,
            reward_accuracy=rewards.accuracy,
        )
        shown = len(answers[: self._samples])
        return event, samples_of(step, self._conversations[:shown], answers[:shown])

    @torch.no_grad()
    def _mean_loss(self, progress: Callable[[int, int], None]) -> float:
        rows = self._dataset.rows
        total, done = 0.0, 0
        weight = self._objective.begin(range(len(rows)), self._batches.token_budget)
        self._check()
        for batch, loss in self._batches.run(self._dataset.lengths, self._summed_loss):
            total += loss
            done += len(batch)
            progress(done, len(rows))
            if done < len(rows):
                self._check()
        return total / weight

    def _summed_loss(self, rows: list[int]) -> float:
        batch = MicroBatch(rows, *collate(self._objective.sequences(rows), self._loaded.pad_id, self._loaded.device))
        with self._autocast():
            return float(self._objective.loss(batch, self._objective.forward(batch)))

    def _warn_of_cut(self, rows: int, now: int) -> None:
        self._notice(
            "memory_evaluation",
            f"Memory ran out in measuring {rows} held-out rows at once: it is done with {now}.",
            "The loss is the same.",
        )

    def _refusal(self, row: int) -> tuple[str, str]:
        return (
            f"Memory ran out with a single held-out row of {self._dataset.lengths[row]} tokens "
            f"({self._dataset.place(row)})",
            "Take long rows out of what is held out, or lower train.max_length.",
        )

    def _answers_that_fit(self, step: int, progress: Callable[[int, int], None]) -> list[str]:
        try:
            return self._answers(progress)
        except MemoryShortageError as error:
            reason = f"The answers after step {step} are left out, the loss is measured: {error.message}"
            self._notice("memory_answers", reason, "Lower chat.max_new_tokens, or turn eval.exact_match off.")
            return []

    def _answers(self, progress: Callable[[int, int], None]) -> list[str]:
        if not self._asked:
            return []

        def report(done: int, total: int) -> None:
            self._check()
            progress(done, total)

        with self._autocast():
            return generate_batch(
                self._loaded.model,
                self._loaded.tokenizer,
                self._conversations,
                self._max_new_tokens,
                report,
                template=self._template,
                notice=lambda message: self._notice("memory_answers", message, "The answers are the same."),
            )
