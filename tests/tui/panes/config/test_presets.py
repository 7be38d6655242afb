"""Presets in the config pane: the list, its preview, applied values and marks."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.containers import VerticalScroll

from core.hardware.card import Card
from tests.tui.config_panes import config_pane, edits, flat, type_value, write_config
from tests.tui.harness import press, screen_lines, screen_text, wait_for
from tui.screens.presets import PresetScreen

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("RTX 4090", 24 * GIB, (8, 9))
    monkeypatch.setattr("core.hardware.card.find_card", lambda **_: card)


async def test_the_list_says_what_each_would_change(tmp_path: Path) -> None:
    async with config_pane(write_config(tmp_path), size=(60, 20)) as (pilot, pane):
        await press(pilot, "P", until=lambda: isinstance(pilot.app.screen, PresetScreen))
        await wait_for(pilot, lambda: "auto: 24gb-7b" in screen_text(pilot.app))
        text = flat(screen_text(pilot.app))
        assert "the RTX 4090 has 24 GB" in text
        assert "method.rank 16 → 32" in text
        await press(pilot, "j", until="2048 → 512")
        assert any("▸   cpu-small" in line for line in screen_lines(pilot.app))
        await press(pilot, "G", until=lambda: any("▸   24gb-30b-quick" in line for line in screen_lines(pilot.app)))
        await press(pilot, "slash", *"8gb-7b", "enter", until="▸   8gb-7b")
        await press(pilot, "tab", "G", until=lambda: pilot.app.screen.query_one(VerticalScroll).scroll_y > 0)
        await press(pilot, "g", until=lambda: pilot.app.screen.query_one(VerticalScroll).scroll_y == 0)
        await press(pilot, "escape", until=lambda: not isinstance(pilot.app.screen, PresetScreen))
        assert pane.document.dumps() == (tmp_path / "tickets.toml").read_text()


async def test_enter_applies_and_the_differences_are_marked(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    before = path.read_text()
    async with config_pane(path, size=(120, 40)) as (pilot, pane):
        await press(pilot, "P", until=("auto: 24gb-7b", "Kept as you wrote it"))
        await press(pilot, "enter", until="✓ preset 24gb-7b: 4 options changed, 1 kept")
        assert pane.document.get("train.epochs") == 2.0
        assert pane.document.get("method.rank") == 32
        assert "# rows" in pane.document.dumps()
        assert edits(pilot)[-1].options["saved"] == before
        assert "preset 24gb-7b · 1 changed" in screen_lines(pilot.app)[0]
        assert any("• epochs" in line and "• was 1 in preset" in line for line in screen_lines(pilot.app))
        await type_value(pilot, pane, "method.rank", "8")
        assert any("• rank" in line and "• was 32 in preset" in line for line in screen_lines(pilot.app))
        assert "2 changed" in screen_lines(pilot.app)[0]
        # The preset's value first, and only then the default.
        await pilot.press("D")
        assert pane.document.get("method.rank") == 32
        await pilot.press("D")
        assert pane.document.get("method.rank") is None
        await pilot.press("u", "u", "u")
        await press(pilot, "u", until="Undone: preset 24gb-7b.")
        assert pane.document.dumps() == before
        # With a, it replaces what the user wrote too.
        await press(pilot, "P", until="Kept as you wrote it")
        await press(pilot, "A", until=lambda: "Kept as you wrote it" not in screen_text(pilot.app))
        assert "train.epochs 2 → 1" in flat(screen_text(pilot.app))
        await press(pilot, "enter", until=lambda: pane.document.get("train.epochs") == 1.0)


async def test_a_model_too_large_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.card.find_card", lambda **_: Card("GT 1030", 2 * GIB, (6, 1)))
    async with config_pane(write_config(tmp_path), size=(100, 40)) as (pilot, pane):
        await pilot.press("P")
        await wait_for(pilot, lambda: "there is no preset for that on the GT 1030" in flat(screen_text(pilot.app)))
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, PresetScreen)
        await press(pilot, "j", "enter", until=lambda: pane.preset_name == "cpu-small")
        await press(pilot, "P", until=lambda: isinstance(pilot.app.screen, PresetScreen))
        await wait_for(pilot, lambda: any("▸ ● cpu-small" in line for line in screen_lines(pilot.app)))
        assert any("as it is" in line for line in screen_lines(pilot.app))
