"""Figures of runs for their list, and the account of one."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.runs.catalog import rows as figures
from core.runs.catalog.result import read_detail
from core.runs.catalog.rows import FigureReader, RunCatalog
from core.runs.record.events import (
    ControlEvent,
    EvalEvent,
    Event,
    NoticeEvent,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
    encode_event,
)
from core.runs.record.history import read_history
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from core.runs.record.timings import RunTotals
from tests.cases import cases
from tests.core.runs.helpers import config_for


def step(moment: float, number: int, paused: float = 0.0) -> StepEvent:
    return StepEvent(
        t=moment,
        step=number,
        epoch=0.0,
        loss=4.0 / number,
        lr=1e-4,
        grad_norm=1.0,
        tokens=10,
        supervised_tokens=5,
        seconds=1.0,
        tokens_per_second=10.0,
        paused_seconds=paused,
    )


def phase(moment: float, name: str, done: int | None = None) -> PhaseEvent:
    return PhaseEvent(t=moment, name=name, detail="", done=done, total=None)


EVENTS: Sequence[Event] = (
    phase(1000.0, "importing"),
    phase(1004.0, "importing", 1),
    phase(1005.0, "training"),
    step(1010.0, 1),
    EvalEvent(t=1012.0, step=1, loss=4.0, perplexity=1.0, seconds=1.0, exact_match=0.0),
    step(1050.0, 2, paused=30.0),
    # It was killed, and continued the next day.
    phase(90_000.0, "importing"),
    phase(90_005.0, "training"),
    step(90_010.0, 3),
    EvalEvent(t=90_012.0, step=3, loss=1.5, perplexity=1.0, seconds=1.0, exact_match=0.35),
    StoppedEvent(t=90_013.0, reason="stopped on request after step 3", step=3, hint="Go on with it."),
)


@pytest.fixture
def run(private_home: Path) -> Run:
    made = create_run(config_for(private_home), "tickets")
    made.events_path.write_text("".join(map(encode_event, EVENTS)), encoding="utf-8")
    RunState(state="stopped", step=3, total_steps=10, updated=90_013.0).write(made.state_path)
    return made


def test_working_time_has_neither_pauses_nor_the_time_between_two_workers(run: Run) -> None:
    assert FigureReader().read(run).working_seconds == pytest.approx(50.0 - 30.0 + 13.0)


@cases("content", [b"", b"\xff\xfe\n", b'{"t": "x"}\n', b'{"t": 1e99}', b"{" * 100_000])
def test_a_damaged_record_has_no_working_time(run: Run, content: bytes) -> None:
    run.events_path.write_bytes(content)
    assert FigureReader().read(run).working_seconds in (None, 0.0)
    run.events_path.unlink()
    assert FigureReader().read(run).working_seconds is None


def test_figures(run: Run) -> None:
    found = FigureReader().read(run)
    assert (found.eval_loss, found.exact_match) == (1.5, 0.35)
    assert found.working_seconds == pytest.approx(33.0)
    assert found.size == sum(path.stat().st_size for path in run.path.iterdir())


def test_figures_are_read_again_only_when_a_file_has_changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_REST", 0.0)
    reader = FigureReader()
    reader.read(run)
    read: list[Path] = []

    def note(events: Path) -> RunTotals:
        read.append(events)
        return RunTotals()

    monkeypatch.setattr(figures, "read_totals", note)
    reader.read(run)
    assert not read
    with run.events_path.open("a", encoding="utf-8") as file:
        file.write(encode_event(step(90_020.0, 4)))
    reader.read(run)
    assert read == [run.events_path]


def test_the_account_of_a_run(run: Run, private_home: Path) -> None:
    config = config_for(private_home)
    train = config.train.model_copy(update={"learning_rate": 1e-3, "batch_size": 4})
    other = create_run(config.model_copy(update={"train": train}), "tickets")
    account = read_detail(run, other)
    assert account.evals == (4.0, 1.5)
    assert account.exact_matches == (0.0, 0.35)
    assert account.reason == "stopped on request after step 3. Go on with it."
    run.state_path.write_text(json.dumps({**json.loads(run.state_path.read_text()), "state": "finished"}))
    assert "Go on with it" not in read_detail(run, other).reason
    assert account.data == "train.jsonl"
    assert list(account.loss.values) == [4.0, 2.0, 4.0 / 3]
    changes = {change.name: (change.before, change.after) for change in account.changes}
    assert changes["train.batch_size"] == ("4", "8")
    assert changes["train.learning_rate"] == ("0.001", "2e-4")
    assert read_detail(run, None).changes == ()


def test_a_list_of_runs_is_there_before_all_facts_are(run: Run, private_home: Path) -> None:
    for _ in range(3):
        create_run(config_for(private_home), "more")
    catalog = RunCatalog()
    rows = catalog.rows(0.0)
    assert len(rows) == 4
    assert not catalog.is_whole
    assert {row.model for row in rows} == {""}
    rows = catalog.rows(math.inf)
    assert all(row.learning_rate == 2e-4 and row.rank and row.batch_size for row in rows)
    # What is known stays known without any time for it.
    assert [row.model for row in catalog.rows(0.0)] == [row.model for row in rows]
    assert catalog.is_whole


def test_the_working_time_of_a_record_is_that_of_its_history(run: Run) -> None:
    more: Sequence[Event] = (
        phase(100_000.0, "importing"),
        phase(100_005.0, "training"),
        # A pause that no step follows, and one that nobody asked for.
        step(100_010.0, 4, paused=2.0),
        ControlEvent(t=100_012.0, command="pause", sender="socket", result="ok"),
        ControlEvent(t=100_030.0, command="resume", sender="socket", result="refused: no"),
        StoppedEvent(t=100_040.0, reason="", step=4, hint=""),
        NoticeEvent(t=100_900.0, level="info", code="late", message="a word after the end", hint=""),
    )
    with run.events_path.open("a", encoding="utf-8") as file:
        file.write("".join(map(encode_event, more)))
    assert FigureReader().read(run).working_seconds == pytest.approx(33.0 + 12.0 - 2.0)
    assert read_history(run).working_seconds == pytest.approx(33.0 + 12.0 - 2.0)
    # As another program may have written it.
    loose = run.events_path.read_text(encoding="utf-8").replace('{"t": ', '{"t":').replace('": ', '":')
    run.events_path.write_text(loose, encoding="utf-8")
    assert FigureReader().read(run).working_seconds == pytest.approx(43.0)
