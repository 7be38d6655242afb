"""Evaluation on held-out rows (the loss, and optionally exact matches of the model's own answers), and loss on the
general probe."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.errors import UserError
from core.evaluation.probe import as_text, read_probe
from core.evaluation.prompt_set import PromptItem
from core.evaluation.score import Expected
from core.runs.record.events import EvalEvent, SampleEvent
from core.worker.data.batches import make_micro_batch, supervised_count
from core.worker.data.dataset import Dataset
from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.evaluate.samples import ANSWER_MARGIN_TOKENS, samples_of
from core.worker.generate.generate import generate_batch
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import Objective, SupervisedObjective
from core.worker.model.model import LoadedModel, evaluation_mode
from core.worker.oom.retry import MemoryShortageError, NoGradBatches, ignore


@torch.no_grad()
def mean_loss(
    loaded: LoadedModel,
    objective: Objective,
    batches: NoGradBatches,
    lengths: Sequence[int],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    check: Callable[[], None],
    progress: Callable[[int, int], None],
) -> float:
    """Loss of an objective over all its rows, divided by their weight.

    Args:
        loaded: The model, in evaluation mode.
        objective: The objective.
        batches: Cuts the rows into batches.
        lengths: Length in tokens of each row.
        autocast: Context of the forward passes.
        check: Called between two batches; may raise to stop.
        progress: Called with rows done, of how many.

    Raises:
        MemoryShortageError: If a single row does not fit.
    """

    def summed(rows: list[int]) -> float:
        batch = make_micro_batch(rows, objective.sequences(rows), loaded.pad_id, loaded.device)
        with autocast():
            return float(objective.loss(batch, objective.forward(batch)))

    total, done = 0.0, 0
    weight = objective.begin(range(len(lengths)), batches.token_budget)
    check()
    for batch, loss in batches.run(lengths, summed):
        total += loss
        done += len(batch)
        progress(done, len(lengths))
        if done < len(lengths):
            check()
    return total / weight


class Evaluator:
    """Measures a model on the same held-out rows each time.

    Args:
        loaded: The model; back in training mode after each measurement.
        dataset: The held-out rows.
        objective: The training objective on these rows.
        token_budget: Token budget of a batch, padding included.
        autocast: Context of the forward passes.
        max_new_tokens: Maximum length of an answer; 0 to measure only the loss.
        template: A chat template instead of the tokenizer's own.
        check: Called often; may raise to stop.
        samples: Number of answers reported as samples.
        notice: Receives warnings of cuts and skipped answers when memory runs out: ``notice(code, message, hint)``.
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
        # An example may have several rows but is asked once; an answer labeled bad is not expected.
        examples = {id(item): item for item in dataset.examples if item.messages and item.label is not False}
        self._asked = list(examples.values()) if max_new_tokens else []
        self._conversations = [[message.fields() for message in example.prompt] for example in self._asked]
        self.items = self._items()
        """The rows that are asked, without tool calls and reasoning in their messages."""
        self._expected = Expected.of([example.answer for example in self._asked])
        longest = max((supervised_count(row) for row in dataset.rows), default=0)
        self.max_new_tokens = min(max_new_tokens, longest + ANSWER_MARGIN_TOKENS)
        """Maximum length of an answer in tokens."""

    @property
    def rows(self) -> int:
        """The number of held-out rows."""
        return len(self._dataset.rows)

    def _items(self) -> list[PromptItem]:
        places = {id(example): number for number, example in reversed([*enumerate(self._dataset.examples)])}
        return [
            PromptItem(
                self._dataset.name_of(places[id(example)]),
                tuple({"role": turn.role, "content": turn.content} for turn in example.prompt),
                example.answer or None,
            )
            for example in self._asked
        ]

    def measure(
        self, step: int, progress: Callable[[str, int, int], None]
    ) -> tuple[EvalEvent, list[SampleEvent], list[str]]:
        """Measure the model after ``step`` optimizer steps.

        Returns:
            The event, the first answers as samples, and the answers to all of :attr:`items`; none if only the loss is
            measured, or if they do not fit in memory.

        Args:
            step: Optimizer steps done.
            progress: Called with the current part (``loss`` or ``answers``), rows done, of how many.

        If memory runs out, batches shrink from then on. Answers that do not fit one by one are skipped.

        Raises:
            MemoryShortageError: If a single row does not fit.
        """
        began = time.monotonic()
        with evaluation_mode(self._loaded.model):
            loss = mean_loss(
                self._loaded,
                self._objective,
                self._batches,
                self._dataset.lengths,
                self._autocast,
                self._check,
                functools.partial(progress, "loss"),
            )
            rewards = self._objective.rewards()
            answers = self._answers_that_fit(
                self._conversations,
                f"The answers after step {step} are left out, the loss is measured",
                functools.partial(progress, "answers"),
            )
        exact = valid = None
        if answers:
            exact = sum(map(bool, self._expected.matches(answers))) / len(answers)
            if self._expected.are_json:
                valid = sum(map(bool, self._expected.valid_json(answers))) / len(answers)
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
        return event, self._samples_of(step, answers[: self._samples]), answers

    @property
    def has_samples(self) -> bool:
        """True if some of the held-out questions are answered as samples."""
        return bool(self._conversations[: self._samples])

    def answer_samples(self, step: int, progress: Callable[[str, int, int], None]) -> list[SampleEvent]:
        """Answer only the sample questions."""
        with evaluation_mode(self._loaded.model):
            answers = self._answers_that_fit(
                self._conversations[: self._samples],
                f"The samples after step {step} are left out",
                functools.partial(progress, "samples"),
            )
        return self._samples_of(step, answers)

    def _samples_of(self, step: int, answers: list[str]) -> list[SampleEvent]:
        shown = len(answers)
        return samples_of(step, self._conversations[:shown], answers, self._expected.first(shown))

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

    def _answers_that_fit(
        self, conversations: list[list[dict[str, Any]]], without: str, progress: Callable[[int, int], None]
    ) -> list[str]:
        """The answers; empty if they do not fit in memory, with a notice that begins with ``without``."""
        try:
            return self._answers(conversations, progress)
        except MemoryShortageError as error:
            hint = "Lower chat.max_new_tokens, or turn eval.exact_match off."
            self._notice("memory_answers", f"{without}: {error.message}", hint)
            return []

    def _answers(self, conversations: list[list[dict[str, Any]]], progress: Callable[[int, int], None]) -> list[str]:
        if not conversations:
            return []

        def report(done: int, total: int) -> None:
            self._check()
            progress(done, total)

        with self._autocast():
            return generate_batch(
                self._loaded.model,
                self._loaded.tokenizer,
                conversations,
                self.max_new_tokens,
                report,
                template=self._template,
                notice=lambda message: self._notice("memory_answers", message, "The answers are the same."),
            )


