"""The whole app under Pilot: sizes, keys, attaching, control, and quitting."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.content import Content
from textual.geometry import Region, Size

from core.runs.control.client import ControlClient
from tests.cases import cases
from tests.tui.harness import (
    asks,
    has_live_run,
    has_run,
    pane_of,
    press,
    running,
    screen_lines,
    screen_text,
    view_of,
    wait_for,
)
from tests.tui.resting import read_often
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.bridge import Result
from tui.keys import SCREENS, KeyTable
from tui.main_screen import Desktop, PaneSlot, TooSmall, companions, direction, places, room
from tui.meters import STALE_SECONDS
from tui.panes import PANES, TILED, Panes
from tui.screens.choice import ChoiceDialog
from tui.screens.help import HelpScreen, help_content, help_text
from tui.screens.queue import QueueScreen
from tui.state import AppState, ServingView


@pytest.fixture(autouse=True)
def _news_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes to the files of a run appear at once."""
    read_often(monkeypatch)


def shown(app: LocaltuneApp) -> set[str]:
    """The visible panes."""
    return {slot.spec.id for slot in app.main.query("PaneSlot").results() if slot.display}  # type: ignore[attr-defined]


class Commands(list[str]):
    """A growing list of commands."""

    def __init__(self) -> None:
        super().__init__()
        self.with_args: list[tuple[str, dict[str, Any]]] = []
        """The commands with their arguments."""


def record_commands(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | None = None) -> Commands:
    """Record the commands to a worker, which gives the same answer to all of them."""
    sent = Commands()

    def request(_: ControlClient, command: str, **args: Any) -> dict[str, Any]:
        sent.append(command)
        sent.with_args.append((command, args))
        return answer or {}

    monkeypatch.setattr(ControlClient, "request", request)
    return sent


async def test_a_small_terminal_shows_one_pane_and_numbers_switch() -> None:
    async with running() as (app, pilot):
        assert shown(app) == {"train"}
        for key, name in (("1", "data"), ("2", "config"), ("5", "runs"), ("3", "train")):
            await pilot.press(key)
            assert shown(app) == {name}
            assert app.focused is not None
            assert app.main.slot(name).has_focus_within
        for key, name in (("tab", "chat"), ("tab", "runs"), ("tab", "data"), ("shift+tab", "runs")):
            await pilot.press(key)
            assert (shown(app), app.main.slot(name).has_focus_within) == ({name}, True)
        await wait_for(pilot, lambda: hints_of(app, "runs") == "r run  U trash  ? more")
        await pilot.press("3", "backslash")
        assert shown(app) == {"train"}
        for size in ((119, 50), (200, 29), (60, 20)):
            await pilot.resize_terminal(*size)
            await pilot.press("2")
            assert shown(app) == {"config"}
            await pilot.press("3")
            assert shown(app) == {"train"}


async def test_a_large_terminal_tiles_four_panes_and_a_number_again_zooms() -> None:
    async with running(size=(160, 45)) as (app, pilot):
        assert shown(app) == set(TILED)
        await pilot.press("2")
        assert (shown(app), app.main.current) == (set(TILED), "config")
        await pilot.press("2")
        assert shown(app) == {"config"}
        assert "0 tiles" in screen_text(app).splitlines()[-1]
        await pilot.press("1")
        assert shown(app) == {"data"}
        await pilot.press("0")
        assert (shown(app), app.main.current) == (set(TILED), "data")
        await pilot.press("3", "3", "3")
        assert shown(app) == set(TILED)
        for name in ("chat", "data", "config", "train"):
            await pilot.press("tab")
            assert app.main.slot(name).has_focus_within, "a stop in each pane"
        await pilot.press("5")
        assert shown(app) == {"runs"}
        await pilot.resize_terminal(200, 50)
        assert shown(app) == {"runs"}
        await pilot.press("0")
        assert (shown(app), app.main.current) == (set(TILED), "train")
        await pilot.resize_terminal(50, 15)
        await wait_for(pilot, lambda: app.main.query_one(TooSmall).display)
        assert "50×15 is too small" in screen_text(app)
        assert "at least 60×20" in screen_text(app)
        await pilot.resize_terminal(160, 45)
        await wait_for(pilot, lambda: shown(app) == set(TILED) and not app.main.query_one(TooSmall).display)


