"""The general probe, measured on a real small model."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.evaluate.evaluate import Probe, encode_probe
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.model import LoadedModel, trainable_parameters
from core.worker.process.control import StopRequested
from core.worker.process.determinism import rng_state
from tests.core.worker.evaluate.test_evaluate import LimitedLoss, mean_loss, stopping_at
from tests.core.worker.steps.stepper import adapted


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return adapted(tiny_model_dir, rank=2, dropout=0.5)


@pytest.fixture(scope="module")
def rows(loaded: LoadedModel) -> list[TokenizedRow]:
    return encode_probe(Encoder(loaded.tokenizer, [loaded.tokenizer.eos_token_id]))


def probe(loaded: LoadedModel, rows: list[TokenizedRow], budget: int = 4000, check: Any = lambda: None) -> Probe:
    loss = SupervisedLoss(loaded.model)
    return Probe(loaded, loss, rows, budget, contextlib.nullcontext, check, lambda *_: None)


def test_it_is_the_mean_over_the_tokens_of_all_answers(loaded: LoadedModel, rows: list[TokenizedRow]) -> None:
    for budget in (1, 4000):
        assert probe(loaded, rows[:6], budget).measure() == pytest.approx(mean_loss(loaded, rows[:6]), rel=1e-5)


def test_all_of_it_is_encoded_and_only_answers_count(loaded: LoadedModel, rows: list[TokenizedRow]) -> None:
    assert len(rows) == 40
    text = loaded.tokenizer.decode(rows[0].input_ids[rows[0].supervised])
    assert text.startswith("He counted the steps")
    assert "lighthouse" not in text


def test_a_model_without_a_template_is_measured_on_plain_text(loaded: LoadedModel) -> None:
    bare = copy.deepcopy(loaded.tokenizer)
    bare.chat_template = None
    rows = encode_probe(Encoder(bare, [bare.eos_token_id]))
    assert len(rows) == 40
    assert "lighthouse" in loaded.tokenizer.decode(rows[0].input_ids[rows[0].supervised])


def test_it_leaves_no_trace(loaded: LoadedModel, rows: list[TokenizedRow]) -> None:
    before = rng_state()["torch"]
    weights = [parameter.clone() for parameter in trainable_parameters(loaded.model)]
    told: list[tuple[int, int]] = []
    loaded.model.train()
    first = probe(loaded, rows).measure(lambda done, total: told.append((done, total)))
    assert probe(loaded, rows).measure() == first, "it draws nothing"
    assert torch.equal(rng_state()["torch"], before)
    assert all(module.training for module in loaded.model.modules())
    assert all(map(torch.equal, weights, trainable_parameters(loaded.model)))
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert told[-1] == (40, 40)


def test_a_stop_ends_it_and_the_model_trains_again(loaded: LoadedModel, rows: list[TokenizedRow]) -> None:
    loaded.model.train()
    with pytest.raises(StopRequested):
        probe(loaded, rows, 100, stopping_at(3)).measure()
    assert loaded.model.training


@pytest.mark.long
def test_a_probe_that_does_not_fit_in_memory_is_skipped_with_a_notice(
    loaded: LoadedModel, rows: list[TokenizedRow]
) -> None:
    told: list[str] = []
    full = LimitedLoss(loaded.model, 0, set())
    measured = Probe(loaded, full, rows, 4000, contextlib.nullcontext, lambda: None, lambda code, *_: told.append(code))
    assert measured.measure() is None
    assert told == ["memory_probe"]
