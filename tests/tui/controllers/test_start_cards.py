"""Nothing trains on one letter: the card before a run, a sample and a continued run, and keys typed ahead of it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from core.config.document import dump_config, load_config
from core.config.schema import Config
from core.drafts import list_drafts
from core.errors import UserError
from core.presets import begin
from core.queue.store import read_queue
from core.runs.record.events import StepEvent, encode_event
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases
from tests.core.models.spoiling import copy_model
from tests.tui.config_panes import write_startable
from tests.tui.harness import opened, pane_of, press, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_typed_ahead import type_at_once
from tui.app import LocaltuneApp
from tui.panes.config.editor import open_draft
from tui.screens.choice import ChoiceDialog
from tui.screens.presets import PresetScreen
from tui.screens.start import StartCard
from tui.screens.start_facts import find_flaw


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration of forty rows."""
    return write_startable(tmp_path)


@pytest.fixture
def started(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations of the runs that were started; each is a live run of a scripted worker."""
    found: list[Config] = []

    def start_run(config: Config, name: str) -> Run:
        found.append(config)
        script = ScriptedRun(home, f"20261124-143600-{name}-{len(found)}")
        script.write_state(state="starting")
        return script.run

    monkeypatch.setattr("core.launch.launcher.start_run", start_run)
    return found


#: The app with its configuration and the form of it.
ready = partial(opened, size=(100, 30))


async def test_a_base_model_that_would_be_refused_is_reported_before_anything_starts(
    config: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rest = config.read_text()
    (copy_model(tiny_model_dir, tmp_path / "torn") / "tokenizer.json").unlink()
    copy_model(tiny_model_dir, tmp_path / "whole")
    for name, told in (("torn", "The run would be refused: torn has"), ("whole", "fits")):
        config.write_text(f'[model]\nbase = "{name}"\n{rest}')
        async with ready(LocaltuneApp(config_path=config), size=(80, 24)) as (app, pilot):
            await pilot.press("r")
            await wait_for(pilot, lambda: has_card(app) and told in screen_text(app), 60)  # noqa: B023 - in this turn
            card = app.screen
            assert isinstance(card, StartCard)
            assert (find_flaw(card.start.config) == "") == (name == "whole")
            assert ("refused" in screen_text(app)) == (name == "torn")
            assert name == "whole" or "tokenizer" in screen_text(app)


def has_card(app: LocaltuneApp) -> bool:
    return isinstance(app.screen, StartCard)


async def test_r_shows_what_a_run_would_do_and_enter_starts_it(config: Path, started: list[Config]) -> None:
    async with ready(LocaltuneApp(config), size=(60, 20)) as (app, pilot):
        await pilot.press("r")
        assert has_card(app)
        await wait_for(pilot, lambda: "rows.jsonl · 40 rows" in screen_text(app), 60)
        text = screen_text(app)
        assert "learning rate 3e-4" in text
        assert "5 steps" in text
        assert "mine.toml: learning_rate 3e-4" in text
        assert "enter start" in text
        before = [line for line in text.splitlines() if "memory" in line]
        await wait_for(pilot, lambda: "not known: the model" in screen_text(app), 60)
        after = [line for line in screen_text(app).splitlines() if "memory" in line]
        assert [line.index("memory") for line in before] == [line.index("memory") for line in after]
        assert not started
        await press(pilot, "escape")
        assert not has_card(app)
        await press(pilot, "r", "enter", until=lambda: app.state.view is not None)
        assert [run.train.learning_rate for run in started] == [3e-4]
        assert app.main.current == "train"


async def test_a_letter_held_down_starts_nothing(config: Path, started: list[Config]) -> None:
    async with ready(LocaltuneApp(config)) as (app, pilot):
        type_at_once(pilot, "rrrrrr")
        await wait_for(pilot, lambda: has_card(app))
        await pilot.pause()
        assert not started
        assert len(app.screen_stack) == 2
        type_at_once(pilot, "\n\n\n")
        await wait_for(pilot, lambda: app.state.view is not None)
        type_at_once(pilot, "r\n")
        await pilot.pause()
        assert not has_card(app)
        assert len(started) == 1


async def test_a_word_typed_at_the_card_starts_nothing(
    config: Path, started: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ready(LocaltuneApp(config)) as (app, pilot):
        await press(pilot, "r", until=lambda: has_card(app))
        await pilot.pause()
        await press(pilot, *"make", "enter")
        assert has_card(app)
        assert not started
        monkeypatch.setattr("tui.widgets.forms.ask_bar.QUIET_SECONDS", 0.0)
        await press(pilot, "enter", until=lambda: len(started) == 1)


async def test_enter_typed_behind_the_letter_starts(config: Path, started: list[Config]) -> None:
    async with ready(LocaltuneApp(config)) as (app, pilot):
        type_at_once(pilot, "r\nr\nr\n")
        await wait_for(pilot, lambda: app.state.view is not None)
        await pilot.pause()
        assert len(started) == 1, "a second run before the first is shown would be one too many"


async def test_words_typed_into_the_wrong_window_start_nothing(config: Path, started: list[Config]) -> None:
    async with ready(LocaltuneApp(config)) as (app, pilot):
        type_at_once(pilot, "run.sh now\n")
        await wait_for(pilot, lambda: has_card(app))
        await pilot.pause()
        assert not started
        # Once it can be read, its keys are its own again.
        await press(pilot, "enter", until=lambda: len(started) == 1)


async def test_a_start_that_fails_can_be_tried_again(config: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def start_run(config: Config, name: str) -> Run:
        tried.append(name)
        raise UserError("The home is full.", "Make room.")

    monkeypatch.setattr("core.launch.launcher.start_run", start_run)
    async with ready(LocaltuneApp(config)) as (_, pilot):
        for count in (1, 2):
            await press(pilot, "r", "enter", until="The home is full.")
            assert tried == ["mine"] * count
            await press(pilot, "escape")


async def test_a_preset_is_chosen_over_the_card_and_shown_on_it(config: Path, started: list[Config]) -> None:
    async with ready(LocaltuneApp(config), size=(120, 34)) as (app, pilot):
        await pilot.press("r")
        assert has_card(app)
        await press(pilot, "P", until=lambda: isinstance(app.screen, PresetScreen))
        await pilot.press("j")
        await press(pilot, "enter", until=lambda: has_card(app) and "batch 4" in screen_text(app))
        assert "learning rate 3e-4" in screen_text(app), "the user's own value stays"
        assert "cpu-small" in screen_text(app)
        await wait_for(pilot, lambda: "40 rows" in screen_text(app), 60)
        assert "mine.toml does not have them" in screen_text(app)
        await press(pilot, "enter", until=lambda: len(started) == 1)
        assert started[0].train.batch_size == 4


async def test_rows_that_are_dropped_are_one_key_away(config: Path, started: list[Config]) -> None:
    with (config.parent / "rows.jsonl").open("a") as file:
        file.write("no JSON\n")
    async with ready(LocaltuneApp(config)) as (app, pilot):
        await press(pilot, "r", until="1 dropped: 1 no JSON · ! shows them", seconds=60)
        await press(pilot, "question_mark", until="A run before it starts")
        await press(pilot, "escape", until=lambda: has_card(app))
        await press(pilot, "exclamation_mark", until=lambda: app.main.current == "data" and not has_card(app))
        await wait_for(pilot, lambda: pane_of(app, "data").index == 40)
        await pilot.press("r")
        await press(pilot, "e", until=lambda: app.main.current == "config")
        assert not started


async def test_the_sample_goes_through_a_card_and_only_from_the_empty_pane(home: Path, started: list[Config]) -> None:
    async with ready() as (app, pilot):
        await wait_for(pilot, lambda: "the sample tickets" in screen_text(app))
        await press(pilot, "E", until=lambda: has_card(app))
        await wait_for(pilot, lambda: "80 rows of tickets_eval.jsonl" in screen_text(app), 60)
        assert "P preset" not in screen_text(app)
        await press(pilot, "P", "escape")
        assert not started
        await press(pilot, "E", until=lambda: has_card(app))
        await press(pilot, "enter", until=lambda: len(started) == 1)
        assert started[0].data.train.endswith("tickets_train.jsonl")  # type: ignore[union-attr]


@cases("pane", ["3", "5"])
async def test_continuing_says_from_where_how_many_and_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pane: str
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    script = ScriptedRun(tmp_path).train_to(33).end("stopped", "asked to stop")
    continued: list[Run] = []
    monkeypatch.setattr("core.launch.launcher.continue_run", continued.append)
    async with ready(with_run=True) as (app, pilot):
        await press(pilot, pane, until=lambda: script.run.id in screen_text(app))
        await press(pilot, "C", until=lambda: has_card(app))
        text = screen_text(app)
        assert "step 30 of 120, saved " in text
        assert "90 steps · 3 of them done before and not saved" in text
        await wait_for(pilot, lambda: "at its pace, evaluations included" in screen_text(app), 30)
        assert not continued
        await press(pilot, "enter", until=lambda: continued == [script.run])


async def test_a_finished_run_is_trained_further_as_a_new_run(config: Path, home: Path, started: list[Config]) -> None:
    run = ScriptedRun(home).train_to(33).end("finished").run
    run.config_path.write_text(dump_config(load_config(config)))
    (run.adapter_path / "adapter_config.json").touch()
    async with ready(with_run=True) as (app, pilot):
        await press(pilot, "5", until=lambda: run.id in screen_text(app))
        state = app.state
        assert state.document is not None
        before = state.document, state.document.dumps(), state.origin, state.saved_text, state.former
        await press(pilot, "C", until=lambda: has_card(app))
        assert f"further   {run.id[9:]} · new optimizer and schedule" in screen_text(app)
        # The values are the run's. Nothing of them stays after the card is left.
        assert re.search(r"values +run \S+: \d+ values", screen_text(app))
        await press(pilot, "escape", until=lambda: app.main.current == "runs")
        assert (state.document, state.document.dumps(), state.origin, state.saved_text, state.former) == before
        assert pane_of(app, "config").document is state.document
        assert not list_drafts("config")
        # Config counts the rows as the card does, also while the Data pane shows another file.
        (rows := config.with_name("rows.jsonl")).write_text(rows.read_text() + '{"text": ""}\n')
        (other := config.with_name("other.jsonl")).write_text('{"text": "another"}\n')
        app.configuration.open_data(other)
        await wait_for(pilot, lambda: pane_of(app, "data").view.path == other)
        await press(pilot, "5", until=lambda: app.main.current == "runs")
        await press(pilot, "C", until=lambda: has_card(app))
        form = pane_of(app, "config")
        await wait_for(pilot, lambda: form.known.rows_of(form.model) == (40, 0))
        # A draft keeps whose values they are.
        app.drafts.look()
        (draft,) = list_drafts("config")
        assert open_draft(draft).origin == state.origin
        await press(pilot, "enter", until=lambda: len(started) == 1)
        assert started[0].model.adapter == str(run.adapter_path)
        assert started[0].train.learning_rate == load_config(config).train.learning_rate / 2


async def test_over_an_ended_run_d_does_nothing_and_without_a_checkpoint_the_run_says_so(home: Path) -> None:
    ScriptedRun(home).begin().steps(1, 3).end("failed", "the loss is NaN")
    async with ready(with_run=True) as (app, pilot):
        await press(pilot, "E")
        assert not has_card(app)
        assert not app.can_run(app.keys["train.sample"])
        await press(pilot, "C", until="no complete checkpoint")
        assert not has_card(app)


async def test_a_start_waits_for_the_preset_that_is_being_chosen(
    tmp_path: Path, home: Path, started: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()

    def lengths(_: Config) -> list[int]:
        may_go_on.wait(60)
        return [40]

    monkeypatch.setattr(begin, "sample_lengths", lengths)
    rows = tmp_path / "faq.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(200)))
    try:
        async with ready() as (app, pilot):
            app.configuration.use_dataset(rows)
            await wait_for(pilot, lambda: app.configuration.presets.is_pending)
            await pilot.press("r")
            assert "being chosen for model, card and rows" in screen_text(app)
            await press(pilot, "enter", until="starts as soon as the preset is chosen")
            await press(pilot, "escape")
            assert has_card(app), "taken back, and still there"
            await pilot.press("enter")
            may_go_on.set()
            await wait_for(pilot, lambda: len(started) == 1)
            assert (started[0].train.learning_rate, started[0].data.eval_share) == (5e-4, 0.1)
    finally:
        may_go_on.set()


async def test_rows_of_no_known_format_start_nothing(tmp_path: Path, started: list[Config]) -> None:
    (tmp_path / "odd.csv").write_text("Frage;Antwort\na;b\nc;d\n")
    path = tmp_path / "mine.toml"
    path.write_text('[data]\ntrain = "odd.csv"\n')
    async with ready(LocaltuneApp(path), size=(80, 24)) as (app, pilot):
        data = pane_of(app, "data")
        await wait_for(pilot, lambda: data.view is not None and data.view.unknown is not None)
        await press(pilot, "r", until="Nothing starts: odd.csv has rows of no known format")
        await press(pilot, "enter")
        assert has_card(app)
        assert "enter start" not in screen_text(app)
        assert not started
        await press(pilot, "exclamation_mark", until=lambda: not has_card(app))
        assert app.main.current == "data"
        assert "says which column is the question" in screen_text(app)


def too_late(config: Path) -> None:
    """Give a configuration a deadline that an earlier run of its kind shows to be too early."""
    config.write_text(config.read_text() + '[night]\ndeadline = "07:00"\n')
    step = StepEvent(
        step=1, epoch=0.1, loss=1.0, lr=1e-4, grad_norm=1.0, tokens=100, supervised_tokens=100, seconds=36_000.0,
        tokens_per_second=1.0,
    )  # fmt: skip
    earlier = create_run(load_config(config), "earlier")
    earlier.events_path.write_text("".join(encode_event(replace(step, step=number)) for number in range(1, 5)))
    RunState(state="finished").write(earlier.state_path)


async def test_a_deadline_that_cannot_be_met_asks_before_the_start(config: Path, started: list[Config]) -> None:
    too_late(config)
    async with ready(LocaltuneApp(config), size=(80, 24)) as (app, pilot):
        for answer in ("escape", "y"):
            assert not started
            await press(pilot, "r", "enter", until="07:00 cannot be met: at full speed, by the pace", seconds=60)
            await press(pilot, answer, until=lambda: not isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: started)
        assert started[0].night.deadline == "07:00"


async def test_a_deadline_that_cannot_be_met_asks_before_the_queue(
    config: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.commands.train.check_model", lambda _: None)
    too_late(config)
    async with ready(LocaltuneApp(config), size=(80, 24)) as (app, pilot):
        entry, sweep = app.starting.add_to_queue, partial(app.starting.add_sweep, "learning_rate = 1e-4, 2e-4")
        for add, answer, told in (
            (sweep, "escape", "Nothing added."),
            (entry, "escape", "Nothing added."),
            (entry, "y", "Entry 1 added"),
        ):
            adding = asyncio.create_task(add())
            await wait_for(pilot, lambda: "07:00 cannot be met: at full speed, by the pace" in screen_text(app), 60)
            await pilot.press(answer)
            assert (await adding).startswith(told)
        assert [entry.id for entry in read_queue().entries] == [1]
