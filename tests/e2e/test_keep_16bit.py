"""Runs whose base has some layers in 16 bit, found out by the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.chat.session import spec_of
from core.config.document import ConfigDocument
from core.errors import UserError
from core.runs.catalog.trained import find_trained
from core.runs.record.events import NoticeEvent
from core.runs.record.store import Run
from tests.core.worker.quantization.hurt import write_hurt

from .workers import Workers, adapter_bytes, finish, held_at, kill, notice_codes, only, steps, wait_until_step

OPTIONS: dict[str, dict[str, Any]] = {
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
    return [notice for notice in only(NoticeEvent, run) if notice.code == "quantization"]


@pytest.mark.long
def test_auto_keeps_what_costs_most_and_whoever_goes_on_has_the_same(workers: Workers, tmp_path: Path) -> None:
    workers.model = write_hurt(tmp_path / "hurt")
    auto = {"model": {"keep_16bit": "auto"}}
    whole = workers.start("whole", **OPTIONS, **auto)
    finish(whole)
    (notice,) = said(whole)
    assert notice.message.startswith("4 bits cost ")
    assert "; keep layer" in notice.message
    assert "model.layers.1.*" in kept(whole)
    assert all(pattern in notice.hint for pattern in kept(whole))

    # Named by hand, it is the same run.
    named = workers.start("named", **OPTIONS, model={"keep_16bit": kept(whole)})
    finish(named)
    assert said(named) == []
    assert adapter_bytes(named) == adapter_bytes(whole)
    plain = workers.start("plain", **OPTIONS)
    finish(plain)
    assert adapter_bytes(plain) != adapter_bytes(whole)

    killed = workers.start("killed", held_at(4), **OPTIONS, **auto)
    wait_until_step(killed, 4)
    kill(killed)
    assert kept(killed) == kept(whole)
    workers.resume(killed)
    finish(killed)
    assert notice_codes(killed).count("quantization") == 1, "it is found out once"
    assert adapter_bytes(killed) == adapter_bytes(whole)
    assert {event.step: event.loss for event in steps(killed)} == {event.step: event.loss for event in steps(whole)}

    # Chat loads the base as the run had it.
    assert spec_of(find_trained(whole)).keep_16bit == tuple(kept(whole))
    assert spec_of(find_trained(plain)).keep_16bit == ()


def test_where_4_bits_are_fine_nothing_is_kept(workers: Workers) -> None:
    run = workers.start("fine", **OPTIONS, model={"keep_16bit": "auto"})
    finish(run)
    (notice,) = said(run)
    assert notice.message.endswith("on your rows: fine.")
    assert ConfigDocument.load(run.config_path).validate().model.keep_16bit is None
    with pytest.raises(UserError, match="keep_16bit"):
        ConfigDocument('[model]\nkeep_16bit = "some"\n[data]\ntrain = "a"').validate()
