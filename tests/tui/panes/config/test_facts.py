"""Facts of the Config pane: what the device of a run cannot keep."""

from __future__ import annotations

import pytest

from core.config.document import ConfigDocument
from core.hardware.snapshot import Device
from tui.panes.config.facts import FactsFinder


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
    assert remark.sentence == "Some CPU does not tell its power, so night.energy_kwh cannot be kept."
