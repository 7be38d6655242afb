"""Bursts of keys: keys typed ahead are carried out where they lead, and text by mistake does nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.keys import _character_to_key
from textual.pilot import Pilot

from core.config.files import remember_config
from tests.cases import cases
from tests.tui.config_panes import config_pane, write_config
from tests.tui.config_panes import opened as config_opened
from tests.tui.data_panes import data_pane, row, write_lines
from tests.tui.harness import has_live_run, press, running, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal, app_environment
from tests.tui.test_app import record_commands
from tui.driver import BURST_GOES_ON
from tui.keys import KeyTable, load_keymap
from tui.screens.box import DifferenceScreen
from tui.screens.choice import ChoiceDialog
from tui.screens.pick import PickScreen
from tui.screens.presets import PresetScreen
from tui.typed_ahead import Place, TypedAhead
from tui.widgets.forms.inputs import SafeInput

PANES = ("data", "config", "train", "chat", "runs")
NAMES = {"\n": "enter", "\x13": "ctrl+s", "\x10": "ctrl+p", "\t": "tab", "↓": "down"}
#: Texts for shells, editors and people, and texts that were once typed into the app by mistake.
TEXTS = [
    *("clear; localtune-tui trian\n", "ls -la\n", "sudo reboot\n", "git status\n", "git\n"),
    *("pip install torch\n", "kill -9 1234\n", "rm -rf runs\n", "python -m tui\n", "exit\n", "echo hello\n"),
    *("test\n", "delete\n", "tree\n", "top\n", "pop\n", "less\n", "stop\n", "select * from runs;\n"),
    *("How do I replace my fan?\n", "für Elise\n", "好的，开始\n"),
]


def key(character: str) -> Key:
    """A key as the terminal delivers it."""
    return Key(NAMES.get(character) or _character_to_key(character), None if character in NAMES else character)


@pytest.fixture
def ahead() -> TypedAhead:
    return TypedAhead(KeyTable(), lambda: None)


def admitted(text: str, scope: str, *, table: KeyTable | None = None, told: list[str] | None = None) -> str:
    """The keys of a burst that are handled: pane numbers go to their pane, and a key that asks is followed by text."""
    table = table or KeyTable()
    told = [] if told is None else told
    ahead = TypedAhead(table, lambda: told.append("lost"))
    keys = [key(character) for character in text]
    ahead.expect(keys, goes_on=False)
    place, handled = Place(scope=scope), ""
    for each, character in zip(keys, text, strict=True):
        if not ahead.admits(each, place):
            continue
        handled += character
        found = None if place.takes_text else table.find(place.scope, each.key)
        if place.takes_text and character == "\n":
            place = Place(scope=scope)
        elif found is not None and found.pane:
            scope = found.pane
            place = Place(scope=scope)
        elif found is not None and found.then:
            place = Place(takes_text=True)
    return handled


@cases("scope", PANES)
@cases("text", TEXTS)
def test_no_letter_of_a_text_is_a_command(text: str, scope: str) -> None:
    told: list[str] = []
    handled = admitted(text, scope, told=told)
    if handled:
        # A text may begin with the key that asks for one: it is that text then, and nothing else.
        first = KeyTable().find(scope, key(handled[0]).key)
        assert handled == text
        assert first is not None
        assert first.then == "text"
    else:
        assert told == ["lost"]


@cases(
    ("scope", "text"),
    [
        *(("data", "tr\n"), ("train", "1o rows.jsonl\n"), ("train", "1tr\n"), ("data", "jjjjjjjj")),
        *(("data", ":123456\n"), ("data", "/fan\nn"), ("data", "jjj/fan\n"), ("data", "GGkk")),
        *(("config", "2jj"), ("config", "/lr\n"), ("config", "\n0.01\n"), ("config", "jjj\n0.01\n")),
        *(("config", "S mine.toml\n"), ("config", "\x13mine.toml\n"), ("config", "Oapp\n")),
        *(("config", "P↓↓\n"), ("train", "e1e-4\n"), ("train", "xy"), ("train", "ihello world\n")),
        *(("runs", "/failed\n"), ("runs", "5jj\n"), ("train", "51234"), ("chat", "i what is 3?\n")),
        *(("chat", "4ihello\n"), ("runs", "\x10theme\n")),
    ],
)
def test_what_is_typed_ahead_is_carried_out(scope: str, text: str) -> None:
    told: list[str] = []
    assert admitted(text, scope, told=told) == text
    assert not told


def test_a_key_that_is_held_down_is_no_text() -> None:
    told: list[str] = []
    assert admitted("wwwwww", "train", told=told) == ""
    assert not told


def test_a_key_pressed_by_itself_is_always_handled(ahead: TypedAhead) -> None:
    ahead.expect([key("x"), key("y"), key("z")], goes_on=False)
    assert ahead.admits(key("q"), Place(scope="train"))


def test_a_text_goes_on_in_the_next_read() -> None:
    told: list[str] = []
    ahead = TypedAhead(KeyTable(), lambda: told.append("lost"))
    handled = []
    for piece, goes_on in (("cle", False), ("ar; lo", True), ("r", True), ("q", True), ("p", False)):
        keys = [key(character) for character in piece]
        ahead.expect(keys, goes_on=goes_on)
        handled += [each.key for each in keys if ahead.admits(each, Place(scope="train"))]
    assert handled == ["p"]
    assert told == ["lost"]


def test_what_was_dropped_long_ago_takes_no_later_keys_with_it(ahead: TypedAhead) -> None:
    place = Place(scope="data")
    keys = [key(character) for character in "clear; ls"]
    ahead.expect(keys, goes_on=False)
    assert not any(ahead.admits(each, place) for each in keys)
    # Much later, two keys are pressed as one.
    assert ahead.admits(key("j"), place)
    second = key("m")
    ahead.expect([second], goes_on=True)
    assert ahead.admits(second, place)


@cases(
    ("scope", "text", "expected"),
    [("config", "open /etc/passwd\n", "o"), ("data", "sx reboot\n", "s"), ("train", "pab", "pa")],
)
def test_of_a_text_that_comes_key_by_key_little_is_handled(scope: str, text: str, expected: str) -> None:
    ahead = TypedAhead(KeyTable(), lambda: None)
    place, handled = Place(scope=scope), ""
    for number, character in enumerate(text):
        each = key(character)
        if number:
            ahead.expect([each], goes_on=True)
        handled += character if ahead.admits(each, place) else ""
    assert handled == expected


def test_a_question_takes_its_own_keys_alone(ahead: TypedAhead) -> None:
    keys = [key(character) for character in "mary\n"]
    ahead.expect(keys, goes_on=False)
    assert not any(ahead.admits(each, Place(own={"y", "n"})) for each in keys)
    keys = [key(character) for character in "y\n"]
    ahead.expect(keys, goes_on=False)
    assert all(ahead.admits(each, Place(own={"y", "n"})) for each in keys)


def test_a_paste_of_thousands_of_letters_is_looked_through_once(ahead: TypedAhead) -> None:
    keys = [key("j") for _ in range(100_000)]
    ahead.expect(keys, goes_on=False)
    assert sum(ahead.admits(each, Place(scope="data")) for each in keys[:2_000]) == 2_000


@cases(
    ("text", "scope", "typed", "ask"),
    [
        # The letter is the user's own now; the other key for it stays.
        ('[train]\npause = "w"\nstop = "i"\n', "train", "wi", "f6"),
        ('[chat]\nwrite = ["i", "y"]\n', "chat", "y what is 3?\n", "i,f6"),
        ('[chat]\nwrite = "y"\n', "chat", "y what is 3?\n", "i,f6"),
    ],
)
def test_a_keymap_counts(tmp_path: Path, text: str, scope: str, typed: str, ask: str) -> None:
    path = tmp_path / "keymap.toml"
    path.write_text(text, encoding="utf-8")
    overrides, problems = load_keymap(path)
    assert problems == []
    table = KeyTable(overrides)
    assert admitted(typed, scope, table=table) == typed
    assert table["app.ask"].keys == ask


def type_at_once(pilot: Pilot[Any], text: str) -> None:
    """Post every key before the first one is handled; a line break is ``enter``."""
    for character in text:
        pilot.app.post_message(key(character))


async def typed(pilot: Pilot[Any]) -> str:
    """The text of the focused input."""
    await wait_for(pilot, lambda: isinstance(pilot.app.focused, SafeInput))
    await pilot.pause()
    line = pilot.app.focused
    assert isinstance(line, SafeInput)
    return line.value


async def test_what_is_typed_behind_a_key_that_asks_is_the_text_and_the_keys_come_back(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    async with data_pane(path, size=(100, 24)) as (pilot, pane):
        pane.body.rows.focus()
        await pilot.pause()
        # Each of these letters is a key of the pane, and so are the keys themselves.
        for chunk, text in (("/mfsH/o:q", "mfsH/o:q"), (":2m/", "2m/"), ("onob/:lm", "nob/:lm")):
            type_at_once(pilot, chunk)
            assert (await typed(pilot)).removeprefix(f"{tmp_path}/") == text
            assert not pane.body.shows_tokens
            assert not pane.shows_report
            await press(pilot, "escape", until=lambda: pane.body.rows.has_focus)
        for number in (3, 7):
            type_at_once(pilot, f":{number}")
            assert await typed(pilot) == str(number)
            await press(pilot, "enter", until=lambda: pane.body.rows.has_focus)
            await pilot.pause()
            assert pane.index == number - 1
        for term in ("quest", "no such text"):
            # The last search is offered again, and is replaced by typed text.
            type_at_once(pilot, f"/{term}")
            assert await typed(pilot) == term
            await press(pilot, "enter", until=lambda: pane.body.rows.has_focus)
        await pilot.press("slash")
        assert await typed(pilot) == "no such text"


async def test_what_is_typed_behind_the_keys_of_the_configuration_goes_where_they_lead(
    tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with config_pane(size=(100, 24)) as (pilot, pane):
        for name in ("apples", "pears"):
            (tmp_path / f"{name}.toml").write_text('[data]\ntrain = "rows.jsonl"\n')
            remember_config(tmp_path / f"{name}.toml")
        await config_opened(pilot, pane, write_config(tmp_path))
        pane.form.focus()
        await pilot.pause()
        type_at_once(pilot, "Oapp")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, PickScreen))
        assert await typed(pilot) == "app"
        await press(pilot, "escape", until=lambda: not isinstance(pilot.app.screen, PickScreen))
        type_at_once(pilot, "Oapp\n")
        await wait_for(pilot, lambda: pane.document.path == tmp_path / "apples.toml")
        type_at_once(pilot, "cf")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, DifferenceScreen))
        await press(pilot, "escape", until=lambda: pane.form.has_focus)
        cursor = pane.form.cursor
        type_at_once(pilot, "Pj")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, PresetScreen))
        screen = pilot.app.screen
        assert isinstance(screen, PresetScreen)
        await wait_for(pilot, lambda: screen._list.highlighted not in (None, 0))
        assert pane.form.cursor == cursor


async def test_what_is_typed_ahead_confirms_nothing_and_commands_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    async with running(until=has_live_run) as (app, pilot):
        await press(pilot, "3")
        type_at_once(pilot, "xyp")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.pause()
        assert isinstance(app.screen, ChoiceDialog)
        assert sent == []
        # A key that comes twice answers once.
        for opening, leaving in (("", "nn"), ("?", "\n\n"), ("x", "yy"), ("e", "\n\n")):
            type_at_once(pilot, opening)
            await wait_for(pilot, lambda: len(app.screen_stack) == 2)
            await pilot.pause()
            type_at_once(pilot, leaving)
            await wait_for(pilot, lambda: len(app.screen_stack) == 1)
            await pilot.pause()
            assert app.is_running
        assert sent == ["stop"]


MISTYPED = "clear; localtune-tui trian\r"
LOST = "Nothing here takes text"
TITLES = {"1": "1 Data", "2": "2 Config", "3": "3 Train", "4": "4 Chat", "5": "5 Runs"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data and a configuration, a run that is on, and an editor that leaves a trace."""
    made = tmp_path_factory.mktemp("workplace")
    write_lines(made / "rows.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    (made / "mine.toml").write_text('[model]\nbase = "nowhere"\n[data]\ntrain = "rows.jsonl"\n')
    editor = made / "editor"
    editor.write_text(f'#!/bin/sh\ntouch "{made}/edited"\n')
    editor.chmod(0o755)
    ScriptedRun(made / "home").train_to(30)
    return made


@pytest.fixture(scope="module")
def terminal(workplace: Path) -> Iterator[Terminal]:
    environment = {**app_environment(workplace / "home"), "EDITOR": str(workplace / "editor")}
    with Terminal.app(str(workplace / "mine.toml"), environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("─ 2 Config · mine.toml")
        terminal.press("1", until="1 Data · rows.jsonl")
        yield terminal


def test_keys_typed_ahead_go_to_the_pane_that_the_number_has_shown(terminal: Terminal) -> None:
    terminal.press("3", until="─ 3 Train")
    terminal.press("1jj/question 7\r", until="question 7: row 8")
    terminal.press("3", until="─ 3 Train")
    terminal.press("1:2\r", until="─ row 2 ")
    terminal.press("5iwhat is it?", until="─ 4 Chat")
    terminal.wait_for_text("what is it?")
    terminal.press("\x1b")
    terminal.wait_for_rest()


def test_a_command_line_typed_into_a_pane_does_nothing(terminal: Terminal, workplace: Path) -> None:
    for number, title in TITLES.items():
        terminal.press(number, until=f"─ {title}")
        terminal.press(MISTYPED)
        terminal.wait_for_text(LOST)
        terminal.wait_for_rest()
        assert f"─ {title}" in terminal.text
        assert not terminal.has_ended()
        assert not (workplace / "edited").exists()
        assert len(list((workplace / "home" / "runs").iterdir())) == 1
        # A key that comes later is one again, and no question is open that would take it; keys that come at once are
        # still the end of the text.
        over = time.monotonic() + 2 * BURST_GOES_ON
        terminal.wait_for(lambda: time.monotonic() > over)  # noqa: B023 - within this turn of the loop
        terminal.press("?", until=f"Help · {title.partition(' ')[2]}")
        terminal.press("\x1b")
        terminal.wait_for(lambda: "Help · " not in terminal.text)


def test_a_paste_where_nothing_is_entered_does_nothing(terminal: Terminal, workplace: Path) -> None:
    terminal.press("2", until="─ 2 Config")
    terminal.press(f"\x1b[200~{MISTYPED}\x1b[201~")
    terminal.wait_for_text(LOST)
    terminal.wait_for_rest()
    assert not (workplace / "edited").exists()


def test_the_end_of_a_text_that_comes_a_little_later_goes_with_it(terminal: Terminal) -> None:
    terminal.press("1", until="─ 1 Data")
    terminal.press("make all")
    terminal.press("\r")
    terminal.press("q")
    terminal.wait_for_text(LOST)
    terminal.wait_for_rest()
    assert not terminal.has_ended()
    assert "leave it running" not in terminal.text
