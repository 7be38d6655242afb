"""The parts of a run and the tables of a comparison as text: whole, and safe whatever the run directory holds."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.runs.catalog.compare import RunRecord, compare_runs, read_record
from core.runs.catalog.trained import kept_checkpoints
from core.runs.record.events import CheckpointEvent, EvalEvent, FinishedEvent, NoticeEvent, SampleEvent, encode_event
from core.runs.record.state import Rank, RunState, hostname, start_identity
from core.runs.record.store import Run, create_run, labels_path
from core.text import one_line
from tests.cases import cases
from tests.core.runs.helpers import config_for
from tests.tui.harness import FORBIDDEN, HOSTILE
from tui.screens import run as run_screen
from tui.screens.compare import answer_lines, fact_tables

SHOWN = HOSTILE.replace("\x00", "")


def checkpoint(run: Run, step: int) -> None:
    directory = run.checkpoints_path / f"step-{step:08d}"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def run(private_home: Path) -> Run:
    made = create_run(config_for(private_home), "tickets")
    events = [
        EvalEvent(t=1e9, step=10, loss=0.4, perplexity=1.5, seconds=1.0, exact_match=0.5),
        EvalEvent(t=1e9 + 90_000, step=20, loss=0.6, perplexity=1.8, seconds=1.0, exact_match=0.6),
        SampleEvent(
            t=1e9, step=20, prompt=HOSTILE, text=HOSTILE, source="step-20", expected=HOSTILE, exact_match=False
        ),
        NoticeEvent(t=1e9, level="warning", code="x", message=HOSTILE),
        CheckpointEvent(t=1e9, step=20, path="checkpoints/step-00000020", bytes=5, seconds=1.0),
        FinishedEvent(t=1e9, reason=HOSTILE, step=20, best=10, adapter="adapter"),
    ]
    made.events_path.write_text("".join(map(encode_event, events)), encoding="utf-8")
    config = made.config_path.read_text(encoding="utf-8")
    made.config_path.write_text(config + '\n[odd]\n"k\\u001b" = "v\\u001b[31m"\n', encoding="utf-8")
    labels_path(made.path).write_text(json.dumps({"name": HOSTILE, "note": HOSTILE}), encoding="utf-8")
    return made


@pytest.fixture
def record(run: Run) -> RunRecord:
    return read_record(run)


def test_why_a_checkpoint_is_kept(run: Run, record: RunRecord) -> None:
    for step in (5, 10, 20):
        checkpoint(run, step)
    found = kept_checkpoints(run, record.history)
    assert [(item.step, item.reasons) for item in found] == [(20, ("newest", "result")), (10, ("best",)), (5, ())]
    assert [item.eval_loss for item in found] == [0.6, 0.4, None]
    text = run_screen.checkpoints(found, 80).plain
    assert "newest, result" in text
    assert "one of the last" in text
    assert "3 checkpoints, " in text
    # The worker counts by its own rule, which may be exact answers.
    manifest = run.checkpoints_path / "step-00000020" / "manifest.json"
    manifest.write_text(json.dumps({"best": {"step": 20, "loss": 0.6}}), encoding="utf-8")
    found = kept_checkpoints(run, record.history)
    assert [item.reasons for item in found] == [("best", "newest", "result"), (), ()]


def test_the_checkpoint_of_the_middle_is_named(run: Run, record: RunRecord) -> None:
    RunState(state="finished", total_steps=20).write(run.state_path)
    for step in (6, 11, 16, 18, 20):
        checkpoint(run, step)
    found = {item.step: item.reasons for item in kept_checkpoints(run, record.history)}
    assert (found[11], found[6], found[16]) == (("middle",), (), ())


def test_a_configuration_shows_what_differs_first(record: RunRecord) -> None:
    head, _, rest = run_screen.configuration(record.values, {}, 100).plain.partition("\n\n")
    assert "• data.train" in head
    assert "rank" not in head
    assert "  rank " in rest
    assert "of another version" in rest
    assert "cannot be read" in run_screen.configuration({}, {}, 80).plain
    # What was set while a run was on stands beside its start.
    settings = {"train.learning_rate": 0.0005, "night.deadline": None, "of\x1b.another": 3}
    head, _, _ = run_screen.configuration(record.values, settings, 100).plain.partition("\n\n")
    lines = head.splitlines()
    assert lines[0] == "changed while it ran"
    assert "train.learning_rate" in lines[1]
    assert "5e-4  at the start 2e-4" in lines[1]
    assert "–  at the start –" in lines[2]
    assert "\x1b" not in head


def test_no_part_has_what_a_terminal_acts_on(run: Run, record: RunRecord) -> None:
    checkpoint(run, 20)
    for width in (20, 74, 190):
        texts = [
            run_screen.summary(record, width),
            run_screen.configuration(record.values, record.history.settings, width),
            run_screen.evaluations(record, width),
            run_screen.checkpoints(kept_checkpoints(run, record.history), width),
            run_screen.events(record, width),
            run_screen.worker_log(HOSTILE + "\n" + SHOWN, width),
            fact_tables(compare_runs([record, record]), width),
            answer_lines(compare_runs([record, record]), width),
        ]
        for text in texts:
            assert text.plain.strip(), width
            assert not FORBIDDEN & set(text.plain), width
    days = [line for line in run_screen.events(record, 100).plain.split("\n") if line.startswith("2001-09-")]
    assert len(days) >= 2, "events stand under their days"


@cases("width", [40, 74, 190])
def test_long_events_and_lines_of_the_log_are_wrapped(private_home: Path, width: int) -> None:
    made = create_run(config_for(private_home), "long")
    message = " ".join(f"word{number}" for number in range(60))
    made.events_path.write_text(encode_event(NoticeEvent(t=1e9, level="warning", code="x", message=message)))
    shown = (run_screen.events(read_record(made), width), run_screen.worker_log(f"{message}\nlast\n", width))
    for text in shown:
        assert message in " ".join(text.plain.split())
        assert max(map(len, text.plain.split("\n"))) <= width
    _, first, second, *_ = shown[0].plain.split("\n")
    assert second.index("word") == first.index("!"), "the times have a column of their own"


@cases(("width", "at"), [(74, " 01:46"), (190, "2001-09-09 01:46")])
def test_the_best_evaluation_is_marked_at_any_width(private_home: Path, width: int, at: str) -> None:
    made = create_run(config_for(private_home), "scored")
    found = [
        EvalEvent(t=1e9, step=step, loss=loss, perplexity=12.345, seconds=601.0, exact_match=0.5, valid_json=1.0)
        for step, loss in ((1000, 0.4123), (2000, 0.6123))
    ]
    probed = [replace(event, probe_loss=2.345) for event in found]
    finished = FinishedEvent(t=1e9, reason="", step=2000, best=1000, adapter="adapter")
    made.events_path.write_text("".join(map(encode_event, [*probed, finished])), encoding="utf-8")
    *_, line = run_screen.evaluations(read_record(made), width).plain.split("\n")
    assert line.endswith("  best")
    assert at in line
    cut = run_screen.evaluations(read_record(made), 40).plain.split("\n")
    assert all(len(line) == 40 and line.endswith("…") for line in cut)


def test_an_empty_run_says_what_is_missing(private_home: Path) -> None:
    empty = read_record(create_run(config_for(private_home), "empty"))
    assert "not evaluated" in run_screen.evaluations(empty, 80).plain
    assert "no checkpoint" in run_screen.checkpoints([], 80).plain
    assert "empty" in run_screen.events(empty, 80).plain
    assert "nothing" in run_screen.worker_log("", 80).plain
    assert "None of these runs" in answer_lines(compare_runs([empty, empty]), 80).plain


def test_processes_with_their_machines(run: Run, record: RunRecord) -> None:
    assert "It has one process." in run_screen.processes(record, (), 80, 0.0).plain
    found = [
        Rank(rank=0, host="head", pid=4711, device="cuda:0", heard=100.0, is_waiting=True),
        Rank(rank=1, host=one_line(HOSTILE), pid=None, device="cuda:0", heard=80.0),
    ]
    RunState(
        state="training", pid=os.getpid(), pid_started=start_identity(os.getpid()), host=hostname(), updated=time.time()
    ).write(run.state_path)
    text = run_screen.processes(record, found, 120, 100.0).plain
    assert "0  head" in text
    assert "0s ago" in text
    assert "waiting" in text
    assert "! no sign of life for 20s: 1 on " in text
    assert not FORBIDDEN & set(text)
    assert max(len(line) for line in run_screen.processes(record, found, 40, 100.0).plain.split("\n")[:3]) <= 40
    RunState(state="stopped").write(run.state_path)
    assert "sign of life" not in run_screen.processes(record, found, 120, 100.0).plain
