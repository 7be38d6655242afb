"""The configuration that is edited, with values of any size, its summary, and the facts about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.document import ConfigDocument
from core.hardware.snapshot import Device
from tests.cases import cases
from tui.panes.config.facts import FactsFinder
from tui.panes.config.model import ConfigModel


@cases("option", ["train.batch_size", "train.epochs", "train.max_steps", "data.eval_share"])
@cases("value", ["1" + "0" * 400, "-1", "inf", "nan", "true", '"many"'])
def test_no_value_is_too_large_for_the_summary(tmp_path: Path, option: str, value: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    document = ConfigDocument('data.train = "rows.jsonl"\n' + f"{option} = {value}\n", tmp_path / "mine.toml")
    model = ConfigModel(document)
    assert model.findings().problems
    assert "rows.jsonl" in model.summary({rows: 100})
    assert model.held_out(100) == 0


def test_the_rank_is_told_where_there_are_adapters() -> None:
    assert "qlora rank 16" in ConfigModel(ConfigDocument("")).summary({})
    assert "full · no training data" in ConfigModel(ConfigDocument('method.name = "full"\n')).summary({})


async def test_what_the_device_cannot_keep_is_a_finding_of_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def read(device: str, gpu: str | None) -> Device:
        asked.append((device, gpu))
        return Device(index=0, kind="cpu", name="Some CPU")

    monkeypatch.setattr("core.hardware.sampler.read_device", read)
    document = ConfigDocument('[data]\ntrain = "rows.jsonl"\n[night]\nenergy_kwh = 1.0\n')
    finder = FactsFinder()
    assert not document.remarks(finder.facts), "nothing is known of the device yet"
    await finder.find_card("cpu", None)
    assert asked == [("cpu", None)]
    (remark,) = document.remarks(finder.facts)
    assert remark.options == ("night.energy_kwh",)
    assert remark.sentence == "Some CPU does not report its power, so night.energy_kwh cannot be kept."
