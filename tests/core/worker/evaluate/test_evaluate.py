"""Measuring on held-out rows."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data.conversation import Example, Message
from core.worker.data.dataset import Dataset
from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.evaluate import evaluate
from core.worker.evaluate.evaluate import Evaluator
from core.worker.evaluate.samples import ANSWER_MARGIN_TOKENS
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import SupervisedObjective
from core.worker.model.model import LoadedModel
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.control import StopRequested
from core.worker.process.determinism import rng_state
from tests.cases import cases
from tests.core.worker.steps.stepper import adapted

ANSWERS = ('{"area": "login", "ref": 1}', '{"area": "printer", "ref": 2}', '{"area": "network", "ref": 300}')


@torch.no_grad()
def mean_loss(loaded: LoadedModel, rows: list[TokenizedRow]) -> float:
    """Mean over all supervised tokens, from the logits of each row alone."""
    found = []
    loaded.model.eval()
    for row in rows:
        ids = torch.as_tensor(row.input_ids, dtype=torch.int64)[None]
        likelihood = torch.log_softmax(loaded.model(input_ids=ids).logits[0], dim=-1)
        found += [-float(likelihood[place - 1, ids[0, place]]) for place in np.flatnonzero(row.supervised)]
    loaded.model.train()
    return sum(found) / len(found)


def stopping_at(call: int) -> Callable[[], None]:
    """A check that stops at a call, counted from 1."""
    calls = itertools.count(1)

    def check() -> None:
        if next(calls) == call:
            raise StopRequested("SIGTERM")

    return check


class Bench:
    """A tiny model with adapters that do something, and rows to measure it on."""

    def __init__(self, directory: Path) -> None:
        self.loaded = loaded = adapted(directory, rank=2, dropout=0.5)
        encoder = Encoder(loaded.tokenizer, [loaded.tokenizer.eos_token_id])
        examples = [
            Example((Message("user", f"ticket {'word ' * number}"), Message("assistant", answer)))
            for number, answer in enumerate(ANSWERS)
        ]
        rows = [row for row in encoder.encode(examples) if not isinstance(row, Exception)]
        self.dataset = Dataset(rows=rows, examples=examples, read=len(rows))

    def evaluator(self, *, loss: SupervisedLoss | None = None, **options: Any) -> Evaluator:
        defaults: dict[str, Any] = {"token_budget": 1000, "max_new_tokens": 0, "check": lambda: None}
        return Evaluator(
            self.loaded,
            self.dataset,
            objective=SupervisedObjective(loss or SupervisedLoss(self.loaded.model), self.dataset.rows),
            autocast=contextlib.nullcontext,
            template=None,
            **(defaults | options),
        )


@pytest.fixture(scope="module")
def bench(tiny_model_dir: Path) -> Bench:
    return Bench(tiny_model_dir)


@cases("token_budget", [1, 100, 1000])
def test_the_loss_is_the_mean_over_all_supervised_tokens(bench: Bench, token_budget: int) -> None:
    told: list[tuple[str, int, int]] = []
    event, samples, _ = bench.evaluator(token_budget=token_budget).measure(
        4, lambda what, done, total: told.append((what, done, total))
    )
    assert event.loss == pytest.approx(mean_loss(bench.loaded, bench.dataset.rows), rel=1e-5)
    assert event.perplexity == pytest.approx(math.exp(event.loss))
    assert (event.step, event.rows, event.exact_match, event.valid_json) == (4, 3, None, None)
    assert samples == []
    assert told[-1] == ("loss", 3, 3)


def test_measuring_leaves_no_trace(bench: Bench) -> None:
    model = bench.loaded.model
    before = rng_state()["torch"]
    bench.evaluator(max_new_tokens=4).measure(1, lambda *_: None)
    assert torch.equal(rng_state()["torch"], before)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Conversations that are answered by a list, with the longest answer, and whether the model was in training."""
    found: list[Any] = []

    def answer(model: Any, tokenizer: Any, conversations: Any, limit: int, report: Any, **_: Any) -> list[str]:
        found.append((conversations, limit, model.training))
        return [ANSWERS[0], "{}", "no idea"][: len(conversations)]

    monkeypatch.setattr(evaluate, "generate_batch", answer)
    return found


