"""Figures of runs: totals from one pass over a record, caches, rows of the list, and the account of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import paths
from core.runs.catalog import rows as figures
from core.runs.catalog.result import read_detail
from core.runs.catalog.rows import FigureReader, RunCatalog, RunFigures, RunRow
from core.runs.catalog.table import DEFAULT_SORT, SORT_COLUMNS, select_rows, sort_rows
from core.runs.record import events
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, create_run, write_labels
from core.runs.record.timings import KEPT, RunTotals
from tests.cases import cases
from tests.core.runs.event_strategies import EVENTS as ANY_EVENTS
from tests.core.runs.helpers import config_for, step_event, write_events
from tests.examples import examples


def step(moment: float, number: int, **changes: Any) -> events.StepEvent:
    return step_event(number, t=moment, **changes)


def evaluation(moment: float, number: int, loss: float, exact: float = 0.5) -> events.EvalEvent:
    return events.EvalEvent(t=moment, step=number, loss=loss, perplexity=None, seconds=1.0, exact_match=exact)


#: A run that was killed after step 3, and went on from step 2.
EVENTS: Sequence[events.Event] = (
    events.PhaseEvent(t=10.0, name="importing"),
    events.PhaseEvent(t=11.0, name="training"),
    step(12.0, 1),
    evaluation(13.0, 1, 0.9),
    step(14.0, 2),
    events.HardwareEvent(t=14.5, devices=[{"index": 0, "kind": "cuda", "name": "x"}], energy_wh=2.0),
    step(15.0, 3),
    evaluation(16.0, 3, 0.1),
    events.PhaseEvent(t=100.0, name="importing"),
    events.PhaseEvent(t=101.0, name="training"),
    step(102.0, 3),
    events.HardwareEvent(t=103.0, devices=[], energy_wh=0.5),
    events.HardwareEvent(t=103.5, devices=[], energy_wh=None),
    evaluation(104.0, 3, 0.7),
    step(105.0, 4),
    evaluation(106.0, 4, 0.8),
    events.FinishedEvent(t=107.0, reason="", step=4),
)


def test_a_record_that_goes_back_counts_each_step_once(run: Run) -> None:
    write_events(run, *EVENTS)
    found = FigureReader().read(run)
    assert (found.tokens, found.tokens_per_second) == (400, 50.0)
    assert found.energy_wh == 2.5
    assert (found.best_loss, found.best_step, found.eval_loss, found.exact_match) == (0.7, 3, 0.8, 0.5)


def test_steps_that_a_rollback_undoes_are_not_counted(run: Run) -> None:
    write_events(run, *EVENTS[:8])
    assert FigureReader().read(run).best_loss == 0.1
    rollback = events.RollbackEvent(t=17.0, step=1, first=2, last=3, loss=9.0)
    write_events(run, *EVENTS[:8], rollback)
    found = FigureReader().read(run)
    assert (found.tokens, found.eval_loss, found.best_loss) == (100, 0.9, 0.9)


def test_the_best_of_very_many_evaluations_is_kept() -> None:
    totals = RunTotals()
    for number in range(1, 2 * KEPT + 2):
        totals.apply(evaluation(float(number), number, 0.5 if number == 7 else 1.0))
    assert len(totals.evals) == KEPT
    assert totals.best is not None
    assert totals.best.step == 7


@settings(max_examples=examples(100))
@given(st.lists(ANY_EVENTS, max_size=12))
def test_lines_of_steps_are_read_alike_either_way(found: list[events.Event]) -> None:
    for event in found:
        line = events.encode_event(event)
        quick = events.decode_step(line.encode("utf-8"))
        if quick is not None:
            assert repr(quick) == repr(events.decode_event(line))
        assert isinstance(event, events.StepEvent) or quick is None


@pytest.fixture
def ended(run: Run) -> Run:
    write_events(run, *EVENTS)
    RunState(state="finished", step=4, total_steps=4).write(run.state_path)
    return run


def test_figures_of_ended_runs_are_kept_beyond_the_process(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FigureReader(is_cached=True)
    assert not reader.is_known(ended)
    first = reader.read(ended)
    reader.save()

    monkeypatch.setattr(figures, "read_totals", lambda _: pytest.fail("read again"))
    fresh = FigureReader(is_cached=True)
    assert fresh.is_known(ended)
    assert fresh.read(ended) == first
    # A note changes the size, and nothing of the record.
    write_labels(ended.path, Labels(note="good"))
    noted = fresh.read(ended)
    assert noted.size > first.size
    assert noted.best_loss == first.best_loss


@cases(
    "content",
    [
        "",
        "[]",
        '{"version": 1}',
        '{"version": 99, "runs": {}}',
        '{"version": 2, "runs": {"ID": {"stamp": "x", "facts": {}}}}',
        '{"version": 2, "runs": {"ID": {"stamp": [1], "facts": {"size": "big"}}}}',
        '{"version": 2, "runs": {"ID": WRONG}}',
        '{"version": 2, "runs": {"ID": 3}}',
    ],
)
def test_a_file_of_figures_that_makes_no_sense_is_made_anew(ended: Run, content: str) -> None:
    path = paths.make_private_dir(paths.cache_dir()) / "run-figures.json"
    wrong = {"stamp": list(FigureReader.stamp(ended)), "facts": asdict(RunFigures(size=1)) | {"size": "big"}}
    content = content.replace("WRONG", json.dumps(wrong)).replace("ID", ended.id)
    path.write_text(content, encoding="utf-8")
    (paths.cache_dir() / "run-facts.json").write_text(content, encoding="utf-8")
    reader = FigureReader(is_cached=True)
    assert reader.read(ended).best_loss == 0.7
    reader.save()
    assert json.loads(path.read_text(encoding="utf-8"))["runs"][ended.id]["facts"]["best_loss"] == 0.7
    assert path.stat().st_mode & 0o777 == 0o600
    (row,) = RunCatalog(is_cached=True).rows()
    assert (row.step, row.method_words, row.data) == (4, "qlora r16", ("train.jsonl",))


def test_facts_of_ended_runs_are_kept_and_labels_are_not(ended: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = RunCatalog(is_cached=True).rows()
    monkeypatch.setattr(Run, "values", lambda _run: pytest.fail("read again"))
    catalog = RunCatalog(is_cached=True)
    assert catalog.rows() == [first]
    write_labels(ended.path, Labels(name="mine"))
    (row,) = catalog.rows()
    assert row.name == "mine"
    # A run that is gone is forgotten.
    ended.path.rename(ended.path.with_name("gone"))
    (ended.path.with_name("gone") / "run.toml").unlink()
    assert catalog.rows() == []
    assert ended.id not in (paths.cache_dir() / "run-facts.json").read_text(encoding="utf-8")


CONTINUED: Sequence[events.Event] = (
    events.PhaseEvent(t=1000.0, name="importing"),
    events.PhaseEvent(t=1004.0, name="importing", done=1),
    events.PhaseEvent(t=1005.0, name="training"),
    step(1010.0, 1, loss=4.0),
    evaluation(1012.0, 1, 4.0, 0.0),
    step(1050.0, 2, loss=2.0, paused_seconds=30.0),
    # It was killed, and continued the next day.
    events.PhaseEvent(t=90_000.0, name="importing"),
    events.PhaseEvent(t=90_005.0, name="training"),
    step(90_010.0, 3, loss=4.0 / 3),
    evaluation(90_012.0, 3, 1.5, 0.35),
    events.StoppedEvent(t=90_013.0, reason="stopped on request after step 3", step=3, hint="Go on with it."),
)


@pytest.fixture
def continued(run: Run) -> Run:
    write_events(run, *CONTINUED)
    RunState(state="stopped", step=3, total_steps=10, updated=90_013.0).write(run.state_path)
    return run


def test_working_time_has_neither_pauses_nor_the_time_between_two_workers(continued: Run) -> None:
    found = FigureReader().read(continued)
    assert found.working_seconds == pytest.approx(50.0 - 30.0 + 13.0)
    assert (found.eval_loss, found.exact_match) == (1.5, 0.35)
    assert found.size == sum(path.stat().st_size for path in continued.path.iterdir())
    # JSON without spaces, as another program may write it.
    loose = continued.events_path.read_text(encoding="utf-8").replace('{"t": ', '{"t":').replace('": ', '":')
    for content, seconds in (
        (loose, 33.0),
        ("", None),
        ("\udcff\n", None),
        ('{"t": "x"}\n', None),
        ("{" * 10_000, None),
    ):
        continued.events_path.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert FigureReader().read(continued).working_seconds == seconds


def test_figures_are_read_again_only_when_a_file_has_changed(continued: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_REST", 0.0)
    reader = FigureReader()
    reader.read(continued)
    read: list[Path] = []

    def note(path: Path) -> RunTotals:
        read.append(path)
        return RunTotals()

    monkeypatch.setattr(figures, "read_totals", note)
    reader.read(continued)
    assert not read
    with continued.events_path.open("a", encoding="utf-8") as file:
        file.write(events.encode_event(step(90_020.0, 4)))
    reader.read(continued)
    assert read == [continued.events_path]


def test_the_account_of_a_run(continued: Run, home: Path) -> None:
    config = config_for(home)
    train = config.train.model_copy(update={"learning_rate": 1e-3, "batch_size": 4})
    other = create_run(config.model_copy(update={"train": train}), "tickets")
    account = read_detail(continued, other)
    assert account.evals == (4.0, 1.5)
    assert account.exact_matches == (0.0, 0.35)
    assert account.reason == "stopped on request after step 3."
    continued.state_path.write_text(json.dumps({**json.loads(continued.state_path.read_text()), "state": "failed"}))
    assert read_detail(continued, other).reason.endswith(". Go on with it.")
    assert account.data == "train.jsonl"
    assert list(account.loss.values) == [4.0, 2.0, 4.0 / 3]
    changes = {change.name: (change.before, change.after) for change in account.changes}
    assert changes["train.batch_size"] == ("4", "8")
    assert changes["train.learning_rate"] == ("0.001", "2e-4")
    assert read_detail(continued, None).changes == ()


def test_a_list_of_runs_is_there_before_all_facts_are(continued: Run, home: Path) -> None:
    for _ in range(3):
        create_run(config_for(home), "more")
    catalog = RunCatalog()
    rows = catalog.rows(0.0)
    assert len(rows) == 4
    assert not catalog.is_whole
    assert {row.model for row in rows} == {""}
    rows = catalog.rows(math.inf)
    assert all(row.learning_rate == 2e-4 and row.rank and row.batch_size for row in rows)
    # Known facts stay known without a time budget.
    assert [row.model for row in catalog.rows(0.0)] == [row.model for row in rows]
    assert catalog.is_whole


def row(number: int, state: str = "finished", loss: float | None = 1.0, **labels: object) -> RunRow:
    return RunRow(
        run=Run(Path(f"/runs/2026010{number}-000000-tickets")), state=state, model="m", step=number, loss=loss,
        started=float(number), base="/models/Qwen2.5-7B", method="qlora", rank=16, data=("tickets.jsonl",),
        labels=Labels(**labels),  # type: ignore[arg-type]
    )  # fmt: skip


ROWS = [
    row(1, loss=0.5, name="Base line", tags=("keep", "v1")),
    row(2, "failed", loss=math.nan, note="too hot"),
    row(3, loss=0.3, tags=("keep",), archived=True),
    row(4, "stopped", loss=None),
]


@cases(
    ("text", "archived", "found"),
    [
        ("", False, [1, 2, 4]),
        ("", True, [1, 2, 3, 4]),
        ("#keep", True, [1, 3]),
        ("#ke", True, [1, 3]),
        ("keep base", True, [1]),
        ("state:fail", False, [2]),
        ("data:tick model:qwen method:r16", False, [1, 2, 4]),
        ("note:hot", False, [2]),
        ("state:hot", False, []),
        ("20260104", False, [4]),
        ("tickets FAILED", False, [2]),
        ("archived", True, [3]),
        ("http://x:y", False, []),
    ],
)
def test_words_select_rows(text: str, archived: bool, found: list[int]) -> None:
    assert [kept.step for kept in select_rows(ROWS, text, archived=archived)] == found


def test_unknown_values_come_last_either_way() -> None:
    assert [kept.step for kept in sort_rows(ROWS, {}, "loss")] == [3, 1, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, {}, "loss", reverse=True)] == [1, 3, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, {}, DEFAULT_SORT)] == [4, 3, 2, 1]
    figures = {
        ROWS[number].run.id: RunFigures(size=number, best_loss=loss, tokens_per_second=speed)
        for number, loss, speed in ((0, 0.4, 10.0), (1, None, 30.0), (2, 0.2, 20.0))
    }
    assert [kept.step for kept in sort_rows(ROWS, figures, "best")] == [3, 1, 4, 2]
    assert [kept.step for kept in sort_rows(ROWS, figures, "speed")] == [2, 3, 1, 4]


@cases("name", SORT_COLUMNS)
@cases("reverse", [False, True])
def test_every_column_sorts_all_rows(name: str, reverse: bool) -> None:
    assert sorted(kept.step for kept in sort_rows(ROWS, {}, name, reverse=reverse)) == [1, 2, 3, 4]
