"""Comparison of runs: which was better and why, curves over other axes, and reports that other programs read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from core.config.document import dump_config
from core.errors import UserError
from core.runs.catalog import compare
from core.runs.record.events import DataEvent, EvalEvent, Event, HardwareEvent, PhaseEvent, SampleEvent
from core.runs.record.series import METRICS
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, create_run, write_labels
from tests.core.runs.helpers import add_checkpoint, config_for, step_event, write_events
from tests.tui.harness import FORBIDDEN, HOSTILE


def evaluation(number: int, loss: float, **more: float) -> EvalEvent:
    return EvalEvent(t=200.0, step=number, loss=loss, perplexity=None, seconds=1.0, **more)  # type: ignore[arg-type]


def make(home: Path, name: str, events: list[Event], **train: object) -> Run:
    config = config_for(home)
    data = config.data.model_copy(update={"eval": "/data/held_out.jsonl"})
    run = create_run(config.model_copy(update={"data": data, "train": config.train.model_copy(update=train)}), name)
    head = [PhaseEvent(t=100.0, name="importing"), PhaseEvent(t=100.0, name="training")]
    write_events(run, *head, *events)
    RunState(state="finished", step=3, total_steps=3, updated=300.0).write(run.state_path)
    return run


def sample(prompt: str, text: str, number: int, *, right: bool | None = None) -> SampleEvent:
    expected = None if right is None else "yes"
    return SampleEvent(
        t=201.0, step=number, prompt=prompt, text=text, source=f"step-{number}", expected=expected, exact_match=right
    )


@pytest.fixture
def pair(home: Path) -> list[compare.RunRecord]:
    """Two runs; the second has half the learning rate, longer steps, and a lower loss."""
    data = {"dropped": {}, "tokens": 1000, "supervised_tokens": 300, "longest": 50, "held_out_rows": 10}
    first = make(
        home, "first",
        [
            DataEvent(rows=100, used=90, **data),  # type: ignore[arg-type]
            *(step_event(number, loss=2.0 / number) for number in (1, 2, 3)),
            evaluation(2, 0.5, exact_match=0.4), evaluation(3, 0.6, exact_match=0.5),
            HardwareEvent(t=202.0, devices=[], energy_wh=3.0),
            sample("Is it?", "no", 3, right=False), sample("Only here", "a", 3),
        ],
    )  # fmt: skip
    second = make(
        home, "second",
        [
            DataEvent(rows=200, used=180, **data),  # type: ignore[arg-type]
            *(step_event(number, tokens=300, seconds=1.0, loss=1.0 / number) for number in (1, 2, 3)),
            evaluation(3, 0.4, exact_match=0.5),
            sample("Is it?", "maybe", 2, right=False), sample("Is it?", "yes", 3, right=True),
        ],
        learning_rate=1e-4, batch_size=4,
    )  # fmt: skip
    write_labels(second.path, Labels(name="half the rate"))
    return [compare.read_record(first), compare.read_record(second)]


@pytest.fixture
def compared(pair: list[compare.RunRecord]) -> compare.RunComparison:
    return compare.compare_runs(pair)


def test_it_says_which_was_better_and_what_differs(compared: compare.RunComparison) -> None:
    assert compared.verdict.startswith("B was better on held-out rows: eval loss 0.400 at step 3, A 0.500.")
    assert "train.learning_rate" in compared.verdict
    figures = {fact.name: fact for fact in compared.figures}
    assert (figures["best eval loss"].values, figures["best eval loss"].best) == ((0.5, 0.4), (1,))
    assert (figures["speed"].words, figures["speed"].best) == (("50 tok/s", "300 tok/s"), (1,))
    assert (figures["energy"].words, figures["energy"].best) == (("3.0 Wh", "–"), ())
    assert figures["exact match"].best == (), "equal values are not marked"
    options = {fact.name: fact.words for fact in compared.options}
    assert options == {"train.batch_size": ("8", "4"), "train.learning_rate": ("2e-4", "1e-4")}
    data = {fact.name: fact.values for fact in compared.data}
    assert data == {"rows": (100, 200), "rows used": (90, 180)}
    asked, alone = compared.answers
    assert (asked.prompt, asked.texts, asked.steps, asked.right) == ("Is it?", ("no", "yes"), (3, 3), (False, True))
    assert (alone.prompt, alone.texts) == ("Only here", ("a", None))


def test_curves_over_steps_tokens_and_time(pair: list[compare.RunRecord]) -> None:
    first, second = pair
    assert list(first.curve("loss").steps) == [1, 2, 3]
    assert list(second.curve("loss", "tokens").steps) == [300, 600, 900]
    assert list(second.curve("loss", "tokens").values) == [1.0, 0.5, 1 / 3]
    assert list(first.curve("loss", "time").steps) == [2000, 4000, 6000]
    assert list(first.curve("eval_loss", "tokens").steps) == [200, 300]
    assert all(len(first.curve(name, "time")) == len(first.curve(name)) for name in METRICS)


def test_losses_on_other_rows_say_nothing(home: Path, pair: list[compare.RunRecord]) -> None:
    other = config_for(home).model_copy()
    other = other.model_copy(update={"data": other.data.model_copy(update={"eval": "/data/other.jsonl"})})
    pair[1].run.config_path.write_text(dump_config(other), encoding="utf-8")
    compared = compare.compare_runs([pair[0], compare.read_record(pair[1].run)])
    assert compared.verdict == "Their eval losses are on different held-out rows, so they cannot be compared."
    assert not any(fact.best for fact in compared.figures if "eval loss" in fact.name or fact.name == "exact match")


@pytest.mark.parametrize(
    ("data", "seed", "verdict"),
    [
        ("/data/a.jsonl", 1, "B was better on held-out rows"),
        ("/data/b.jsonl", 1, "Their eval losses may be on different held-out rows, so they cannot be compared."),
        ("/data/a.jsonl", 2, "Their eval losses may be on different held-out rows, so they cannot be compared."),
    ],
)
def test_a_share_without_a_hash_compares_only_if_it_is_taken_from_the_same(
    home: Path, pair: list[compare.RunRecord], data: str, seed: int, verdict: str
) -> None:
    held_out = DataEvent(rows=100, used=90, dropped={}, tokens=9, supervised_tokens=9, longest=9, held_out_rows=10)
    for record, path, number in zip(pair, ("/data/a.jsonl", data), (1, seed), strict=True):
        record.history.apply(held_out)
        record.values = {**record.values, "data.train": path, "data.eval": None, "data.eval_share": 0.1}
        record.values = {**record.values, "train.seed": number}
    pair[0].manifest = {"data_sha256": "a" * 64, "held_out_sha256": "c" * 64}
    assert compare.compare_runs(pair).verdict.startswith(verdict)
    if data == "/data/b.jsonl":
        pair[1].manifest = {"data_sha256": "b" * 64, "held_out_sha256": "c" * 64}
        assert compare.compare_runs(pair).verdict.startswith("B was better"), "the same rows by their hash"


def save(record: compare.RunRecord, **manifest: str) -> None:
    """A checkpoint of a run."""
    (add_checkpoint(record.run) / "manifest.json").write_text(json.dumps(manifest))


def test_the_rows_are_distinguished_by_their_hash(home: Path, pair: list[compare.RunRecord]) -> None:
    for record, digest in zip(pair, ("a" * 64, "b" * 64), strict=True):
        save(record, data_sha256=digest, held_out_sha256="c" * 64)
    begun = create_run(config_for(home), "begun")
    compared = compare.compare_runs([compare.read_record(run) for run in (pair[0].run, pair[1].run, begun)])
    assert compared.verdict.startswith("B was better on held-out rows"), "one without an evaluation has no rows"
    compared = compare.compare_runs([compare.read_record(record.run) for record in pair])
    data = {fact.name: fact.words for fact in compared.data}
    assert data["SHA-256 of the rows"] == ("a" * 11, "b" * 11)
    assert "SHA-256 of those held out" not in data


def test_runs_without_anything_are_compared_and_other_numbers_of_runs_refused(home: Path) -> None:
    empty = [compare.read_record(create_run(config_for(home), name)) for name in ("a", "b")]
    for count in (0, 1, compare.MOST_RUNS + 1):
        with pytest.raises(UserError, match="Name two to 6"):
            compare.compare_runs((empty * compare.MOST_RUNS)[:count])
    (empty[0].run.config_path).write_text("= nonsense")
    compared = compare.compare_runs([compare.read_record(record.run) for record in empty])
    assert "Fewer than two of these runs have an evaluation" in compared.verdict
    assert compare.to_markdown(compared)
    assert compare.text_lines(compared)


def test_csv_and_json_have_plain_values(compared: compare.RunComparison) -> None:
    found = json.loads(json.dumps(compare.to_json(compared)))
    assert {"name": "speed", "unit": "tokens/s", "values": [50.0, 300.0], "best": [1]} in found["figures"]
    assert [run["letter"] for run in found["runs"]] == ["A", "B"]
    rows = list(csv.DictReader(io.StringIO(compare.to_csv(compared))))
    assert [row["name"] for row in rows] == ["", "half the rate"]
    assert [float(row["best eval loss"]) for row in rows] == [0.5, 0.4]
    assert [row["energy (Wh)"] for row in rows] == ["3.0", ""]
    assert [row["train.batch_size"] for row in rows] == ["8", "4"]
    curves = list(csv.DictReader(io.StringIO(compare.to_curves_csv(compared))))
    second = [row for row in curves if row["run"].endswith("second") and row["metric"] == "loss"]
    told = [(row["step"], int(row["tokens"]), float(row["seconds"])) for row in second]
    assert told == [("1", 300, 1.0), ("2", 600, 2.0), ("3", 900, 3.0)]


def test_reports_are_safe_whatever_runs_are_called(pair: list[compare.RunRecord]) -> None:
    write_labels(pair[0].run.path, Labels(name="=cmd|'/C calc'!A1", note="| a | <b> " + HOSTILE))
    compared = compare.compare_runs([compare.read_record(record.run) for record in pair])
    rows = list(csv.reader(io.StringIO(compare.to_csv(compared))))
    assert rows[1][1].startswith("'=cmd")
    report = compare.to_markdown(compared)
    assert "<b>" not in report
    # Each line of a table has the cells of its head.
    tables = [line for line in report.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {4}
    for text in (report, compare.to_csv(compared), "\n".join(compare.text_lines(compared))):
        assert not FORBIDDEN & set(text)
