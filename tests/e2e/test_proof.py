"""A proof by retraining with real runs from the queue."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from core.analysis.problems import FileLine
from core.data.exclusion import Exclusion
from core.errors import UserError
from core.proof import begin_proof, list_proofs, view_proof
from core.queue import store
from core.queue.status import read_status, start_runner
from core.runs.record.events import DataEvent
from core.runs.record.store import Run
from tests.waiting import wait_for

from . import workers as e2e
from .workers import PATIENCE, Workers


@pytest.fixture
def _home(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCALTUNE_HOME", str(workers.home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    if (status := read_status()) is not None:
        os.kill(status.pid, signal.SIGKILL)


@pytest.mark.usefixtures("_home")
def test_the_runs_of_a_proof_differ_in_their_rows_and_answer_the_questions(workers: Workers) -> None:
    # The tiny model learns the answer that most rows have: low, unless the planted rows are gone.
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"ticket {n}"}, {"role": "assistant", "content": answer}]})
        for n, answer in enumerate(["low"] * 24 + ["high"] * 16)
    ]
    workers.train_data.write_text("\n".join(lines))
    config = workers.config(
        method={"name": "lora", "dropout": 0.0},
        train={"max_steps": 24, "learning_rate": 1e-2, "precision": "fp32"},
        eval={"every_steps": None, "exact_match": False},
        checkpoint={"every_steps": None},
    )
    workers.measure(config)
    run = workers.finished("words", **config.model_dump(include={"method", "train", "eval", "checkpoint"}))
    asked = [{"role": "user", "content": "ticket"}]
    planted = [FileLine("train.jsonl", line) for line in range(1, 17)]

    with pytest.raises(UserError, match=r"names train\.jsonl:99, and data\.train has no such row"):
        begin_proof(run, [FileLine("train.jsonl", 99)], asked, ask=lambda _: [])
    assert store.read_queue().entries == ()
    proof = begin_proof(run, planted, asked, wanted="high")
    assert (proof.rows, proof.count, proof.answers[0]) == (("train.jsonl:1-16",), 16, "low")
    assert len(proof.questions) == 6, "the question, and all five held-out rows"
    assert view_proof(run, proof).state == "queued"

    start_runner(60)
    wait_for(lambda: view_proof(run, proof).state in ("done", "failed"), PATIENCE, "the end of both runs")
    (kept,) = list_proofs(run)
    view = view_proof(run, kept)
    assert view.state == "done", view.summary
    without, control = (Run(run.path.with_name(one.run)) for one in (view.without, view.control))
    for made, left_out in ((without, proof.rows), (control, proof.control)):
        data = e2e.only(DataEvent, made)[0]
        assert (data.used, data.dropped) == (24, {"excluded": 16})
        assert made.config().data.exclude == list(left_out)
        ours, theirs = made.config().model_dump(), run.config().model_dump()
        assert {f"{part}.{key}" for part in ours for key in ours[part] if ours[part][key] != theirs[part][key]} == {
            "data.exclude",
            "eval.prompts",
        }
    chosen = Exclusion(proof.control)
    assert not any(chosen.names("train.jsonl", line) for _, line in planted), "the control has others"
    first = view.compared[0]
    assert (first.original, first.without, first.control) == ("low", "high", "low")
    assert view.summary.startswith("Without these 16 rows the answer is the one wanted. ")
    workers.train_data.write_text("\n".join(reversed(lines)))
    with pytest.raises(UserError, match="has changed since the run"):
        begin_proof(run, planted, asked)
