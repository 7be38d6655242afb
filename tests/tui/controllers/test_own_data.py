"""The user's own data after a demo: its own options and held-out rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from textual.pilot import Pilot

from core import paths
from core.config.compare import is_same
from core.config.document import ConfigDocument
from core.config.schema import Config, options
from core.drafts import list_drafts
from core.errors import UserError
from core.presets import begin
from core.presets.library import presets
from core.presets.provenance import FOR_ROWS
from core.runs.record.store import Run, create_run
from sample_data import path as sample
from tests.tui.config_panes import write_startable
from tests.tui.controllers.test_presets import settled, value
from tests.tui.controllers.test_returning import ended, left, notes
from tests.tui.data_panes import write_lines
from tests.tui.harness import document_of, opened, pane_of, press, screen_text, wait_for
from tui.app import LocaltuneApp
from tui.files import entry_path
from tui.reopening import reopen
from tui.screens.start import LABEL_WIDTH, StartCard, card_lines

ROWS = 60
DEFAULTS = {option.name: option.default for option in options()}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were started, each with its ``run.toml``; they have ended at once."""
    found: list[Run] = []

    def start_run(config: Config, name: str) -> Run:
        run = create_run(config, name)
        ended(run)
        found.append(run)
        return run

    monkeypatch.setattr("core.launch.launcher.start_run", start_run)
    return found


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two files; lengths of rows are not sampled, as there is no model."""
    monkeypatch.setattr(begin, "sample_lengths", lambda _: [40])
    monkeypatch.chdir(tmp_path)
    questions, answers = [f"What is {n} plus {n}?" for n in range(ROWS)], [f"It is {2 * n}." for n in range(ROWS)]
    pairs = list(zip(questions, answers, strict=True))
    write_lines(tmp_path / "own.csv", ["question,answer", *(f"{question},{answer}" for question, answer in pairs)])
    turns = (("user", 0), ("assistant", 1))
    chats = [{"messages": [{"role": role, "content": pair[at]} for role, at in turns]} for pair in pairs]
    write_lines(tmp_path / "own_chat.jsonl", map(json.dumps, chats))
    alpaca = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    (tmp_path / "own_alpaca.json").write_text(json.dumps(alpaca))
    return tmp_path


def finished_demo() -> Run:
    """The run that ``make demo`` leaves."""
    run = create_run(ConfigDocument.load(sample("tickets.toml")).validate(), "tickets")
    ended(run)
    return run


async def use(pilot: Pilot[Any], path: Path, key: str = "t") -> None:
    """Open a file in the Data pane and press a key there."""
    app = pilot.app
    assert isinstance(app, LocaltuneApp)
    data = pane_of(app, "data")
    await pilot.press("1")
    data.show(path)
    await wait_for(pilot, lambda: data.view is not None and data.view.path == path and data.opener.opening is None)
    await press(pilot, key, until=lambda: str(path) in str(value(app, "data.train")))
    await settled(pilot, app)


async def card_of(pilot: Pilot[Any]) -> StartCard:
    """Open the start card, and wait until every row has been looked at."""
    await pilot.press("r")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, StartCard) and pilot.app.screen.found.rows.is_exact)
    card = pilot.app.screen
    assert isinstance(card, StartCard)
    return card


async def start(pilot: Pilot[Any], started: list[Run]) -> str:
    """Start a run from its card; returns what the card says of the values."""
    app, count = pilot.app, len(started)
    assert isinstance(app, LocaltuneApp)
    card = await card_of(pilot)
    lines = [line.plain for line in card_lines(card.start, card.found, app.keys, 72, 0.0)]
    await press(pilot, "enter", until=lambda: len(started) > count)
    await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == started[-1])
    return next(line[LABEL_WIDTH:] for line in lines if line[:LABEL_WIDTH].strip() == "values")


def check_own(got: Mapping[str, Any]) -> None:
    """A run has nothing of the demo's: the preset's values, held-out rows of its own data, and defaults."""
    assert "data.eval" not in got
    assert (got["data.eval_share"], got["data.format"]) == (0.1, "auto")
    own = {name for name, known in got.items() if not is_same(known, DEFAULTS[name])}
    assert own <= {*presets()["cpu-small"].values, "data.train", *FOR_ROWS}


def shows_sample(app: LocaltuneApp) -> bool:
    """True if Config has the sample's configuration, and Data its rows."""
    view = pane_of(app, "data").view
    return view is not None and view.path.name == Path(str(value(app, "data.train"))).name == "tickets_train.jsonl"