async def test_two_panes_share_a_terminal_of_middle_size() -> None:
    async with running(size=(120, 34)) as (app, pilot):
        assert shown(app) == {"train", "chat"}
        for key, name, both in (
            *(("4", "chat", {"train", "chat"}), ("2", "config", {"data", "config"})),
            *(("1", "data", {"data", "config"}), ("1", "data", {"data"}), ("3", "train", {"train"})),
            *(("3", "train", {"train", "chat"}), ("5", "runs", {"runs"})),
        ):
            await pilot.press(key)
            assert (app.main.current, shown(app)) == (name, both)
            assert app.main.slot(name).has_focus_within
        for size in ((120, 30), (159, 50), (200, 44)):
            await pilot.resize_terminal(*size)
            await pilot.press("5", "2")
            assert (app.main.current, shown(app)) == ("config", {"data", "config"})
            panes = [slot.region for slot in app.main.query(PaneSlot)]
            assert all(not one.overlaps(other) for one, other in itertools.pairwise(panes))


async def test_two_panes_are_put_over_each_other_by_a_key_that_is_remembered(home: Path) -> None:
    async with running(size=(120, 34)) as (app, pilot):
        train, chat = app.main.slot("train"), app.main.slot("chat")
        assert train.region.y == chat.region.y
        assert "\\ stacked" in screen_text(app).splitlines()[-1]
        await press(pilot, "backslash", until=lambda: train.region.x == chat.region.x)
        assert train.region.bottom == chat.region.y
        assert "\\ side by side" in screen_text(app).splitlines()[-1]
    async with running(size=(120, 34)) as (app, pilot):
        await wait_for(pilot, lambda: app.main.slot("train").region.x == app.main.slot("chat").region.x)


async def test_a_live_run_stays_in_sight(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    async with running(size=(120, 34), until=has_live_run) as (app, pilot):
        for key, name in (("1", "data"), ("2", "config"), ("4", "chat"), ("5", "runs")):
            await pilot.press(key)
            assert (app.main.current, shown(app)) == (name, {"train", name})
        await pilot.press("1")
        script.end("finished")
        await wait_for(pilot, lambda: app.state.live_run is None)
        assert shown(app) == {"train", "data"}, "the end moves nothing"
        await pilot.press("2")
        assert shown(app) == {"data", "config"}
        await pilot.resize_terminal(200, 50)
        await wait_for(pilot, lambda: shown(app) == set(TILED))


async def test_panes_out_of_sight_are_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, bool] = {}

    def record(_: LocaltuneApp, name: str, *, shown: bool) -> None:
        told[name] = shown

    monkeypatch.setattr(LocaltuneApp, "pane_shown", record)
    async with running(size=(120, 34)) as (app, pilot):
        for width, height in ((80, 24), (200, 50), (130, 60), (61, 21), (160, 45), (40, 10), (120, 30)):
            await pilot.resize_terminal(width, height)
            await press(pilot, "1", until=lambda: {name for name, is_shown in told.items() if is_shown} == shown(app))


async def test_the_live_run_is_attached_to_and_followed_step_by_step(home: Path) -> None:
    ScriptedRun(home, "20261124-100000-over").end("finished")
    script = ScriptedRun(home).train_to(64)
    async with running(size=(120, 34)) as (app, pilot):
        await pilot.press("3")  # alone on the screen, so that nothing is left out for lack of width
        await wait_for(pilot, lambda: app.state.view is not None)
        assert view_of(app).run.id == script.run.id
        text = screen_text(app)
        (note,) = app._notifications
        assert re.fullmatch(r"Attached to \S+, which is training\.", note.message)
        folded = "2 checkpoints, newest step-60 (1.2 s, 39 MB)"
        for expected in ("64/120", "0.480 @60", "18.2/24.0 GB", "71 °C", "318 tok/s", folded):
            assert expected in text
        script.steps(65, 70)
        await wait_for(pilot, lambda: "70/120" in screen_text(app))
        assert view_of(app).history.step == 70
        script.end("failed", "CUDA out of memory at step 71.", "Make train.max_length smaller.")
        await wait_for(pilot, lambda: "failed at step 70" in screen_text(app))
        for expected in ("CUDA out of memory at step 71.", "Make train.max_length smaller.", "C continue "):
            assert expected in screen_text(app)


