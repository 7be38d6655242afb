"""Rows left out of training: gaps in the order, and nothing else of the run changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from core.config.schema import Config
from core.runs.record.events import DataEvent
from core.worker.data.batches import DataOrder, supervised_count
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import load_model, trainable_parameters

from . import workers as e2e
from .workers import Workers

OFTEN: dict[str, dict[str, Any]] = {"eval": {"every_steps": None, "exact_match": False}, "data": {"eval": None}}


def read(config: Config) -> tuple[Dataset, DataOrder]:
    """The rows of a configuration and their order, as a run has them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model.base)
    dataset, _ = Loader(config, Encoder(tokenizer, [tokenizer.eos_token_id])).training()
    return dataset, DataOrder(dataset.lengths, config.train.batch_size, config.train.seed, dataset.excluded)


def entries(dataset: Dataset, rows: list[int]) -> list[str]:
    return [f"{Path(place.file).name}:{place.line}" for place in (dataset.places[row] for row in rows)]


def test_other_steps_are_those_of_a_run_with_the_rows_dropout_included(workers: Workers) -> None:
    # So small a rate changes no loss; the gradient of a fresh adapter shows what its dropout has drawn.
    settings = OFTEN | {"train": {"max_steps": 14, "learning_rate": 1e-12}, "checkpoint": {"every_steps": 5}}
    dataset, order = read(workers.config(**settings))
    gap, nothing = order.window(1)[2:3], order.window(6)
    left_out = entries(dataset, [*gap, *nothing])
    whole = workers.finished("whole", **settings)
    run = workers.held("gapped", 11, **settings | {"data": {"eval": None, "exclude": left_out}})
    e2e.kill_and_finish(workers, run, 11)

    (data, *_), (before, *_) = e2e.only(DataEvent, run), e2e.only(DataEvent, whole)
    assert (data.rows, data.used, data.dropped) == (40, 35, {"excluded": 5})
    assert before.tokens - data.tokens == sum(dataset.rows[row].tokens for row in [*gap, *nothing])
    assert run.state().total_steps == whole.state().total_steps == run.state().step == 14
    with_rows = {step.step: step for step in e2e.steps(whole)}
    gapped = {step.step: step for step in e2e.steps(run)}
    assert set(with_rows) - set(gapped) == {7}, "a step without a row only moves the schedule"
    changed = {number + 1 for number in range(14) if set(order.window(number)) & {*gap, *nothing}} - {7}
    assert changed >= {2}
    assert len(changed) < 8
    for number, step in gapped.items():
        wanted = with_rows[number]
        assert (step.lr, step.epoch) == (wanted.lr, wanted.epoch)
        if number not in changed:
            assert (step.loss, step.tokens) == (pytest.approx(wanted.loss, rel=1e-6), wanted.tokens)
            assert step.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-6)
        else:
            assert step.tokens < wanted.tokens
            assert step.grad_norm != pytest.approx(wanted.grad_norm, rel=1e-3)


def test_losses_are_those_of_a_loop_that_gives_the_row_no_weight(workers: Workers) -> None:
    settings = OFTEN | {
        "method": {"name": "lora", "dropout": 0.0},
        "train": {"max_steps": 8, "precision": "fp32", "learning_rate": 5e-3},
    }
    dataset, order = read(workers.config(**settings))
    row = order.window(1)[0]
    settings |= {"data": {"eval": None, "exclude": entries(dataset, [row])}}
    run = workers.finished("gapped", **settings)

    config = workers.config(**settings)
    loaded = load_model(workers.model, method="lora", precision="fp32", device="cpu")
    model = attach_adapters(loaded.model, config.method, seed=config.train.seed)
    trained = trainable_parameters(model)
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    for number, step in enumerate(e2e.steps(run)):
        weights = {each: float(each != row) for each in order.window(number)}
        count = sum(weight * supervised_count(dataset.rows[each]) for each, weight in weights.items())
        optimizer.zero_grad()
        loss = torch.stack([weight * summed_loss(model, dataset.rows[each]) for each, weight in weights.items()]).sum()
        (loss / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, config.train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = step.lr
        optimizer.step()
        assert step.loss == pytest.approx(float(loss.detach() / count), rel=1e-4)
        assert step.grad_norm == pytest.approx(float(norm), rel=1e-3)


def summed_loss(model: Any, row: TokenizedRow) -> torch.Tensor:
    """The negative log-likelihood of a row's supervised tokens."""
    ids = torch.as_tensor(row.input_ids, dtype=torch.int64)
    logits = model(input_ids=ids[None]).logits[0, :-1].float()
    learned = torch.as_tensor(row.supervised[1:])
    return F.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