async def test_the_demo_opens_the_configuration_and_the_rows_of_its_run(here: Path, started: list[Run]) -> None:
    async with opened(LocaltuneApp(demo=True), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: shows_sample(app))
        assert app.state.origin is not None
        assert app.state.origin.run == started[-1]
        assert not app.state.is_dirty


async def test_a_sample_run_from_an_empty_home_opens_its_configuration_and_rows(here: Path, started: list[Run]) -> None:
    async with opened(size=(80, 24)) as (app, pilot):
        app.starting.start_sample()
        await wait_for(pilot, lambda: isinstance(app.screen, StartCard))
        await press(pilot, "enter", until=lambda: shows_sample(app))
        assert app.state.origin is not None
        assert app.state.origin.run == started[-1]


async def test_a_demo_that_cannot_start_leaves_a_new_configuration(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config, name: str) -> Run:
        raise UserError(f"There is no room for {name}.")

    monkeypatch.setattr("core.launch.launcher.start_run", refuse)
    async with opened(LocaltuneApp(demo=True), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: "There is no room for tickets." in screen_text(app))
        await wait_for(pilot, lambda: app.state.document is not None)
        assert value(app, "data.train") in (None, [])


async def test_after_a_demo_one_s_own_files_are_trained_on_with_options_of_their_own(
    here: Path, started: list[Run]
) -> None:
    finished_demo()
    async with opened(size=(80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: value(app, "data.eval") is not None)
        for name in ("own.csv", "own_chat.jsonl", "own_alpaca.json"):
            await use(pilot, here / name)
            assert await start(pilot, started) == "preset cpu-small · 3 for the rows · P shows why"
            check_own(started[-1].values())
        await use(pilot, here / "own.csv", "A")
        await start(pilot, started)
        assert len(started[-1].values()["data.train"]) == 2
        check_own(started[-1].values())


async def test_the_former_configuration_is_one_key_away_and_the_new_one_is_kept(here: Path) -> None:
    finished_demo()
    async with opened(size=(80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: value(app, "data.eval") is not None)
        app.configuration.set_options({"train.seed": 7})
        before = document_of(app).dumps()
        await use(pilot, here / "own.csv")
        assert (
            "own.csv is used for training, in a new configuration; r starts. u in Data brings tickets back."
            in notes(app)
        )
        await wait_for(pilot, lambda: "u previous configuration" in screen_text(app))
        app.configuration.set_options({"train.learning_rate": 0.002})
        card = await card_of(pilot)
        assert card.start.former == "tickets"
        assert "u previous" in screen_text(app)
        await press(pilot, "u", until=lambda: app.state.document is not None and app.state.document.dumps() == before)
        assert app.state.former == ""
        assert "tickets is back as it was. own is kept: o in Config (2) lists it." in notes(app)
        await wait_for(pilot, lambda: pane_of(app, "data").view.path.name == "tickets_train.jsonl")
        app.drafts.look()
        assert any("learning_rate = 0.002" in draft.data["text"] for draft in list_drafts("config"))
        # Redo restores it, with its preset and its edit.
        await press(pilot, "2", *["ctrl+r"] * 3, until=lambda: value(app, "train.learning_rate") == 0.002)
        assert value(app, "data.train") == str(here / "own.csv")


async def test_a_named_file_that_cannot_be_read_takes_no_place_and_is_no_success(here: Path) -> None:
    finished_demo()
    (here / "empty.jsonl").touch()
    write_lines(here / "other.csv", ["a,b", "1,2"])
    async with opened(LocaltuneApp(data=Path("empty.jsonl")), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: app.returning._is_complete and pane_of(app, "data").opener.failure is not None)
        assert Path(str(value(app, "data.train"))).name == "tickets_train.jsonl"
        assert app.state.former == ""
        assert "is used" not in notes(app)
        await left(pilot)
    async with opened(LocaltuneApp(data=Path("other.csv")), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: "mend what the Data pane says" in notes(app))


async def test_data_named_on_the_command_line_begins_anew_once(here: Path, started: list[Run]) -> None:
    finished_demo()
    async with opened(LocaltuneApp(data=Path("own.csv")), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: value(app, "data.eval_share") == 0.1)
        assert (value(app, "data.train"), value(app, "data.eval")) == (str(here / "own.csv"), None)
        assert app.state.former == "tickets"
        app.configuration.set_options({"train.learning_rate": 0.002})
        await pilot.press("t")
        await settled(pilot, app)
        assert value(app, "train.learning_rate") == 0.002, "it is its own file by now"
        await left(pilot)
    # A restart with the same file goes on with its configuration.
    async with opened(LocaltuneApp(data=Path("own.csv")), (80, 24)) as (again, pilot):
        await wait_for(pilot, lambda: again.returning._is_complete)
        assert value(again, "train.learning_rate") == 0.002
        await wait_for(pilot, lambda: pane_of(again, "data").view is not None)
        told = await start(pilot, started)
        assert told == "preset cpu-small · 3 for the rows · you: learning_rate 0.002"


async def test_named_data_begins_where_nothing_is_remembered_and_not_before_it_is_there(here: Path) -> None:
    finished_demo()
    paths.config_dir().mkdir(parents=True)
    (paths.config_dir() / "settings.toml").write_text("remember = false\n")
    async with opened(LocaltuneApp(data=Path("own.csv")), (80, 24)) as (app, pilot):
        await wait_for(pilot, lambda: value(app, "data.eval_share") == 0.1)
        assert (value(app, "data.train"), app.state.former) == (str(here / "own.csv"), "")
    for entry, is_there in (("hf://datasets/me/not-fetched", False), ("own.csv", True)):
        data = entry_path(entry, here)
        assert reopen(None, data).data == (data if is_there else None)


@pytest.mark.long
async def test_edits_of_a_file_survive_a_new_configuration_and_a_restart(here: Path) -> None:
    path = write_startable(here)
    saved = path.read_text()
    async with opened(LocaltuneApp(path), (80, 24)) as (app, pilot):
        app.configuration.set_options({"train.seed": 7})
        await use(pilot, here / "own.csv")
        assert (document_of(app).path, value(app, "train.seed"), app.state.former) == (None, None, "mine.toml")
        await left(pilot)
    assert path.read_text() == saved
    async with opened(LocaltuneApp(path), (80, 24)) as (again, pilot):
        await wait_for(pilot, lambda: value(again, "train.seed") == 7)


async def test_only_the_file_s_own_key_changes_the_data_of_a_configuration(here: Path) -> None:
    path = write_startable(here)
    async with opened(LocaltuneApp(path), (80, 24)) as (app, pilot):
        document, before = app.state.document, path.read_text()
        assert document is not None
        uses: tuple[Literal["train", "add"], ...] = ("train", "add")
        for use in uses:
            app.configuration.use_dataset(here / "rows.jsonl", use)
            await pilot.pause()
            assert document.dumps() == before
        app.configuration.use_dataset(here / "own_chat.jsonl", "eval")
        await wait_for(pilot, lambda: value(app, "data.eval") == "own_chat.jsonl")
        app.configuration.use_dataset(here / "own_chat.jsonl")
        await wait_for(pilot, lambda: "cannot be trained on too" in notes(app))
        assert value(app, "data.train") == "rows.jsonl"
        # Nothing was chosen for the other file, so nothing begins.
        nothing = {"data.columns": None, "data.format": None}
        app.configuration.choose_options(nothing, "No columns are named.", here / "own.csv")
        await wait_for(pilot, lambda: "No columns are named." in notes(app))
        assert value(app, "data.train") == "rows.jsonl"
        app.configuration.use_dataset(here / "own.csv", "add")
        await wait_for(pilot, lambda: value(app, "data.train") == ["rows.jsonl", "own.csv"])
        assert app.state.document is document
        assert (value(app, "train.learning_rate"), value(app, "train.batch_size")) == (3e-4, None), "no preset"


@pytest.mark.long
async def test_the_configuration_of_a_run_says_so_and_its_edits_are_the_user_s(here: Path, started: list[Run]) -> None:
    demo = finished_demo()
    async with opened(LocaltuneApp(write_startable(here)), (80, 24), with_run=True) as (app, pilot):
        app.configuration.edit_run(demo)
        await wait_for(pilot, lambda: value(app, "data.eval") is not None)
        app.configuration.set_options({"train.learning_rate": 0.002})
        await pilot.press("2")
        told = await start(pilot, started)
        assert told.startswith(f"run {demo.id[9:]}: ")
        assert told.endswith(" values · you: learning_rate 0.002")
        assert started[-1].values()["train.learning_rate"] == 0.002
