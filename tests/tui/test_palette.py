"""The command palette: its commands, and the words that find them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cases import cases
from tests.tui.harness import has_live_run, press, resize, running, screen_lines, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tui.app import LocaltuneApp
from tui.keys import KEYS, Key, KeyTable
from tui.palette import WORDS, find_commands, list_commands
from tui.screens.pick import PickScreen
from tui.screens.theme_picker import ThemePicker
from tui.widgets.forms.inputs import PromptInput

OFFERED = [key for key in KEYS if key.palette]


def found(typed: str, pane: str = "train") -> list[str]:
    """The ids of the commands that are found, the best first."""
    return [command.key.id for command in find_commands(list_commands(KeyTable(), pane, lambda _: True), typed)]


@cases("key", OFFERED, ids=lambda key: key.id)
def test_every_command_is_found_by_its_name_and_by_its_other_words(key: Key) -> None:
    assert key.id in found(key.description)
    # In its own pane it is among the first.
    for words in (key.description, *WORDS[key.id]):
        assert key.id in found(words, key.scope)[:8], words


def test_every_command_has_other_words() -> None:
    # Written once for each of them, and for nothing else.
    assert {key.id for key in OFFERED} == set(WORDS)
    assert all(WORDS.values())


@cases(
    ("typed", "first"),
    [
        *(("theme", "app.theme"), ("colors", "app.theme"), ("export", "train.export")),
        *(("screenshot", "app.picture"), ("compare", "config.compare"), ("diff", "config.compare")),
        *(("download", "data.open"), ("ollama", "config.model"), ("base model", "config.model")),
        *(("delete", "runs.delete"), ("reset", "config.default"), ("undo", "config.undo")),
        *(("stop", "train.stop"), ("learning rate", "train.settings"), ("axolotl", "config.import")),
        *(("exit", "app.quit"), ("side by side", "app.tile"), ("demo", "train.sample")),
        ("save a check", "train.checkpoint"),
    ],
)
def test_a_word_finds_the_command_that_is_meant(typed: str, first: str) -> None:
    assert found(typed)[0] == first


def test_zoom_finds_the_panes_the_tiles_and_the_chart() -> None:
    panes = {f"app.{name}" for name in ("data", "config", "train", "chat", "runs", "tile")}
    assert set(found("zoom")) == panes | {"train.zoom_in", "train.zoom_out", "train.whole"}


@cases("typed", ["tme", "xq", "expt", "theme zzz"])
def test_scattered_letters_find_nothing(typed: str) -> None:
    assert found(typed) == []


def test_the_commands_of_the_pane_come_first_and_then_those_of_the_app() -> None:
    scopes = [identity.partition(".")[0] for identity in found("", "config")]
    assert list(dict.fromkeys(scopes))[:2] == ["config", "app"]
    assert len(scopes) == len(OFFERED)
    assert found("save", "config")[0] == "config.save"
    assert found("open", "runs")[0] == "runs.open"


def pointed_at(app: LocaltuneApp) -> list[str]:
    """The names under the cursor of the list."""
    return [found[1] for line in screen_lines(app) if (found := re.search(r"▸ (.*?)  ", line))]


async def test_each_command_has_one_line_with_its_key(home: Path) -> None:
    ScriptedRun(home).train_to(30)
    async with running(size=(200, 50), until=has_live_run) as (app, pilot):
        await press(pilot, "ctrl+p", until=lambda: isinstance(app.screen, PickScreen))
        await pilot.press("down", "down")
        (chosen,) = pointed_at(app)
        for size in ((200, 50), (120, 34), (80, 24)):
            await resize(pilot, *size)
            assert pointed_at(app) == [chosen], "the cursor stays where it is"
            assert any(re.search(r"Train: Pause the run .* p +[▁-█]?│", line) for line in screen_lines(app))
        await press(pilot, *"theme")
        assert any("▸" in line and "Choose the colors" in line and " f2" in line for line in screen_lines(app))
        await press(pilot, "enter", until=lambda: isinstance(app.screen, ThemePicker))


async def test_what_is_chosen_from_the_prompt_is_carried_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    async with running(until=has_live_run) as (app, pilot):
        for typed, pane in (
            ("show the configuration", "config"),
            ("pick a data file", "data"),
            ("save a checkpoint now", "train"),
        ):
            await press(pilot, "i", until=lambda: isinstance(app.focused, PromptInput))
            await press(pilot, "ctrl+p", until=lambda: isinstance(app.screen, PickScreen))
            await pilot.press(*typed, "enter")
            await wait_for(pilot, lambda: len(app.screen_stack) == 1 and app.main.current == pane)  # noqa: B023 - within this turn
        await wait_for(pilot, lambda: sent == ["checkpoint"])
