"""Losses of rows after a run: a column, the worst first, and what is done about them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import TextArea

from core.config.document import ConfigDocument
from core.config.schema import Config
from core.errors import UserError
from core.evaluation.row_losses import VERSION, RowLosses, read_losses, read_review
from core.jobs.job import Job, JobProgress
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from core.small_files import hash_file
from tests.tui.data_panes import configuration, data_pane, row, shows, write_lines
from tests.tui.harness import document_of, opened, pane_of, press, requested, wait_for
from tui.app import LocaltuneApp
from tui.panes.data.pane import DataPane
from tui.session import DataPlace

#: Losses of the rows by line; the second line is blank.
LOSSES = {1: 0.1, 3: 2.5, 4: 0.2, 5: 3.25, 6: 0.3}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [row(f"question {line}", f"answer {line}") for line in range(1, 7)]
    lines[1] = ""
    return write_lines(tmp_path / "rows.jsonl", lines)


@pytest.fixture
def run(tmp_path: Path, private_home: Path, data: Path) -> Run:
    """A finished run on the rows, which was not measured."""
    config = Config.model_validate({"model": {"base": str(tmp_path)}, "data": {"train": str(data)}})
    made = create_run(config, "rows")
    RunState(state="finished").write(made.state_path)
    return made


def record(run: Run, data: Path) -> dict[str, Any]:
    """A measurement of the rows: the two worst were answered, one of which has a twin."""
    status = data.stat()
    worst = {"file": data.name, "tokens": 4, "question": "question"}
    return {
        "version": VERSION,
        "run": run.id,
        "step": None,
        "rows_sha256": "00",
        "files": [
            {
                "path": str(data),
                "sha256": hash_file(data),
                "bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
        ],
        "rows": {data.name: [[line, loss, 4] for line, loss in LOSSES.items()]},
        "worst": [
            {**worst, "line": 5, "loss": 3.25, "answer": "answer 5", "own": "its own 5", "twins": []},
            {
                **worst,
                "line": 3,
                "loss": 2.5,
                "answer": "answer 3",
                "own": "its own 3",
                "twins": [{"file": data.name, "line": 6, "answer": "answer 6"}],
            },
        ],
        "notes": [],
    }


def keep(run: Run, content: str) -> None:
    (run.path / "trace").mkdir(exist_ok=True)
    (run.path / "trace" / "row_losses.json").write_text(content, encoding="utf-8")


@pytest.fixture
def measured(run: Run, data: Path) -> Run:
    keep(run, json.dumps(record(run, data)))
    return run


def listed(pane: DataPane) -> list[tuple[int, str]]:
    """Row numbers with the cell of the loss."""
    place = pane.session.columns.index("loss")
    return [(cells.number, cells.cells[place]) for cells in pane.body.cells(0, 10)]


async def looked_up(pilot: Pilot[None], pane: DataPane) -> None:
    await wait_for(pilot, lambda: pane.session.has_looked_up)
    await pilot.pause()


@contextlib.asynccontextmanager
async def losses_beside(data: Path, document: ConfigDocument) -> AsyncIterator[tuple[Pilot[None], DataPane]]:
    """The data of a run, looked up beside a configuration."""
    async with data_pane(data, document, size=(120, 30)) as (pilot, pane):
        app: Any = pilot.app
        app.state.document = document
        await looked_up(pilot, pane)
        yield pilot, pane


async def test_the_worst_rows_come_first_beside_the_models_own_answers(data: Path, measured: Run) -> None:
    async with data_pane(data, size=(120, 30)) as (pilot, pane):
        await looked_up(pilot, pane)
        assert pane.body.rows.columns == ("loss", "user", "assistant")
        assert listed(pane) == [(1, "0.10"), (2, "2.50"), (3, "0.20"), (4, "3.25"), (5, "0.30")]
        await press(pilot, "f")
        assert listed(pane) == [(4, "3.25"), (2, "2.50")]
        assert shows(pilot, "worst learned")
        await press(pilot, "g")
        assert [(turn.role, turn.text) for turn in pane.body.conversation.turns] == [
            ("user", "question 5"),
            ("assistant", "answer 5"),
            ("model", "its own 5"),
        ]
        assert shows(pilot, "row 4 · line 5 · loss 3.25")
        await press(pilot, "j")
        same = pane.body.conversation.turns[-1]
        assert (same.role, same.text) == ("same", "rows.jsonl:6 has the same question, and the answer answer 6")
        await press(pilot, "f")
        assert [number for number, _ in listed(pane)] == [4, 2, 5, 3, 1]
        await press(pilot, "slash", *"question 6", "enter", until=lambda: pane.index == 4)
        assert pane.body.rows.cursor == 2
        place = pane.place
    async with data_pane(data, size=(120, 30)) as (pilot, pane):
        assert place is not None
        pane.return_to(place)
        await wait_for(pilot, lambda: pane.session.filter is not None and pane.session.filter.code == "by_loss")
        assert pane.index == 4


async def test_kept_and_excluded_rows_move_below_the_others(tmp_path: Path, data: Path, measured: Run) -> None:
    document = configuration(tmp_path, data__train=str(data))
    async with losses_beside(data, document) as (pilot, pane):
        await press(pilot, "f", "f", "g", "K", until=lambda: read_review(measured).kept)
        await wait_for(pilot, lambda: listed(pane)[-1] == (4, "kept"))
        assert [number for number, _ in listed(pane)] == [2, 5, 3, 1, 4]
        assert pane.index == 1, "the next row to look at"
        await press(pilot, "D")
        (request,) = requested(pilot, "configuration.choose_options")
        values, said, path = request.args
        assert values == {"data.exclude": ["rows.jsonl:3"]}
        assert said == "rows.jsonl:3 is left out of training; D takes it back."
        assert path == data
        # As the configuration then has it.
        document.set("data.exclude", "rows.jsonl:2-3")
        pane.configure(document)
        await pilot.pause()
        assert listed(pane) == [(5, "0.30"), (3, "0.20"), (1, "0.10"), (4, "kept"), (2, "out")]
        assert pane.index == 4
        await press(pilot, "G")
        assert shows(pilot, "row 2 · line 3 · loss 2.50 · left out")
        await press(pilot, "D")
        values, said, _ = requested(pilot, "configuration.choose_options")[-1].args
        assert values == {"data.exclude": ["rows.jsonl:2"]}
        assert said == "rows.jsonl:3 is trained on again."
        await press(pilot, "k", "K", until=lambda: not read_review(measured).kept)
        await wait_for(pilot, lambda: listed(pane)[0] == (4, "3.25"))


async def test_a_correction_goes_to_a_copy_that_is_trained_on(tmp_path: Path, data: Path, measured: Run) -> None:
    document = configuration(tmp_path, data__train=["other.jsonl", "rows.jsonl"])
    before = data.read_bytes()
    async with losses_beside(data, document) as (pilot, pane):
        await press(pilot, "f", "g", "e", until=lambda: pilot.app.screen.query(TextArea))
        area = pilot.app.screen.query_one(TextArea)
        assert area.text == "answer 5"
        assert shows(pilot, "Correct rows.jsonl:5 in a copy")
        area.text = "right\nanswer"
        copy = tmp_path / "rows-corrected.jsonl"
        await press(pilot, "ctrl+s", until=lambda: pane.view is not None and pane.view.path == copy)
        assert data.read_bytes() == before
        corrected = copy.read_text(encoding="utf-8").splitlines()
        assert json.loads(corrected[4])["messages"][1]["content"] == "right\nanswer"
        assert corrected[:4] + corrected[5:] == [
            line for at, line in enumerate(before.decode().splitlines()) if at != 4
        ]
        (request,) = requested(pilot, "configuration.choose_options")
        assert request.args[0] == {"data.train": ["other.jsonl", "rows-corrected.jsonl"]}
        await wait_for(pilot, lambda: pane.session.filter is not None)
        assert listed(pane) == [(2, "2.50"), (4, "fixed")]
        assert pane.index == 1, "the next row to look at"
        await press(pilot, "G")
        assert [turn.role for turn in pane.body.conversation.turns] == ["user", "assistant"]
        await press(pilot, "g", "e", until=lambda: pilot.app.screen.query(TextArea))
        pilot.app.screen.query_one(TextArea).text = "right"
        await press(pilot, "ctrl+s", until=lambda: b'"right"' in copy.read_bytes())
        assert b"right\\nanswer" in copy.read_bytes(), "the earlier correction stays"
        await wait_for(pilot, lambda: pane.session.filter is not None and listed(pane)[0][1] == "fixed")


async def test_a_held_out_file_stays_held_out(tmp_path: Path, data: Path, run: Run) -> None:
    document = configuration(tmp_path, data__train="other.jsonl", data__eval=["rows.jsonl"])
    async with losses_beside(data, document) as (pilot, pane):
        await press(pilot, "D", until=lambda: shows(pilot, "✗ Held-out rows are not trained on"))
        await press(pilot, "e", until=lambda: pilot.app.screen.query(TextArea))
        pilot.app.screen.query_one(TextArea).text = "right"
        copy = tmp_path / "rows-corrected.jsonl"
        await press(pilot, "ctrl+s", until=lambda: pane.view is not None and pane.view.path == copy)
        (request,) = requested(pilot, "configuration.choose_options")
        assert request.args[0] == {"data.eval": ["rows-corrected.jsonl"]}


async def test_rows_of_a_file_that_the_configuration_does_not_read_are_left_out_of_a_new_one(
    tmp_path: Path, data: Path, run: Run
) -> None:
    document = configuration(tmp_path, data__train="other.jsonl", data__exclude=["other.jsonl:1"])
    async with losses_beside(data, document) as (pilot, _):
        await press(pilot, "D", until=lambda: requested(pilot, "configuration.choose_options"))
        (request,) = requested(pilot, "configuration.choose_options")
        assert request.args[0] == {"data.exclude": ["rows.jsonl:1"]}


async def test_a_copy_is_not_written_into_a_directory_that_is_read_as_a_whole(
    tmp_path: Path, data: Path, run: Run
) -> None:
    document = configuration(tmp_path, data__train=str(tmp_path))
    async with losses_beside(data, document) as (pilot, _):
        await press(pilot, "e", until=lambda: shows(pilot, "✗ The configuration reads a whole directory"))


def measuring(monkeypatch: pytest.MonkeyPatch, outcomes: Sequence[dict[str, Any] | UserError]) -> list[Run]:
    """Replace the measurement by one that writes given records; returns the runs it is asked for."""
    asked: list[Run] = []

    def job(run: Run) -> Job[JobProgress, RowLosses]:
        asked.append(run)

        def work(job: Job[JobProgress, RowLosses]) -> RowLosses:
            job.report(JobProgress("measuring the rows", 1, 2))
            outcome = outcomes[len(asked) - 1]
            if isinstance(outcome, UserError):
                raise outcome
            keep(run, json.dumps(outcome))
            return RowLosses.from_dict(outcome)

        return Job("the measurement of the rows", work)

    monkeypatch.setattr("tui.panes.data.pane.row_losses_job", job)
    return asked


async def test_a_key_measures_a_run_that_lacks_it(data: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(run, json.dumps(record(run, data))[:-30])
    assert read_losses(run) is None, "torn"
    asked = measuring(monkeypatch, [UserError("No room.", "Wait."), record(run, data)])
    async with data_pane(data, size=(120, 30)) as (pilot, pane):
        await looked_up(pilot, pane)
        assert "loss" not in pane.body.rows.columns
        await press(pilot, "Y", until=lambda: shows(pilot, "✗ No room. Wait."))
        await press(pilot, "Y", until=lambda: pane.session.filter is not None)
        assert asked == [run, run]
        assert listed(pane) == [(4, "3.25"), (2, "2.50")]
        assert pane.body.rows.has_focus
        await press(pilot, "escape", "Y", until=lambda: pane.session.filter is not None)
        assert len(asked) == 2, "it is known now"
        data.write_bytes(data.read_bytes().replace(b"answer 6", b"another"))
        await press(pilot, "f5", until=lambda: not pane.session.has_looked_up or pane.session.losses is None)
        await looked_up(pilot, pane)
        assert "loss" not in pane.body.rows.columns, "the rows are not those that were measured"


async def test_rows_that_no_run_was_trained_on(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row("a", "b")])
    async with data_pane(path, size=(120, 30)) as (pilot, pane):
        await looked_up(pilot, pane)
        await press(pilot, "Y", until=lambda: shows(pilot, "No run that has ended was trained on this file"))
        await press(pilot, "K", until=lambda: shows(pilot, "Y measures which rows a run has not learned."))
        assert pane.place == DataPlace(str(path), 0, "", False)


async def test_the_configuration_follows_what_is_done_about_rows(tmp_path: Path, data: Path, measured: Run) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[data]\ntrain = "rows.jsonl"\n', encoding="utf-8")
    async with opened(LocaltuneApp(config)) as (app, pilot):
        pane: DataPane = pane_of(app, "data")
        await pilot.press("1")
        await looked_up(pilot, pane)
        document = document_of(app)
        await press(pilot, "f", "D", until=lambda: document.get("data.exclude") == ["rows.jsonl:5"])
        assert listed(pane) == [(2, "2.50"), (4, "out")]
        await press(pilot, "e", until=lambda: app.screen.query(TextArea))
        app.screen.query_one(TextArea).text = "right"
        await press(pilot, "ctrl+s", until=lambda: document.get("data.train") == "rows-corrected.jsonl")
        assert document.get("data.exclude") == ["rows-corrected.jsonl:5"]
        await wait_for(pilot, lambda: pane.session.filter is not None and pane.session.losses is not None)
        assert pane.view is not None
        assert pane.view.path == tmp_path / "rows-corrected.jsonl"
        assert sorted(listed(pane)) == [(2, "fixed"), (4, "out")]
