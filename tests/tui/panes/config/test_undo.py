"""Undo and redo in the config pane, whatever the source of the change."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument
from tests.tui.config_panes import config_pane, edits, go_to, type_value, write_config
from tests.tui.harness import document_of, has_form, pane_of, paste, press, running, screen_lines, wait_for
from tui.app import LocaltuneApp
from tui.panes.config.editor import ConfigEditor, Opened
from tui.screens.box import ReportScreen


async def test_edits_are_undone_and_done_again_one_by_one(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    async with config_pane(path) as (pilot, pane):
        await type_value(pilot, pane, "train.epochs", "3")
        await go_to(pilot, pane, "method.name")
        await pilot.press("space")
        await go_to(pilot, pane, "train.epochs")
        await pilot.press("D")
        after = pane.document.dumps()
        await press(pilot, "u", until="Undone: train.epochs is 3 again (was 1 by default).")
        await press(pilot, "u", until="Undone: method.name is qlora by default again (was lora).")
        assert pane.form.current is pane.form.field("method.name")
        await press(pilot, "u", until="Undone: train.epochs is 2 again (was 3).")
        assert pane.document.dumps() == path.read_text()
        assert "•edited" not in screen_lines(pilot.app)[0]
        await press(pilot, "u", until="There is nothing to undo.")
        await press(pilot, "ctrl+r", "U", "ctrl+r", until="Done again: train.epochs is 1 by default again (was 3).")
        assert pane.document.dumps() == after
        await press(pilot, "ctrl+r", until="There is nothing to do again.")
        assert edits(pilot)[-1].args[0] is pane.document


async def test_esc_in_an_input_leaves_the_text_to_the_byte(tmp_path: Path) -> None:
    path = write_config(tmp_path, '[data]\ntrain="rows.jsonl"\n[train]\nepochs=2.00 # two\n')
    async with config_pane(path) as (pilot, pane):
        await go_to(pilot, pane, "train.epochs")
        await press(pilot, "enter", "ctrl+u", "5", "escape")
        assert pane.document.dumps() == path.read_text()
        await press(pilot, "u", until="There is nothing to undo.")


async def test_an_import_asks_first_and_is_undone_to_the_old_file(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    theirs = tmp_path / "qlora.yml"
    theirs.write_text(
        "base_model: org/model\nadapter: lora\nlora_r: 24\ndatasets: [{path: rows.jsonl, type: completion}]\n"
    )
    async with config_pane(path, size=(120, 40)) as (pilot, pane):
        await type_value(pilot, pane, "train.epochs", "3")
        await press(pilot, "I", until="has not been saved")
        await pilot.press("escape")
        assert pane.document.get("train.epochs") == 3.0
        await pilot.press("I", "y")
        await paste(pilot, str(theirs))
        await press(pilot, "enter", until=lambda: isinstance(pilot.app.screen, ReportScreen))
        await press(pilot, "enter", until=lambda: pane.document.get("method.rank") == 24)
        imported = pane.document.dumps()
        await press(pilot, "u", until="Undone: importing qlora.yml.")
        assert pane.document.path == path
        assert pane.document.get("train.epochs") == 3.0
        assert edits(pilot)[-1].options["saved"] == path.read_text()
        await press(pilot, "ctrl+r", until="Done again: importing qlora.yml.")
        await wait_for(pilot, lambda: pane.document.path is None)
        assert pane.document.dumps() == imported
        await press(pilot, "u", "u", "ctrl+s", until="✓ saved")
        assert path.read_text() == '# mine\n[data]\ntrain = "rows.jsonl" # rows\n\n[train]\nepochs = 2.0\n'


async def test_what_other_panes_choose_and_another_file_can_be_undone(home: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('[data]\ntrain = "rows.jsonl"\n[method]\nrank = 4\n')
    async with running(LocaltuneApp(path), (120, 34), until=has_form) as (app, pilot):
        app.configuration.set_options({"template.name": "chatml", "data.format": "text"}, "chosen")
        pane = pane_of(app, "config")
        assert app.state.is_dirty
        app.main.show_pane("config")
        await press(pilot, "u", until="Undone: 2 options.")
        assert pane.document.dumps() == path.read_text()
        await wait_for(pilot, lambda: not app.state.is_dirty)
        # Another file that is opened too.
        await pilot.press("O")
        await paste(pilot, str(other))
        for key, shown in (("enter", other), ("u", path)):
            await press(pilot, key, until=lambda: document_of(app).path == shown and not app.state.is_dirty)  # noqa: B023
        assert pane_of(app, "config").document is app.state.document
        assert isinstance(app.state.document, ConfigDocument)


def test_a_dropped_configuration_leaves_the_one_before_it_or_an_empty_one() -> None:
    editor = ConfigEditor()
    for text in ("[train]\nepochs = 2\n", "[train]\nepochs = 3\n"):
        editor.take(Opened(ConfigDocument(text), "opening it"))
    editor.drop()
    assert editor.document.get("train.epochs") == 2
    editor.drop()
    assert (editor.document.dumps(), editor.former_name) == ("", "")
