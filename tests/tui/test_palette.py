"""The command palette, and hints of keys: words that find commands, and hints that are clicked and up to date."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.cases import cases
from tests.tui.data_panes import row, write_lines
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import has_live_run, pane_of, press, resize, running, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tui.app import LocaltuneApp
from tui.keys import KEYS, SCREENS, Key, KeyTable
from tui.palette import WORDS, Command, find_commands, list_commands
from tui.screens.pick import PickScreen
from tui.screens.queue import QueueScreen
from tui.screens.theme_picker import ThemePicker
from tui.widgets.forms.inputs import PromptInput

OFFERED = [key for key in KEYS if key.palette]


def found(typed: str, pane: str = "train") -> list[str]:
    """The ids of the commands that are found in a pane or over a screen, the best first."""

    def acts(key: Key) -> bool:
        return key.scope == pane if pane in SCREENS else key.scope not in SCREENS

    return [command.id for command in find_commands(list_commands(KeyTable(), pane, acts), typed)]


@cases("key", OFFERED, ids=lambda key: key.id)
def test_every_command_is_found_by_its_name_and_by_its_other_words(key: Key) -> None:
    assert key.id in found(key.description, key.scope if key.scope in SCREENS else "train")
    # In its own pane it is among the first.
    for words in (key.description, *WORDS[key.id]):
        assert key.id in found(words, key.scope)[:8], words


@cases(
    ("typed", "first"),
    [
        *(("theme", "app.theme"), ("colors", "app.theme"), ("export", "train.export")),
        *(("screenshot", "app.picture"), ("compare", "config.compare"), ("diff", "config.compare")),
        *(("download", "data.open"), ("ollama", "config.model"), ("base model", "config.model")),
        *(("delete", "runs.delete"), ("reset", "config.default"), ("undo", "config.undo")),
        *(
            ("stop", "train.stop"),
            ("learning rate", "option:train.learning_rate"),
            ("quiet", "option:night.quiet_hours"),
            ("axolotl", "config.import"),
        ),
        *(("exit", "app.quit"), ("side by side", "app.tile"), ("zoom", "train.zoom_in"), ("demo", "train.sample")),
        ("save a check", "train.checkpoint"),
    ],
)
def test_a_word_finds_the_command_that_is_meant(typed: str, first: str) -> None:
    assert found(typed)[0] == first


def test_the_limits_of_the_night_are_found_for_the_next_runs_and_for_the_live_one() -> None:
    assert {"app.queue", "train.settings"} <= set(found("quiet"))
    assert found("tonight")[0] == "app.queue"


def test_the_name_of_every_command_fits_80_columns() -> None:
    assert {
        command.text for command in map(Command.of, OFFERED) if len(command.text) + len(command.shown) > 66
    } == set()


@cases("typed", ["tme", "xq", "expt", "theme zzz"])
def test_scattered_letters_find_nothing(typed: str) -> None:
    assert found(typed) == []


def test_the_commands_of_the_pane_come_first_and_then_those_of_the_app() -> None:
    scopes = [identity.partition(".")[0] for identity in found("", "config") if "option:" not in identity]
    assert list(dict.fromkeys(scopes))[:2] == ["config", "app"]
    assert len(scopes) == len([key for key in OFFERED if key.scope not in SCREENS])
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
            assert any(re.search(r"Train · Pause: or let the run .* p +[▁-█]?│", line) for line in screen_lines(app))
        await press(pilot, *"quiet", until="night.quiet_hours: Quiet hours of every day, such as …")
        await press(pilot, *["backspace"] * 5, *"theme")
        assert any("▸" in line and "Theme: choose the colors" in line and " f2" in line for line in screen_lines(app))
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


async def click(pilot: Pilot[Any], text: str) -> None:
    """Click a text on the screen."""
    lines = screen_lines(pilot.app)
    y = max(number for number, line in enumerate(lines) if text in line)
    await pilot.click(offset=(lines[y].index(text), y))


async def test_keys_in_borders_and_in_the_last_line_can_be_clicked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    write_lines(tmp_path / "rows.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    config = tmp_path / "mine.toml"
    config.write_text('[data]\ntrain = "rows.jsonl"\n')
    async with running(LocaltuneApp(config_path=config), (100, 30)) as (app, pilot):
        await wait_for(pilot, lambda: "2 Config · mine.toml" in screen_text(app))
        await click(pilot, "Train ·")
        await wait_for(pilot, lambda: "^s checkpoint" in screen_text(app))
        await click(pilot, "^s checkpoint")
        await wait_for(pilot, lambda: sent == ["checkpoint"])
        await click(pilot, "Data ·")
        await wait_for(pilot, lambda: "s statistics" in screen_text(app))
        await click(pilot, "s statistics")
        await wait_for(pilot, lambda: pane_of(app, "data").shows_report)
        await click(pilot, "? help")
        await wait_for(pilot, lambda: "Help · Data" in screen_text(app))


async def test_over_a_screen_the_palette_and_the_last_line_are_that_screens(home: Path) -> None:
    async with running() as (app, pilot):
        line = screen_lines(app)[-1]
        assert line.split("  ")[0] == " 1-5 Data · Config · Train · Chat · Runs"
        assert len(line.strip().split("  ")) <= 6
        await press(pilot, "Q", until=lambda: screen_lines(app)[-1].rstrip() == " esc close  ? help  ^p palette")
        await press(pilot, "ctrl+p", until="Sweep: a run for each value of an option")
        assert "Data pane" not in screen_text(app)
        assert screen_lines(app)[-1].rstrip() == " esc close  f1 help", "what is typed is text"
        await press(pilot, *"tonight", "enter", until="quiet hours")
        await press(pilot, "escape", until=lambda: isinstance(app.screen, QueueScreen))
        await press(pilot, "escape", until=lambda: screen_lines(app)[-1] == line)


async def test_the_palette_presses_the_keys_in_the_frame_of_a_screen(home: Path) -> None:
    async with running() as (app, pilot):
        await press(pilot, "2", "P", until="A replace mine")
        await press(pilot, "ctrl+p", until="Commands")
        assert pointed_at(app) == ["apply"]
        assert any("Quit" in line and " ^q " in line for line in screen_lines(app)), "its letter closes the screen"
        assert "quiet_hours" not in screen_text(app), "an option is shown in a pane"
        await press(pilot, "ctrl+p")
        await press(pilot, *"replace", "enter", until=lambda: "Commands" not in screen_text(app))
        await wait_for(pilot, lambda: "A keep mine" in screen_text(app))
        await press(pilot, "ctrl+p", *"quit", "enter", until=lambda: not app.is_running)


async def test_the_palette_has_the_answers_of_a_question(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    async with running(until=has_live_run) as (_, pilot):
        await press(pilot, "3", "x", until="keep training")
        await press(pilot, "ctrl+p", *"kill", until="kill its process")
        await press(pilot, "escape", until="keep training")
        await press(pilot, "ctrl+p", *"stop now", "enter", until=lambda: sent == ["stop"])


async def test_over_a_screen_its_key_quits(home: Path) -> None:
    async with running() as (app, pilot):
        await press(pilot, "2", "P", until="A replace mine")
        await press(pilot, "ctrl+q", until=lambda: not app.is_running)


async def test_the_keys_of_the_chat_agree_while_it_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    async with running(size=(120, 30), until=has_live_run) as (app, pilot):
        pane = pane_of(app, "chat")
        session = FakeSession({"tuned": ["short", " and", " tuned"]}, step=30)
        session.gate = threading.Semaphore(0)
        monkeypatch.setattr(pane._holder, "_factory", factory(session))
        await pilot.press("i", "h", "i")

        def agrees(stops: bool) -> bool:
            lines = screen_lines(app)
            shown = "esc stops the answer" if stops else "esc leaves the prompt"
            other = "esc leaves the prompt" if stops else "esc stops the answer"
            border = "esc stop " if stops else "esc leave "
            return shown in lines[-1] and other not in screen_text(app) and any(border in line for line in lines)

        await wait_for(pilot, lambda: agrees(stops=False))
        await press(pilot, "enter", until=lambda: agrees(stops=True))
        assert isinstance(app.focused, PromptInput)
        await pilot.resize_terminal(100, 26)
        await wait_for(pilot, lambda: agrees(stops=True))
        session.gate.release(3)
        await wait_for(pilot, lambda: agrees(stops=False))
        await pilot.resize_terminal(120, 30)
        await wait_for(pilot, lambda: agrees(stops=False))
