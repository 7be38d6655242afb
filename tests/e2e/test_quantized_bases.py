"""Runs on other weights than the 16-bit ones: a quantized base, layers that are kept, and those of the file to come."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from core.chat.session import spec_of
from core.config.document import ConfigDocument
from core.runs.catalog.trained import TrainedFile, find_trained
from core.runs.record.events import EvalEvent, NoticeEvent
from core.runs.record.store import Run
from tests.core.worker.quantization.hurt import write_hurt
from tests.families.tiny import write_family
from tests.packers import quantize_checkpoint

from . import workers as e2e
from .workers import Workers

STEPS = 6


def sections(base: Path, method: str) -> dict[str, dict[str, Any]]:
    return {
        "model": {"base": str(base)},
        "method": {"name": method},
        "train": {"max_steps": STEPS},
        "eval": {"exact_match": False},
        "checkpoint": {"every_steps": 2},
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "name", "method"),
    [
        pytest.param("llama", "fp8", "lora", marks=pytest.mark.long),
        pytest.param("qwen3_moe", "ct_w4a16", "qlora", marks=pytest.mark.long),
        ("gpt_oss", "mxfp4", "qlora"),
    ],
)
def test_a_run_learns_what_it_learns_on_the_model_that_its_base_stands_for(
    workers: Workers, tmp_path: Path, family: str, name: str, method: str
) -> None:
    twins = quantize_checkpoint(write_family(family, tmp_path / "source"), tmp_path, name)
    runs = [workers.start(base.name, **sections(base, method)) for base in (twins.quantized, twins.plain)]
    for run in runs:
        e2e.finish(run)
    quantized, plain = runs
    losses = e2e.losses(quantized)
    assert len(losses) == STEPS
    assert losses == e2e.losses(plain)
    assert e2e.adapter_bytes(quantized) == e2e.adapter_bytes(plain)


KEEPING: dict[str, dict[str, Any]] = {
    "method": {"dropout": 0.0},
    "train": {"max_steps": 12, "precision": "fp32", "learning_rate": 1e-4, "max_length": 512},
    "eval": {"every_steps": 12, "exact_match": False},
    "checkpoint": {"every_steps": 2, "keep": 100},
}


def kept(run: Run) -> list[str]:
    found = ConfigDocument.load(run.config_path).validate().model.keep_16bit
    assert isinstance(found, list)
    return found


def said(run: Run) -> list[NoticeEvent]:
    return [notice for notice in e2e.only(NoticeEvent, run) if notice.code == "quantization"]


@pytest.mark.long
def test_auto_keeps_what_costs_most_and_whoever_goes_on_has_the_same(workers: Workers, tmp_path: Path) -> None:
    workers.model = write_hurt(tmp_path / "hurt")
    auto = {"model": {"keep_16bit": "auto"}}
    whole = workers.finished("whole", **KEEPING, **auto)
    (notice,) = said(whole)
    assert notice.message.startswith("4 bits cost ")
    assert "; keep layer" in notice.message
    assert "model.layers.1.*" in kept(whole)
    assert all(pattern in notice.hint for pattern in kept(whole))

    # Named by hand, it is the same run.
    named = workers.finished("named", **KEEPING, model={"keep_16bit": kept(whole)})
    assert said(named) == []
    assert e2e.adapter_bytes(named) == e2e.adapter_bytes(whole)
    plain = workers.finished("plain", **KEEPING)
    assert e2e.adapter_bytes(plain) != e2e.adapter_bytes(whole)

    killed = workers.held("killed", 4, **KEEPING, **auto)
    e2e.kill(killed)
    assert kept(killed) == kept(whole)
    workers.complete(killed)
    assert e2e.notice_codes(killed).count("quantization") == 1, "it is found out once"
    assert e2e.adapter_bytes(killed) == e2e.adapter_bytes(whole)
    assert {event.step: event.loss for event in e2e.steps(killed)} == {
        event.step: event.loss for event in e2e.steps(whole)
    }

    # Chat loads the base as the run had it.
    assert spec_of(find_trained(whole)).keep_16bit == tuple(kept(whole))
    assert spec_of(find_trained(plain)).keep_16bit == ()


def test_where_4_bits_are_fine_nothing_is_kept(workers: Workers) -> None:
    run = workers.finished("fine", **KEEPING, model={"keep_16bit": "auto"})
    (notice,) = said(run)
    assert notice.message.endswith("on your rows: fine.")
    assert ConfigDocument.load(run.config_path).validate().model.keep_16bit is None


#: Of them the last ten are for the file.
TOTAL, BEFORE = 30, 20
FOR_FILE: dict[str, dict[str, Any]] = {
    "method": {"dropout": 0.0, "train_for": "q4_0"},
    "train": {"max_steps": TOTAL, "precision": "fp32"},
    "eval": {"every_steps": 10, "exact_match": True},
    "checkpoint": {"every_steps": 1, "keep": 100},
}


def results(run: Run) -> tuple[Any, ...]:
    """Outcome of a run: exact weights, losses, evaluations, and the best step."""
    measured = [(event.step, event.loss, event.exact_match) for event in e2e.only(EvalEvent, run)]
    losses = {event.step: event.loss for event in e2e.steps(run)}
    return e2e.adapter_bytes(run), losses, sorted(set(measured)), e2e.ending(run).best


def without(run: Run, after: int) -> None:
    """Take the checkpoints after a step away."""
    for path in run.checkpoints_path.iterdir():
        if path.name.startswith("step-") and int(path.name.removeprefix("step-")) > after:
            shutil.rmtree(path)


@pytest.mark.long
def test_a_run_that_goes_on_before_at_and_after_the_switch_ends_bit_equal(workers: Workers) -> None:
    whole = workers.finished("whole", **FOR_FILE)
    wanted = results(whole)
    assert e2e.notice_codes(whole).count("file_weights") == 1
    assert find_trained(whole, BEFORE).file is None
    assert find_trained(whole, BEFORE + 1).file == TrainedFile("Q4_0", "float32")
    assert find_trained(whole).file == TrainedFile("Q4_0", "float32")
    best = e2e.ending(whole).best
    assert best is not None
    assert best > BEFORE, "what was measured before counts no more"

    plain = workers.finished("plain", **FOR_FILE | {"method": {"dropout": 0.0}})
    losses = {event.step: event.loss for event in e2e.steps(plain)}
    assert [step for step in range(1, TOTAL + 1) if losses[step] == wanted[1][step]] == list(range(1, BEFORE + 1))

    killed = workers.held("killed", BEFORE + 2, **FOR_FILE)
    e2e.kill(killed)
    for step in (BEFORE - 7, BEFORE, BEFORE + 1):
        twin = workers.copy(killed, f"from-{step}")
        without(twin, step)
        workers.complete(twin)
        assert results(twin) == wanted, step
