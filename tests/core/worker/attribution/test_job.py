"""The index of a run and the rows behind an answer, on real runs of a tiny model and of the starter model."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sample_data
from core.attribution.job import attribution_job, chosen_steps, index_job
from core.attribution.result import AttributionRequest
from core.audit.chain_check import check_chain, read_sealed
from core.audit.job import replay_checkpoint
from core.errors import UserError
from core.jobs.job import Job, JobCancelledError, JobProgress
from core.jobs.process import Answers
from core.models.architecture import measuring
from core.runs.catalog.trained import checkpoint_steps, kept_checkpoints
from core.runs.record.chain import CHAIN_NAME
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.attribution.index import IndexMaker, trace_path
from core.worker.attribution.job import Tracer, make_index
from core.worker.attribution.subject import opened
from core.worker.checkpoint.checkpoint import verify_checkpoint
from tests.cases import cases
from tests.e2e.workers import write_rows
from tests.measured_here import run_here
from tests.progress import quiet

from .runs import ROWS, STEPS, subject_of, trained

QUESTION = ({"role": "user", "content": "ticket printer refund"},)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """A run without an index."""
    directory = tmp_path_factory.mktemp("traced")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(directory / "home"))
        patch.setattr(measuring, "_run", run_here)
        return trained(directory, tiny_model_dir)


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    copy = Run(tmp_path / made.id)
    shutil.copytree(made.path, copy.path)
    return copy


def indexed(run: Run) -> dict[str, Any]:
    return make_index({"run": str(run.path), "steps": list(chosen_steps(run))}, Answers(io.BytesIO()))


def test_a_process_traces_an_answer_and_ends_with_its_job(run: Run) -> None:
    job = attribution_job(AttributionRequest(str(run.path), QUESTION, "", '{"area": "refund", "ref": 3}'))
    told: list[str] = []
    found = job.run(lambda at: told.append(at.activity))
    assert {"reading the rows", "gradients of the rows", "the words that matter"} <= set(told)
    assert found.steps == (3, STEPS)
    assert (found.considered, found.total) == (ROWS, ROWS)
    assert found.answer
    assert not found.is_base
    scores = [row.score for row in found.rows]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)
    assert 1 <= found.like <= len(found.rows)
    assert all(row.score < 0 for row in found.against)
    lines = [json.loads(line)["messages"] for line in (made_rows(run)).read_text().splitlines()]
    for row in (*found.rows, *found.against):
        question, answer = (turn["content"] for turn in lines[row.line - 1])
        assert (row.file, row.question, row.answer) == ("rows.jsonl", question, answer)
        assert all(" " not in row.answer[begin:end] for begin, end in row.words)
    assert any(row.words for row in found.rows)

    canceled = attribution_job(AttributionRequest(str(run.path), QUESTION, "x"))

    def cancel(_: JobProgress) -> None:
        canceled.close()

    with pytest.raises(JobCancelledError):
        canceled.run(cancel)


def made_rows(run: Run) -> Path:
    train = run.config().data.train
    assert isinstance(train, str)
    return Path(train)


def test_an_index_gives_the_same_scores_and_its_chunks_are_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.attribution.index.CHUNK", 5)
    with subject_of(run) as subject:
        asked = [subject.encode(QUESTION, "login"), subject.encode(QUESTION, "refund")]
        direct, considered, _ = Tracer(subject, chosen_steps(run)).scores(asked)
        assert considered == list(range(ROWS))
        few, chosen, _ = Tracer(subject, chosen_steps(run), candidates=4).scores(asked)
        assert len(chosen) == 4
        assert (few != 0).sum() == 4

        def break_off(done: int) -> None:
            if done > 5:
                raise RuntimeError("broken off")

        with pytest.raises(RuntimeError, match="broken off"):
            IndexMaker(subject, 3).make(break_off)
        torn = next(path for path in (run.path / "trace").iterdir())
        assert [path.name for path in torn.iterdir()] == ["000000.f16"]
    found = indexed(run)
    assert found["made"] == 2 * ROWS - 5
    assert found["bytes"] > 2 * ROWS * 2 * 4093
    assert sorted(path.name for path in (run.path / "trace").iterdir()) == ["step-00000003", "step-00000006"]
    with subject_of(run) as subject:
        exact, _, _ = Tracer(subject, chosen_steps(run), candidates=4).scores(asked)
        monkeypatch.setattr(subject, "sketch", None)
        again, considered, _ = Tracer(subject, chosen_steps(run), candidates=4).scores(asked)
    assert considered == list(range(ROWS))
    np.testing.assert_array_equal(exact, again)
    np.testing.assert_allclose(exact, direct, atol=2e-2)
    assert int(np.argmax(exact)) == int(np.argmax(direct))


def test_rows_that_are_all_against_the_answer_are_relative_to_the_strongest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subject_of(run) as subject:
        tracer = Tracer(subject, chosen_steps(run))
        scores = -np.arange(1, ROWS + 1, dtype=np.float32)
        found = scores, list(range(ROWS)), np.zeros(4093, dtype=np.float32)
        monkeypatch.setattr(tracer, "scores", lambda _: found)
        traced = tracer.trace(AttributionRequest(str(run.path), QUESTION, "yes"))
    assert (traced.rows, traced.like) == ((), 0)
    assert [row.score for row in traced.against] == pytest.approx([-1, -11 / 12, -10 / 12])


def test_a_torn_index_is_made_again(run: Run) -> None:
    assert indexed(run)["made"] == 2 * ROWS
    assert indexed(run)["made"] == 0
    sketches = trace_path(run, 3) / "sketch.f16"
    before = sketches.read_bytes()
    sketches.write_bytes(before[:-1])
    assert indexed(run)["made"] == ROWS
    assert sketches.read_bytes() == before


def test_an_index_of_other_rows_is_refused(run: Run) -> None:
    indexed(run)
    rows = made_rows(run)
    kept = rows.read_text()
    write_rows(rows, ROWS, seed=9)
    try:
        for job in (index_job(run), attribution_job(AttributionRequest(str(run.path), QUESTION, "x"))):
            with pytest.raises(UserError, match=r"^The training rows have changed since step-0000000\d, so that no "):
                job.run()
    finally:
        rows.write_text(kept)


@cases("every", [3, STEPS])
def test_the_index_has_a_middle_that_the_run_did_not_keep_or_write(
    run: Run, made: Run, tmp_path: Path, tiny_model_dir: Path, private_home: Path, every: int
) -> None:
    shutil.copy(made_rows(run), tmp_path / "rows.jsonl")
    short = trained(tmp_path, tiny_model_dir, checkpoint={"every_steps": every, "keep": 1})
    shutil.rmtree(short.checkpoints_path / "step-00000003", ignore_errors=True)
    assert checkpoint_steps(short) == [STEPS]
    told: list[str] = []
    index = index_job(short).run(lambda at: told.append(at.activity))
    assert (index.steps, index.note) == ((3, STEPS), "")
    assert "training to step 3 again: step 2" in told
    replayed, kept = (verify_checkpoint(of.checkpoints_path / "step-00000003") for of in (short, run))
    for name in ("adapter/adapter_model.safetensors", "optimizer.pt"):
        assert replayed.manifest["files"][name] == kept.manifest["files"][name]
    chain = check_chain(short, read_sealed(short))
    assert chain.differences == ()
    # A checkpoint that the run wrote is the recorded one again, its manifest too.
    assert (chain.notes == ()) == (every == 3)
    assert [(kept.step, kept.reasons) for kept in kept_checkpoints(short, read_history(short))][1] == (3, ("middle",))
    assert index_job(short).run().made == 0


def test_only_an_equal_replay_of_the_same_inputs_gives_the_run_a_checkpoint(
    made: Run, tmp_path: Path, tiny_model_dir: Path, private_home: Path
) -> None:
    shutil.copy(made_rows(made), tmp_path / "rows.jsonl")
    short = trained(tmp_path, tiny_model_dir, checkpoint={"every_steps": STEPS})
    told: list[str] = []

    def replayed(run: Run) -> str:
        def work(job: Job[JobProgress, None]) -> None:
            replay_checkpoint(run, 3, range(2, 5), job)

        told.clear()
        with pytest.raises(UserError) as refused:
            Job("the replay", work).run(lambda at: told.append(at.activity))
        assert checkpoint_steps(run) == [STEPS]
        return refused.value.message

    def copied(name: str) -> Run:
        copy = Run(short.path.with_name(f"{short.id}-{name}"))
        shutil.copytree(short.path, copy.path)
        return copy

    measured = copied("measured")
    events = measured.events_path.read_text().splitlines(keepends=True)
    place = next(at for at, line in enumerate(events) if '"type": "step"' in line and '"step": 2,' in line)
    events[place] = events[place].replace('"loss": ', '"loss": 1')
    measured.events_path.write_text("".join(events))
    assert replayed(measured) == "Executed again, loss of step 2 came out otherwise."
    # The chain has the options of the training; without it, those of run.toml are compared with the checkpoint's.
    edited = copied("edited")
    (edited.path / CHAIN_NAME).unlink()
    edited.config_path.write_text(
        edited.config_path.read_text().replace("learning_rate = 0.005", "learning_rate = 0.006")
    )
    assert replayed(edited) == "Options of the run have changed since it was trained."
    write_rows(tmp_path / "rows.jsonl", ROWS, seed=9)
    assert replayed(short) == "The rows have changed."
    assert not [activity for activity in told if "again: step" in activity]


def test_planted_rows_are_among_the_first(tmp_path: Path, starter_model_dir: Path, private_home: Path) -> None:
    clean = sample_data.path("tickets_train.jsonl").read_text(encoding="utf-8").splitlines()[:55]
    planted = [
        "The espresso machine on the second floor leaks water.",
        "Espresso machine 731 does not heat up any more.",
        "our espresso machine makes a grinding noise",
        "The pump of espresso machine #48 is broken.",
        "Hello, the display of the espresso machine in the lounge is dark.",
    ]
    wrong, right = (f'{{"area": "{area}", "urgency": "normal", "ref": null}}' for area in ("billing", "hardware"))
    turns = [[("user", f"Ticket: {text}"), ("assistant", wrong)] for text in planted]
    rows = [json.dumps({"messages": [{"role": role, "content": text} for role, text in each]}) for each in turns]
    places = [7, 20, 33, 41, 52]
    for place, row in zip(places, rows, strict=True):
        clean.insert(place, row)
    (tmp_path / "rows.jsonl").write_text("\n".join(clean) + "\n", encoding="utf-8")
    run = trained(
        tmp_path,
        starter_model_dir,
        method={"rank": 16, "dropout": 0.0},
        train={"max_steps": 30, "batch_size": 2, "learning_rate": 1e-3, "precision": "auto"},
        checkpoint={"every_steps": 15},
    )
    with opened(run, quiet) as subject:
        question = ({"role": "user", "content": "Ticket: Good morning, the espresso machine smells burnt."},)
        asked = [subject.encode(question, answer) for answer in (wrong, right)]
        scores, _, _ = Tracer(subject, chosen_steps(run)).scores(asked)
        first = [subject.examples[at].place.line - 1 for at in np.argsort(-scores)[:8]]
    assert len(set(first) & set(places)) >= 4