async def test_a_live_run_beside_a_shown_ended_one_is_named(home: Path) -> None:
    ScriptedRun(home, "20261124-100000-over").train_to(3).end("finished")
    async with running(until=has_run) as (app, pilot):
        ScriptedRun(home, "20261124-110000-next").train_to(3)
        app.runs._looked = 0.0
        await wait_for(pilot, lambda: "● next is live" in screen_lines(app)[0], 30)


async def test_quitting_beside_a_live_run_asks_and_goes_on_where_a_stop_fails(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    async with running(until=has_run) as (app, pilot):
        await press(pilot, "q", until=lambda: asks(app, "leave it running"))
        await press(pilot, "x", until="Could not stop")
        assert "cannot be reached" in screen_text(app)
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        assert app.is_running
        app.state.serving = ServingView("faq")
        await press(pilot, "ctrl+q", until="The server for faq ends with the app.")
        await pilot.press("l")
    assert app.return_value is not None
    assert app.return_value.endswith("Come back with: localtune-tui")
    assert script.run.state().state == "training"


async def test_quitting_with_stop_sends_stop_and_leaves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    async with running(until=has_run) as (app, pilot):
        await press(pilot, "q", until=lambda: asks(app, "leave it running"))
        await press(pilot, "x", until=lambda: app.return_value is not None)
    assert sent == ["stop"]
    assert "stops after a checkpoint" in (app.return_value or "")
    assert f"localtune-tui continue {script.run.id}" in (app.return_value or "")


async def test_an_ended_run_is_named_with_its_outputs(home: Path) -> None:
    script = ScriptedRun(home).train_to(120).end("finished")
    async with running(LocaltuneApp(run="latest"), (80, 24), until="finished at step 120") as (app, pilot):
        await pilot.press("q")
    assert app.return_value == f"Run {script.run.id} is finished: {script.run.adapter_path}"


async def test_no_match_reads_differently_from_no_runs(home: Path) -> None:
    async with running() as (app, pilot):
        await press(pilot, "5", until="No runs yet.")
        ScriptedRun(home).end("finished")
        await wait_for(pilot, lambda: "✓ finished" in screen_text(app))
        await press(pilot, "slash", *"zzz", until="No run matches.")


def hints_of(app: LocaltuneApp, pane: str) -> str:
    """The key hints in the lower border of a pane."""
    return Content.from_markup(str(pane_of(app, pane).border_subtitle or "")).plain


async def test_help_explains_the_pane_and_scrolls() -> None:
    async with running() as (app, pilot):
        await press(pilot, "question_mark", until=lambda: isinstance(app.screen, HelpScreen))
        # Without a run, the first page has the keys that begin one.
        for said in ("Open a data file by its path", "LLaMA-Factory", "Train the starter model"):
            assert said in screen_text(app)
        assert "Pause the run" not in screen_text(app)
        await press(pilot, "question_mark", "G", until="keymap.toml")
        await press(pilot, "i", "1")
        assert isinstance(app.screen, HelpScreen), "it keeps its keys"
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, HelpScreen))
        for spec in PANES:
            await press(pilot, str(spec.number), "question_mark", until=f"Help · {spec.title}")
            await press(pilot, "escape", until=lambda: not isinstance(app.screen, HelpScreen))
            hints = hints_of(app, spec.id).split("  ")
            assert len(hints) <= 6, (spec.id, hints)
            assert hints[-1] == "? more"
        await press(pilot, "1", "O", until="backspace goes up")
        await press(pilot, "question_mark", until=("Help · Files", "  enter opens", "  esc leaves"))
        await press(pilot, "escape", "escape", until=lambda: not pane_of(app, "data").browser.display)
        await press(pilot, "Q", until=lambda: isinstance(app.screen, QueueScreen))
        await press(pilot, "question_mark", until="Runs that wait")
        await press(pilot, "escape", "escape", until=lambda: len(app.screen_stack) == 1)


