"""Figures of runs: what one pass over a record finds is what its history says, and what is kept still holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import paths
from core.runs.catalog import rows as figures
from core.runs.catalog.rows import FigureReader, RunCatalog, RunFigures
from core.runs.record.events import (
    EvalEvent,
    Event,
    FinishedEvent,
    HardwareEvent,
    PhaseEvent,
    RollbackEvent,
    StepEvent,
    decode_event,
    decode_step,
    encode_event,
)
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, write_labels
from core.runs.record.timings import KEPT, RunTotals
from tests.cases import cases
from tests.core.runs.event_strategies import EVENTS as ANY_EVENTS
from tests.examples import examples


def step(moment: float, number: int, loss: float = 1.0) -> StepEvent:
    return StepEvent(
        t=moment, step=number, epoch=0.1, loss=loss, lr=1e-4, grad_norm=1.0, tokens=100, supervised_tokens=5,
        seconds=2.0, tokens_per_second=50.0,
    )  # fmt: skip


def evaluation(moment: float, number: int, loss: float) -> EvalEvent:
    return EvalEvent(t=moment, step=number, loss=loss, perplexity=None, seconds=1.0, exact_match=0.5)


#: A run that was killed after step 3, and went on from step 2.
EVENTS: Sequence[Event] = (
    PhaseEvent(t=10.0, name="importing"),
    PhaseEvent(t=11.0, name="training"),
    step(12.0, 1),
    evaluation(13.0, 1, 0.9),
    step(14.0, 2),
    HardwareEvent(t=14.5, devices=[{"index": 0, "kind": "cuda", "name": "x"}], energy_wh=2.0),
    step(15.0, 3),
    evaluation(16.0, 3, 0.1),
    PhaseEvent(t=100.0, name="importing"),
    PhaseEvent(t=101.0, name="training"),
    step(102.0, 3),
    HardwareEvent(t=103.0, devices=[], energy_wh=0.5),
    HardwareEvent(t=103.5, devices=[], energy_wh=None),
    evaluation(104.0, 3, 0.7),
    step(105.0, 4),
    evaluation(106.0, 4, 0.8),
    FinishedEvent(t=107.0, reason="", step=4),
)


def write(run: Run, events: Sequence[Event]) -> None:
    run.events_path.write_text("".join(map(encode_event, events)), encoding="utf-8")


def test_a_record_that_goes_back_counts_each_step_once(run: Run) -> None:
    write(run, EVENTS)
    found = FigureReader().read(run)
    assert (found.tokens, found.tokens_per_second) == (400, 50.0)
    assert found.energy_wh == 2.5
    assert (found.best_loss, found.best_step, found.eval_loss, found.exact_match) == (0.7, 3, 0.8, 0.5)


def test_the_evaluation_that_was_replayed_is_not_the_best(run: Run) -> None:
    write(run, EVENTS[:8])
    assert FigureReader().read(run).best_loss == 0.1


def test_steps_that_a_rollback_undoes_are_not_counted(run: Run) -> None:
    rollback = RollbackEvent(t=17.0, step=1, first=2, last=3, loss=9.0)
    write(run, [*EVENTS[:8], rollback])
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
def test_lines_of_steps_are_read_alike_either_way(found: list[Event]) -> None:
    for event in found:
        line = encode_event(event)
        quick = decode_step(line.encode("utf-8"))
        if quick is not None:
            assert repr(quick) == repr(decode_event(line))
        assert isinstance(event, StepEvent) or quick is None


@pytest.fixture
def ended(run: Run) -> Run:
    write(run, EVENTS)
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
