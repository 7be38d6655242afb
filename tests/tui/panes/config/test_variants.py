"""Several configurations in the config pane: saved as, copied, reopened, compared."""

from __future__ import annotations

from pathlib import Path

from core.config.document import ConfigDocument
from core.config.files import recent_configs, remember_config
from core.runs.record.store import create_run
from tests.tui.config_panes import answer, config_pane, edits, flat, type_value, write_config
from tests.tui.harness import FORBIDDEN, paste, press, screen_lines, screen_text, shown, wait_for
from tui.screens.box import DifferenceScreen
from tui.screens.pick import PickScreen


async def test_save_as_goes_on_in_the_other_file_and_paths_mean_the_same(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    before = path.read_text()
    (tmp_path / "sub").mkdir()
    async with config_pane(path) as (pilot, pane):
        await type_value(pilot, pane, "train.epochs", "3")
        await answer(pilot, "S", str(tmp_path / "sub" / "b"), until=lambda: (tmp_path / "sub" / "b.toml").is_file())
        await wait_for(pilot, lambda: "data.train written as seen from there" in flat(screen_text(pilot.app)))
        assert path.read_text() == before
        assert pane.document.path == tmp_path / "sub" / "b.toml"
        assert pane.document.get("data.train") == str(tmp_path / "rows.jsonl")
        assert "# rows" in pane.document.dumps()
        assert pane.problems == {}
        assert "b.toml · " in screen_lines(pilot.app)[0]
        assert recent_configs()[:1] == [tmp_path / "sub" / "b.toml"]
        # Where it fails, the paths stay as they are.
        before = pane.document.dumps()
        await answer(pilot, "S", str(tmp_path / "no" / "b.toml"), until="cannot be written")
        assert pane.document.dumps() == before


async def test_the_first_file_of_a_configuration_names_data_beside_it_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    async with config_pane() as (pilot, pane):
        pane.load(ConfigDocument(f"[data]\ntrain = '{tmp_path / 'rows.jsonl'}'\neval = '/elsewhere/rows.jsonl'\n"))
        await answer(pilot, "S", str(tmp_path / "mine.toml"), until=lambda: (tmp_path / "mine.toml").is_file())
        assert pane.document.get("data.train") == "rows.jsonl"
        assert pane.document.get("data.eval") == "/elsewhere/rows.jsonl"


async def test_a_copy_is_not_saved_yet_and_gets_a_free_name(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    async with config_pane(path, size=(160, 30)) as (pilot, pane):
        await press(pilot, "V", until="✓ a copy of tickets.toml")
        assert "not saved yet" in screen_lines(pilot.app)[0]
        assert edits(pilot)[-1].options["saved"] == ""
        assert pane.problems == {}
        await press(pilot, "ctrl+s", until="tickets-2.toml")
        await pilot.press("enter")
        copy = tmp_path / "tickets-2.toml"
        await wait_for(pilot, copy.is_file)
        assert copy.read_text() == path.read_text()
        await press(pilot, "V", "ctrl+s", until="tickets-3.toml")


async def test_the_last_ones_can_be_opened_again(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('[data]\ntrain = "rows.jsonl"\n')
    remember_config(other)
    async with config_pane(path) as (pilot, pane):
        await type_value(pilot, pane, "train.epochs", "3")
        await press(pilot, "O", until="has not been saved")
        await press(pilot, "y", until=lambda: isinstance(pilot.app.screen, PickScreen))
        await shown(pilot, "other.toml", "another file")
        text = screen_text(pilot.app)
        assert text.count("tickets.toml") <= 1, "the one that is open is not offered"
        await press(pilot, "enter", until=lambda: pane.document.path == other)
        await press(pilot, "u", until=lambda: pane.document.path == path)
        assert pane.document.get("train.epochs") == 3.0


async def test_compare_with_the_file_the_last_run_and_another_file(tmp_path: Path, home: Path) -> None:
    path = write_config(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text('[data]\ntrain = "rows.jsonl"\n[chat]\nsystem = "a\\u001b[31mb"\n')
    async with config_pane(path, size=(100, 30)) as (pilot, pane):
        create_run(pane.document.validate(), "tickets")
        pane.look_around(anew=True)
        await wait_for(pilot, lambda: pane.known.last_run is not None)
        await type_value(pilot, pane, "train.epochs", "3")
        await press(pilot, "c", "f", until=("- epochs = 2.0", "+ epochs = 3.0", "tickets.toml on the disk"))
        assert isinstance(pilot.app.screen, DifferenceScreen)
        await press(pilot, "escape", "u", "c", "f", until="They say the same.")
        await pilot.press("escape")
        await type_value(pilot, pane, "method.rank", "4")
        await press(pilot, "c", "l", until=lambda: isinstance(pilot.app.screen, DifferenceScreen))
        await shown(pilot, "[method]", "- rank = 16", "+ rank = 4")
        text = screen_text(pilot.app)
        assert "train =" not in text
        await pilot.press("escape", "c", "o")
        await paste(pilot, str(other))
        await press(pilot, "enter", until=lambda: isinstance(pilot.app.screen, DifferenceScreen))
        text = screen_text(pilot.app)
        assert "- system" in text
        assert not FORBIDDEN & set(text)