@cases("scope", [spec.id for spec in PANES] + list(SCREENS))
def test_the_first_page_of_the_help_is_short_and_the_second_has_every_key_once(scope: str) -> None:
    table, about = KeyTable(), help_text(scope)
    first = help_content(about, table, scope, (), table.scope(scope)).plain
    assert len(first.split()) <= 150
    assert about.partition("\n\n")[0][:20] in first
    whole = help_content(about, table, scope, (), table.scope(scope), shows_all=True).plain
    for key in table.scope(scope):
        assert key.display in whole, key.id
        if (twin := table.twin(key)) is not None:
            assert f"{twin.display} goes back" in whole


@pytest.mark.parametrize("pane", ["config", "chat"])
async def test_the_keys_of_the_end_act_from_another_pane_unless_it_has_them(home: Path, pane: str) -> None:
    ScriptedRun(home).train_to(120).end("finished")
    async with running(LocaltuneApp(run="latest"), (200, 50), until="copy its path") as (app, pilot):
        await press(pilot, {"config": "2", "chat": "4"}[pane], until=lambda: app.main.current == pane)
        assert "L log axis" in hints_of(app, "train")
        assert "? more" not in hints_of(app, "train")
        own = pane == "config"  # Its long help.
        await pilot.press("h")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog) is not own)


async def test_a_broken_setting_is_one_notice(private_home: Path) -> None:
    config = private_home.parent / "config" / "localtune"
    (config / "themes").mkdir(parents=True)
    (config / "keymap.toml").write_text('[train]\npuase = "x"\n[app]\nhelp = "f9"\n', encoding="utf-8")
    (config / "settings.toml").write_text('glyphs = "fancy"\ntheme = "nowhere"\n', encoding="utf-8")
    (config / "themes" / "bad.toml").write_text('name = "bad"\n[colors]\nprimary = "bluish"\n', encoding="utf-8")
    async with running(size=(120, 34), notifications=True) as (app, pilot):
        notes = [note.message for note in app._notifications]
        assert len(notes) == 1
        for part in ("puase", "glyphs", "bluish", "nowhere"):
            assert part in notes[0]
        assert app.theme == "localtune-dark"
        await press(pilot, "f9", until=lambda: isinstance(app.screen, HelpScreen))


