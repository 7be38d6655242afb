"""Screen of the 4-bit measurement, opened from the Config pane."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.config.schema import Config
from core.directories import Progress
from core.quantization.result import Figures, QuantizationCost, sentence
from tests.core.quantization.test_result import COST
from tests.tui.harness import pane_of, press, running, screen_lines, screen_text, wait_for
from tui.app import LocaltuneApp
from tui.screens.job import JobScreen


class Measurement:
    """A measurement that waits for permission to end."""

    def __init__(self) -> None:
        self.result = COST
        self.may_end = threading.Event()
        self.configs: list[Config] = []

    def __call__(self, config: Config, progress: Progress) -> QuantizationCost:
        self.configs.append(config)
        while not self.may_end.wait(0.02):
            progress("layer by layer", 7, 30)
        return self.result


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> Measurement:
    found = Measurement()
    monkeypatch.setattr("tui.screens.bits.measure", found)
    return found


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ntrain = "rows.jsonl"\n')
    return path


async def open_screen(pilot: Pilot[Any], app: LocaltuneApp, path: Path) -> None:
    await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)
    pane_of(app, "config").load(ConfigDocument.load(path))
    await press(pilot, "2", until="mine.toml")
    await press(pilot, "B", until=lambda: isinstance(app.screen, JobScreen) and "enter begin" in screen_text(app))


@asynccontextmanager
async def asking(path: Path) -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp]]:
    """The app with the question whether to measure."""
    async with running() as (app, pilot):
        await open_screen(pilot, app, path)
        yield pilot, app


async def test_the_layers_are_measured_shown_and_kept(measurement: Measurement, config_file: Path) -> None:
    async with asking(config_file) as (pilot, app):
        assert measurement.configs == []
        await press(pilot, "enter", until=("layer by layer: 7 of 30", "esc cancel"))
        measurement.may_end.set()
        await wait_for(pilot, lambda: "enter keep them in 16 bit" in screen_text(app))
        assert " ".join(sentence(COST).split()[:6]) in screen_text(app)
        assert "0.1000" in screen_text(app)
        assert all(len(line) <= 80 for line in screen_lines(app))
        assert measurement.configs[0].data.train == str(config_file.parent / "rows.jsonl")
        await press(pilot, "enter", until=lambda: not isinstance(app.screen, JobScreen))
        pane = pane_of(app, "config")
        await wait_for(pilot, lambda: pane.document.get("model.keep_16bit") is not None)
        assert pane.document.get("model.keep_16bit") == ["model.layers.0.*", "model.layers.2.*"]
        await wait_for(pilot, lambda: "model.keep_16bit has 2 entries" in screen_text(app))
        await pilot.press("u")
        assert pane.document.get("model.keep_16bit") is None


async def test_what_is_fine_offers_nothing_to_keep(measurement: Measurement, config_file: Path) -> None:
    measurement.result = replace(COST, whole=Figures(1.5, 0.02, 0.99), kept=None)
    measurement.may_end.set()
    async with asking(config_file) as (pilot, app):
        await press(pilot, "enter", until="0.02 nats on your rows: fine.")
        assert "keep them" not in screen_text(app)
        await press(pilot, "enter", until=lambda: not isinstance(app.screen, JobScreen))
        assert pane_of(app, "config").document.get("model.keep_16bit") is None