def encode_probe(encoder: Encoder) -> list[TokenizedRow]:
    """The probe as rows for a model; its answers are measured. Examples that its template cannot render are left out;
    without a template, question and answer are measured as plain text.

    Args:
        encoder: Encoder with the run's template.
    """
    examples = read_probe()
    for chosen in (examples, [as_text(example) for example in examples]):
        with contextlib.suppress(UserError):  # a template beyond the limits is refused elsewhere
            rows = [row for row in encoder.encode(chosen) if isinstance(row, TokenizedRow)]
            if rows:
                return rows
    return []


@dataclass
class Probe:
    """Measures on the general probe how much a model forgets during a run.

    Draws no random numbers, and changes no trained state.

    Args:
        loaded: The model; back in training mode after each measurement.
        loss: Sums the loss of a batch.
        rows: The probe, encoded.
        token_budget: Token budget of a batch, padding included.
        autocast: Context of the forward passes.
        check: Called between two batches; may raise to stop.
        notice: Receives the warning if it is skipped: ``notice(code, message, hint)``.
    """

    loaded: LoadedModel
    loss: SupervisedLoss
    rows: list[TokenizedRow]
    token_budget: int
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    check: Callable[[], None]
    notice: Callable[[str, str, str], None]

    def __post_init__(self) -> None:
        self._objective = SupervisedObjective(self.loss, self.rows)
        self._batches = NoGradBatches(self.token_budget, lambda _rows, _now: None, self._refusal)

    def measure(self, progress: Callable[[int, int], None] = lambda _done, _total: None) -> float | None:
        """Mean loss per token of the probe's answers, in nats; None if it does not fit in memory.

        Args:
            progress: Called with rows done, of how many.
        """
        try:
            with evaluation_mode(self.loaded.model):
                lengths = list(map(len, self.rows))
                return mean_loss(
                    self.loaded, self._objective, self._batches, lengths, self.autocast, self.check, progress
                )
        except MemoryShortageError as error:
            self.notice("memory_probe", f"The general probe is left out. {error.message}", error.hint)
            return None

    def _refusal(self, row: int) -> tuple[str, str]:
        return (
            f"Memory ran out with a single row of it, of {len(self.rows[row])} tokens",
            "Set eval.probe = false, or close what else holds memory.",
        )