async def test_a_theme_of_the_environment_is_applied(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTUAL_THEME", "localtune-high-contrast")
    monkeypatch.setattr(App.theme, "_default", "localtune-high-contrast")  # as Textual has read it when imported
    app = LocaltuneApp()
    async with app.run_test():
        assert app.theme == "localtune-high-contrast"
        assert app.get_css_variables()["border-focus"] == "#ffff5f"
        assert app.main.styles.background.hex == "#000000"


@pytest.mark.long
async def test_a_theme_is_previewed_and_taken_back(private_home: Path) -> None:
    async with running(size=(120, 34)) as (app, pilot):
        await press(pilot, "f2", until=lambda: len(app.screen_stack) == 2)
        await press(pilot, "down", "down", until=lambda: app.theme == "localtune-light")
        await press(pilot, "escape", until=lambda: app.theme == "localtune-dark")
        await press(pilot, "f2", until=lambda: len(app.screen_stack) == 2)
        await press(pilot, "G", until=lambda: app.theme == "tokyo-night")
        await press(pilot, "slash", *"tune-light", "enter", until=lambda: app.theme == "localtune-light")
        await pilot.press("enter")
        settings = private_home.parent / "config" / "localtune" / "settings.toml"
        await wait_for(pilot, settings.exists)
        assert 'theme = "localtune-light"' in settings.read_text(encoding="utf-8")
    assert LocaltuneApp().theme == "localtune-light"


async def test_a_run_that_does_not_exist_is_a_dialog() -> None:
    async with running(LocaltuneApp(run="nothing"), until="There are no runs yet."):
        pass


async def test_a_configuration_that_cannot_be_read_is_a_dialog(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[model\n", encoding="utf-8")
    async with running(LocaltuneApp(path), (80, 24), until="is not valid TOML") as (app, pilot):
        await press(pilot, "enter", until=lambda: app.state.document is not None)


async def test_results_of_threads_are_dropped_while_the_app_shuts_down(home: Path) -> None:
    async with running() as (app, pilot):
        shown: list[str] = []
        app._running = False
        app.post_message(Result(lambda: shown.append("late")))
        await pilot.pause()
        assert shown == []
        app._running = True
        app.post_message(Result(lambda: shown.append("in time")))
        await wait_for(pilot, lambda: shown == ["in time"])


NAMES = ("data", "config", "train", "chat", "runs")


@cases("live", [False, True])
@cases("places_", [1, 2, 4])
def test_the_pane_asked_for_is_in_sight_and_a_live_run_beside_it(places_: int, live: bool) -> None:
    for name in NAMES:
        shown = companions(name, places_, live=live)
        assert name in shown
        assert len(shown) <= places_
        if live and places_ > 1:
            assert "train" in shown
            assert places_ > 2 or shown[0] == "train", "the run keeps its place"


def test_the_shape_of_the_terminal_decides_how_two_panes_share_it() -> None:
    assert direction(("train", "chat"), 120, 34) == "beside"
    assert direction(("train", "chat"), 120, 60) == "over"
    assert direction(("train", "chat"), 200, 44) == "beside"
    assert direction(("train", "runs"), 120, 34) == "over"


@cases(("width", "height"), [(60, 18), (120, 28), (121, 33), (160, 43), (201, 48), (400, 118)])
def test_places_fill_the_workspace_without_overlaps(width: int, height: int) -> None:
    for name, live, way in itertools.product(NAMES, (False, True), ("beside", "over")):
        shown = companions(name, room(width, height + 2), live=live)
        found = places(shown, Size(width, height), "beside" if way == "beside" else "over")
        assert set(found) == set(shown)
        assert sum(region.area for region in found.values()) == width * height
        assert not any(one.overlaps(other) for one, other in itertools.combinations(found.values(), 2))
        assert all(Region(0, 0, width, height).contains_region(region) for region in found.values())


async def test_ctrl_c_says_how_to_leave(private_home: Path) -> None:
    ScriptedRun(private_home).train_to(3)
    async with running(size=(100, 30), notifications=True, until=has_live_run) as (app, pilot):
        await pilot.press("ctrl+c", "ctrl+c")
        told = "q leaves the app. Training goes on without it."
        await wait_for(pilot, lambda: told in [note.message for note in app._notifications])
        assert [note.message for note in app._notifications].count(told) == 1
        assert app.is_running


async def test_readings_that_are_old_say_so_in_the_meters_and_on_every_pane(private_home: Path) -> None:
    ScriptedRun(private_home).train_to(30)
    app = LocaltuneApp()
    app.clock = lambda: time.time() + 2 * STALE_SECONDS
    async with running(app, (80, 24), until="s old") as (_, pilot):
        assert "● training" in screen_text(app)
        await press(pilot, "3", until=lambda: re.search(r"\d\ds old", screen_text(app)))
        for pane in "31":
            await press(pilot, pane, until=lambda: re.search(r"°C \d\ds\b", screen_lines(app)[0]))


async def test_nothing_blinks_or_moves_by_itself(private_home: Path) -> None:
    async with running(size=(120, 34)) as (app, _pilot):
        assert app.animation_level == "none"
        assert not [widget for widget in app.main.query("*") if getattr(widget, "cursor_blink", False)]


def test_a_pane_that_is_not_there_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tui.panes.chat.pane", None)
    assert Panes(lambda _: None).chat is None


def test_what_is_there_is_left_alone() -> None:
    code = (
        "import gc; from tui.app import spare_the_screen; kept = [[n] for n in range(1000)]; spare_the_screen();"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold())"
    )
    # In a process of its own: nothing there is ever freed afterwards.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == ["True", "(10000, 20, 20)\n"]


def test_the_header_of_an_app_without_screens_is_left_alone() -> None:
    app: App[None] = App()
    Desktop(app, AppState(), KeyTable(), time.time).show_header()
    assert not app.screen_stack


async def test_without_a_live_run_the_newest_one_is_shown(home: Path) -> None:
    script = ScriptedRun(home).train_to(30).end("stopped", "stopped on request after step 30")
    async with running(size=(120, 34), until="stopped on request after step 30") as (app, pilot):
        assert "No run yet." not in screen_text(app)
        assert app.leaving.line() is None, "a run that was only found says nothing when the app is left"
        await wait_for(pilot, lambda: pane_of(app, "chat") is not None and pane_of(app, "chat").target == script.run)