def test_answers_are_counted_and_shown(bench: Bench, asked: list[Any]) -> None:
    evaluator = bench.evaluator(max_new_tokens=500)
    event, samples, answers = evaluator.measure(7, lambda *_: None)
    assert answers == [ANSWERS[0], "{}", "no idea"]
    assert [item.id for item in evaluator.items] == ["1", "2", "3"]
    assert evaluator.items[1].messages == ({"role": "user", "content": "ticket word "},)
    assert [item.expected for item in evaluator.items] == list(ANSWERS)
    assert event.exact_match == pytest.approx(1 / 3)
    assert event.valid_json == pytest.approx(2 / 3)
    assert [sample.text for sample in samples] == [ANSWERS[0], "{}", "no idea"]
    assert {sample.source for sample in samples} == {"step-7"}
    assert samples[2].prompt == "ticket word word "
    assert [sample.expected for sample in samples] == list(ANSWERS)
    assert [sample.exact_match for sample in samples] == [True, False, False]
    assert [sample.valid_json for sample in samples] == [True, True, False]
    ((conversations, limit, training),) = asked
    assert conversations[1] == [{"role": "user", "content": "ticket word "}]
    assert not training
    longest = max(int(row.supervised.sum()) for row in bench.dataset.rows)
    assert limit == longest + ANSWER_MARGIN_TOKENS
    assert bench.evaluator(max_new_tokens=500).measure(0, lambda *_: None)[1][0].source == "base"


def test_samples_are_answered_without_a_measurement(bench: Bench, asked: list[Any]) -> None:
    evaluator = bench.evaluator(max_new_tokens=500, samples=2)
    assert evaluator.has_samples
    samples = evaluator.answer_samples(0, lambda *_: None)
    marks = [(sample.source, sample.exact_match, sample.valid_json) for sample in samples]
    assert marks == [("base", True, True), ("base", False, True)]
    ((conversations, _, training),) = asked
    assert [messages[0]["content"] for messages in conversations] == ["ticket ", "ticket word "]
    assert not training
    assert bench.loaded.model.training
    assert not bench.evaluator(samples=2).has_samples, "nothing is answered where only the loss is measured"


@cases("calls", [1, 2])
def test_a_stop_ends_it_and_the_model_trains_again(bench: Bench, calls: int) -> None:
    with pytest.raises(StopRequested):
        bench.evaluator(token_budget=1, max_new_tokens=2, check=stopping_at(calls)).measure(1, lambda *_: None)
    assert bench.loaded.model.training


class LimitedLoss(SupervisedLoss):
    """Runs out of memory with more than so many rows, or in some calls."""

    def __init__(self, model: Any, rows: int, fail_at: set[int]) -> None:
        super().__init__(model)
        self.rows, self.fail_at, self.calls = rows, fail_at, 0
        self.sizes: list[int] = []

    def hidden(self, input_ids: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        self.calls += 1
        if len(input_ids) > self.rows or self.calls in self.fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(len(input_ids))
        return super().hidden(input_ids, *args, **more)


def limited(bench: Bench, rows: int, fail_at: set[int]) -> tuple[Evaluator, LimitedLoss, list[str]]:
    told: list[str] = []
    loss = LimitedLoss(bench.loaded.model, rows, fail_at)
    evaluator = bench.evaluator(loss=loss, max_new_tokens=4, notice=lambda code, *_: told.append(code))
    return evaluator, loss, told


def test_batches_that_do_not_fit_stay_smaller_from_then_on(bench: Bench) -> None:
    wanted, *_ = bench.evaluator().measure(1, lambda *_: None)
    # The second call is that of the first single row, which is tried once more.
    evaluator, loss, told = limited(bench, 1, {2})
    event, *_ = evaluator.measure(1, lambda *_: None)
    assert event.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert loss.sizes == [1, 1, 1]
    assert told == ["memory_evaluation"]
    calls = loss.calls
    evaluator.measure(2, lambda *_: None)
    assert loss.calls == calls + 3, "the smaller size is kept"


def test_a_held_out_row_that_does_not_fit_is_reported_and_the_model_left_in_training(bench: Bench) -> None:
    evaluator, loss, _ = limited(bench, 0, set())
    with pytest.raises(MemoryShortageError, match=r"a single held-out row of \d+ tokens"):
        evaluator.measure(1, lambda *_: None)
    assert loss.sizes == []
    assert all(module.training for module in bench.loaded.model.modules())


def test_answers_that_do_not_fit_are_skipped_and_the_loss_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> list[str]:
        raise MemoryShortageError("The answer does not fit in memory.", "")

    monkeypatch.setattr(evaluate, "generate_batch", fail)
    evaluator, _, told = limited(bench, 3, set())
    event, samples, _ = evaluator.measure(1, lambda *_: None)
    assert told == ["memory_answers"]
    assert math.isfinite(event.loss)
    assert (event.exact_match, samples) == (None, [])
