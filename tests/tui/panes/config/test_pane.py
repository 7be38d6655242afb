"""The config pane with real files: typing, problems, search, saving, conflicts, the editor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.config.schema import options
from tests.tui.config_panes import answer, config_pane, go_to, type_value, write_config
from tests.tui.harness import (
    FORBIDDEN,
    HOSTILE,
    PaneApp,
    lend_terminal,
    make_editor,
    press,
    requested,
    resize,
    screen_lines,
    screen_text,
    shown,
)
from tui.panes.config.pane import ConfigPane

SIZES = [(60, 20), (80, 22), (92, 30), (200, 50)]


def told(pilot: Pilot[Any]) -> list[str]:
    """The reports of the pane about its configuration, by name."""
    names = ("edited", "saved", "loaded")
    return [report.name for report in requested(pilot, *(f"configuration.{name}" for name in names))]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def current(pane: ConfigPane) -> str:
    """The option under the cursor."""
    assert pane.form.current is not None
    return pane.form.current.option.name


async def test_nothing_is_told_of_a_configuration_that_is_being_opened(config_file: Path) -> None:
    pane = ConfigPane()
    app = PaneApp(pane)
    app.state.is_opening = True
    async with app.run_test(size=(120, 30)) as pilot:
        await shown(pilot, "2 Config · opening …")
        assert "missing" not in screen_text(app)
        app.state.is_opening = False
        pane.load(ConfigDocument.load(config_file))
        await shown(pilot, "2 Config · tickets.toml")


async def test_new_configuration_shows_the_basic_options_and_what_is_needed() -> None:
    async with config_pane(size=SIZES[0]) as (pilot, pane):
        for size in SIZES:
            await resize(pilot, *size)
            # Missing data is the next step, and no error before the user has done anything; a start names it.
            assert "choose a file in Data: t" in screen_text(pilot.app)
            assert "problem" not in screen_lines(pilot.app)[0]
            assert list(pane.check()) == ["data.train"]
            assert all(len(line) == size[0] for line in screen_lines(pilot.app))
        names = {field.option.name for field in pane.form.shown}
        assert names == {option.name for option in options() if option.audience == "basic"}
        # With x those for experts are shown too.
        basic = len(pane.form.shown)
        await pilot.press("A")
        names = {field.option.name for field in pane.form.shown}
        assert names == {option.name for option in options() if option.audience != "file"}
        said = f"{len(names)} of {len(list(options()))} options are shown; / finds the others"
        await shown(pilot, said)
        await pilot.press("A")
        assert len(pane.form.shown) == basic


async def test_seldom_needed_options_are_listed_where_they_are_set_and_found_by_name(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "loss_limit = 9.0\n")
    async with config_pane(config_file, size=(100, 30)) as (pilot, pane):
        names = [field.option.name for field in pane.form.shown]
        assert "train.loss_limit" in names
        assert "parking.calm" not in names
        await press(pilot, "slash", *"calm", "enter")
        assert [field.option.name for field in pane.form.shown] == ["parking.calm"]
        await pilot.press("escape")
        # A finding, a plan or the palette goes to an option whose audience hides it.
        pane.filter.go_to("distributed.restarts")
        assert current(pane) == "distributed.restarts"


async def test_every_option_can_be_reached_and_opened(config_file: Path) -> None:
    async with config_pane(config_file, size=(80, 22)) as (pilot, pane):
        before = pane.document.dumps()
        await pilot.press("A", "g")
        opened: set[str] = set()
        for option in options():
            if option.audience == "file":
                continue
            assert current(pane) == option.name
            assert pane.form.current is not None
            # An option of each type; the base model has its own list.
            if option.type not in opened and not pane.form.current.choices and option.name != "model.base":
                opened.add(option.type)
                await pilot.press("enter")
                assert pane.form.current.is_editing
                await pilot.press("escape", "j")
            else:
                # As the key does, without waiting for the screen.
                pane.form.move(1)
        assert pane.document.dumps() == before


async def test_typing_is_checked_esc_undoes_and_enter_keeps(config_file: Path) -> None:
    async with config_pane(config_file, size=(80, 22)) as (pilot, pane):
        await go_to(pilot, pane, "method.rank")
        await press(pilot, "enter", "ctrl+u", "9")
        assert pane.problems == {}
        await press(pilot, "9", "9", "9", until="method.rank must be a whole number from 1 to 1024, not 9999")
        await press(pilot, "escape")
        assert pane.problems == {}
        assert pane.document.get("method.rank") is None
        assert pane.form.has_focus
        assert told(pilot) == []
        await go_to(pilot, pane, "train.learning_rate")
        await press(pilot, "enter", "ctrl+u", *"1e-3", "enter")
        assert pane.document.get("train.learning_rate") == 1e-3
        assert told(pilot) == ["configuration.edited"]
        assert any("▸• learning_rate" in line and "0.001" in line for line in screen_lines(pilot.app))
        assert "•edited" in screen_lines(pilot.app)[0]
        await press(pilot, "D")
        assert pane.document.get("train.learning_rate") is None
        assert "•edited" not in screen_lines(pilot.app)[0]
        await go_to(pilot, pane, "train.batch_size")
        await press(pilot, "enter", "ctrl+u", *"many", "enter", until="train.batch_size must be a whole number")
        assert "1 problem" in screen_lines(pilot.app)[0]


async def test_paths_complete_choices_step_without_an_input_and_saving_keeps_comments(config_file: Path) -> None:
    (config_file.parent / "held_out.jsonl").write_text('{"text": "x"}\n')
    async with config_pane(config_file, size=(100, 30)) as (pilot, pane):
        await go_to(pilot, pane, "data.eval")
        await press(pilot, "enter", *"hel", "tab", "enter")
        assert pane.document.get("data.eval") == "held_out.jsonl"
        assert pane.problems == {}
        await press(pilot, "ctrl+s", until="✓ saved to")
        text = config_file.read_text()
        assert text.startswith("# mine")
        assert "# rows" in text
        assert 'eval = "held_out.jsonl"' in text
        assert "configuration.saved" in told(pilot)
        assert "•edited" not in screen_lines(pilot.app)[0]
        await go_to(pilot, pane, "method.name")
        await pilot.press("space")
        assert pane.document.get("method.name") == "lora"
        await pilot.press("left")
        assert pane.document.get("method.name") == "qlora"
        await pilot.press("A")
        await go_to(pilot, pane, "method.dora")
        await pilot.press("enter")
        assert pane.document.get("method.dora") is True
        await pilot.press("right")
        assert pane.document.get("method.dora") is False


async def test_rows_are_counted_and_a_missing_file_is_a_problem_before_the_start(config_file: Path) -> None:
    async with config_pane(config_file) as (pilot, pane):
        await shown(pilot, "3 rows · batch 8 · about 2 steps")
        assert "rows.jsonl" in screen_lines(pilot.app)[1]
        assert pane.check() == {}
        (config_file.parent / "rows.jsonl").unlink()
        await go_to(pilot, pane, "train.epochs")
        assert list(pane.check()) == ["data.train"]
        pane.refuse_start()
        await pilot.pause()
        assert "There is no file at" in screen_text(pilot.app)
        assert current(pane) == "data.train"


async def test_rows_to_leave_out_are_typed_and_come_back_from_the_file(config_file: Path) -> None:
    async with config_pane(config_file, size=(100, 30)) as (pilot, pane):
        await type_value(pilot, pane, "data.exclude", "rows.jsonl:17, rows.jsonl:2-4")
        assert pane.problems == {}
        await press(pilot, "ctrl+s", until="✓ saved to")
        saved = ConfigDocument.load(config_file)
        assert saved.validate().data.excluded == ("rows.jsonl:17", "rows.jsonl:2-4")
        assert saved.get("data.exclude") == pane.document.get("data.exclude")
        await type_value(pilot, pane, "data.exclude", "rows.jsonl")
        assert "names no row" in pane.problems["data.exclude"]


async def test_a_problem_among_the_hidden_options_is_shown(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + '\n[hardware]\ndevice = "tpu"\n')
    async with config_pane(config_file, size=(100, 30)) as (pilot, pane):
        assert pane.check()
        pane.refuse_start()
        await pilot.pause()
        assert current(pane) == "hardware.device"
        await press(pilot, "space")
        assert pane.problems == {}


async def test_search_by_name_and_help() -> None:
    async with config_pane(size=(100, 30)) as (pilot, pane):
        basic = len(pane.form.shown)
        await press(pilot, "slash", *"decay")
        assert [field.option.name for field in pane.form.shown] == ["train.weight_decay"]
        await pilot.press("enter")
        assert pane.form.has_focus
        await pilot.press("escape")
        assert len(pane.form.shown) == basic
        await press(pilot, "slash", *"zzz", until="No option has “zzz”")
        await pilot.press("escape")
        assert len(pane.form.shown) == basic
        assert pane.form.has_focus
        # It stays where it gives way to another question.
        await press(pilot, "slash", *"decay")
        await press(pilot, "ctrl+s", until="save as")
        await press(pilot, "escape", until=lambda: pane.form.has_focus)
        assert [field.option.name for field in pane.form.shown] == ["train.weight_decay"]


async def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("# not yours\n")
    async with config_pane(size=(100, 30)) as (pilot, _pane):
        await answer(pilot, "ctrl+s", str(other))
        assert "exists already" in screen_text(pilot.app)
        await pilot.press("escape")
        assert other.read_text() == "# not yours\n"
        await answer(pilot, "ctrl+s", str(other))
        await press(pilot, "y")
        assert "not yours" not in other.read_text()


async def test_a_file_changed_behind_the_app_is_never_overwritten_silently(config_file: Path) -> None:
    theirs = '[data]\ntrain = "rows.jsonl"\n[train]\nepochs = 7.0\n'
    async with config_pane(config_file) as (pilot, pane):
        await go_to(pilot, pane, "method.rank")
        await pilot.press("enter", "ctrl+u", *"64", "enter")
        config_file.write_text(theirs)
        for key, epochs, rank in (("escape", 2.0, 64), ("l", 7.0, None)):
            await press(pilot, "ctrl+s")
            assert "changed by another program" in screen_text(pilot.app)
            assert config_file.read_text() == theirs
            await press(pilot, key)
            assert config_file.read_text() == theirs
            assert (pane.document.get("train.epochs"), pane.document.get("method.rank")) == (epochs, rank)
        await go_to(pilot, pane, "method.rank")
        await pilot.press("enter", "ctrl+u", *"64", "enter")
        config_file.write_text(theirs.replace("7.0", "9.0"))
        await press(pilot, "ctrl+s")
        assert "changed by another program" in screen_text(pilot.app)
        await press(pilot, "o")
        assert "rank = 64" in config_file.read_text()
        assert (pane.document.get("train.epochs"), pane.document.get("method.rank")) == (7.0, 64)


async def test_an_editor_changes_the_configuration(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend_terminal(monkeypatch)
    async with config_pane(config_file) as (pilot, pane):
        for editor, sentence in (
            ("false", "nothing has changed"),
            ("/no/such/editor", "did not work"),
            ("true", "Nothing"),
        ):
            monkeypatch.setenv("VISUAL", editor)
            await press(pilot, "e", until=sentence)
            assert told(pilot) == []
        monkeypatch.setenv("VISUAL", make_editor(tmp_path, 'sed -i "s/epochs = 2.0/epochs = 4.0/" "$1"'))
        await press(pilot, "e")
        assert pane.document.get("train.epochs") == 4.0
        assert told(pilot) == ["configuration.edited"]
        assert "•edited" in screen_lines(pilot.app)[0]
        assert "epochs = 2.0" in config_file.read_text(), "only ctrl+s writes the file"
        await press(pilot, "ctrl+s")
        assert "epochs = 4.0" in config_file.read_text()


async def test_what_the_editor_broke_is_kept(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("VISUAL", make_editor(tmp_path, f'cp "$1" {seen}; echo "oops = = 1" >> "$1"'))
    lend_terminal(monkeypatch)
    async with config_pane(config_file) as (pilot, pane):
        await press(pilot, "e")
        assert "is not valid TOML: line 7" in screen_text(pilot.app).replace("\n", " ")
        assert pane.document.get("train.epochs") == 2.0
        await press(pilot, "e")
        assert "oops = = 1" in seen.read_text(), "the second try begins where the first one ended"


async def test_without_a_terminal_to_lend_the_editor_is_refused(config_file: Path) -> None:
    async with config_pane(config_file) as (pilot, _pane):
        await press(pilot, "e", until="cannot run an editor")


async def test_hostile_values_never_reach_a_strip(config_file: Path) -> None:
    document = ConfigDocument.load(config_file)
    document.set("model.base", HOSTILE)
    document.set("chat.system", HOSTILE)
    document.set("train.seed", HOSTILE)
    async with config_pane(size=(80, 30)) as (pilot, pane):
        pane.load(document)
        await press(pilot, "A", until="[/]i[bold]j")
        for name in ("model.base", "chat.system", "train.seed"):
            await go_to(pilot, pane, name)
            assert not FORBIDDEN & set(screen_text(pilot.app))
            await press(pilot, "enter")
            assert not FORBIDDEN & set(screen_text(pilot.app))
            await pilot.press("escape")


def test_environment_has_no_editor_surprises(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.errors import UserError
    from tui.files import find_editor

    monkeypatch.setenv("VISUAL", "code --wait")
    assert find_editor() == ["code", "--wait"]
    monkeypatch.setenv("VISUAL", "'unbalanced")
    with pytest.raises(UserError, match="cannot be read as a command"):
        find_editor()
    monkeypatch.setenv("VISUAL", "")
    monkeypatch.setenv("EDITOR", "")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(UserError, match="There is no editor"):
        find_editor()
