"""Proofs by retraining: what is kept, and what is said about their runs, whatever became of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import proof as module
from core.analysis.problems import FileLine
from core.config.schema import Config
from core.errors import UserError
from core.evaluation.prompt_set import PromptItem
from core.proof import Proof, ProofView, begin_proof, list_proofs, view_proof
from core.queue import store
from core.queue.entry import QueueEntry
from core.runs.catalog.removal import remove_run
from core.runs.catalog.rows import PROOFS, RunFacts
from core.runs.record.events import FinishedEvent, SampleEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.core.runs.helpers import live_state, write_events

QUESTIONS = tuple(PromptItem(text, ({"role": "user", "content": text},)) for text in ("asked", "one", "two"))


def config(**sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {"model": {"base": "/models/base"}, "data": {"train": "/data/rows.jsonl"}}
    return Config.model_validate(
        {name: values.get(name, {}) | section for name, section in (values | sections).items()}
    )


@pytest.fixture
def run(private_home: Path) -> Run:
    """A finished run."""
    made = create_run(config(), "tickets")
    RunState(state="finished").write(made.state_path)
    return made


def queued(run: Run, **changes: Any) -> Proof:
    """A proof of a run with its entries in the queue."""
    left_out = ("rows.jsonl:3-4",), 2, ("rows.jsonl:8", "rows.jsonl:1"), ()
    proof = Proof("p1", 1.0, *left_out, QUESTIONS, ("A", "B", "C"), (0, 0))
    return module._queue(run, run.config(), replace(proof, **changes))


def began(number: int) -> Run:
    """The run of an entry, as the runner of the queue makes it."""
    entry = store.read_queue().entry(number)
    made = create_run(store.read_entry_config(entry), entry.name)
    live_state().write(made.state_path)
    store.change(lambda queue: queue.with_entry(replace(queue.entry(number), state="running", run=made.id)))
    return made


def ended(made: Run, number: int, *answers: str, step: int = 8, state: str = "finished") -> None:
    """The end of a run, with its answers after a step, behind those of the untouched model."""
    before = [SampleEvent(step=0, prompt=item.question, text="base", source="base") for item in QUESTIONS]
    after = [
        SampleEvent(step=step, prompt=item.question, text=text, source=f"step-{step}")
        for item, text in zip(QUESTIONS, answers, strict=False)
    ]
    write_events(made, *before, *after, FinishedEvent(reason="all steps done", step=step))
    RunState(state=state).write(made.state_path)
    store.change(lambda queue: queue.with_entry(replace(queue.entry(number), state="done", reason="all steps done")))


def test_the_runs_of_a_proof_have_no_index(private_home: Path) -> None:
    made = create_run(config(checkpoint={"index": True}), "tickets")
    queued(made)
    assert [store.read_entry_config(entry).checkpoint.index for entry in store.read_queue().entries] == [False, False]


def test_a_proof_is_followed_from_the_queue_to_the_answers_side_by_side(run: Run) -> None:
    proof = queued(run)
    assert list_proofs(run) == [proof]
    waiting = view_proof(run, proof)
    assert (waiting.state, waiting.compared) == ("queued", [])
    assert waiting.summary == (
        "without 2 rows: entry 1 of the queue is waiting; without 2 random rows: entry 2 of the queue is waiting."
    )
    first = began(1)
    assert view_proof(run, proof).state == "running"
    ended(first, 1, "a", "B", "c")
    assert view_proof(run, proof).state == "running", "the other one waits"
    second = began(2)
    ended(second, 2, " A", "B", "other")
    done = view_proof(run, proof)
    assert (done.state, done.without.run, done.control.run) == ("done", first.id, second.id)
    assert [(row.is_changed, row.is_noisy) for row in done.compared] == [(True, False), (False, False), (True, True)]
    assert done.summary == (
        "Without these 2 rows the answer is another. 2 of 3 answers changed; without 2 random rows 1: that much is the "
        "noise of any retraining."
    )
    # The list of runs says where they come from.
    assert RunFacts.read(first).origin == f"for a proof of {run.id.partition('-')[2]}"


def test_the_runs_are_found_after_the_queue_was_cleared_or_begun_anew(run: Run) -> None:
    proof = queued(run)
    for number, answers in ((1, "abc"), (2, "ABC")):
        ended(began(number), number, *answers)
    before = view_proof(run, proof)
    assert before.state == "done"
    store.clear()
    assert view_proof(run, proof) == before
    store.queue_path().unlink()
    store.add([(QueueEntry(id=1, name=name, added=1.0), config()) for name in ("else", "more")])
    assert view_proof(run, proof) == before, "another queue has the same numbers"


def test_a_run_that_is_gone_or_ended_early_is_said_and_proves_nothing(run: Run) -> None:
    proof = queued(run)
    first, second = began(1), began(2)
    ended(first, 1, "a", "B", "c")
    remove_run(first)
    ended(second, 2, state="stopped")
    view = view_proof(run, proof)
    assert (view.state, view.compared) == ("failed", [])
    assert view.without.words == "its run was removed"
    assert "stopped" in view.control.words
    store.change(lambda queue: replace(queue, entries=()))
    assert view_proof(run, proof).without.words == "it is no longer in the queue"


def test_answers_are_those_of_the_result_and_not_of_a_later_step(run: Run) -> None:
    proof = queued(run)
    first, second = began(1), began(2)
    ended(second, 2, "A", "B", "C")
    samples = [SampleEvent(step=4, prompt="q", text=text, source="step-4") for text in "xyz"]
    later = [SampleEvent(step=8, prompt="q", text="late", source="step-8") for _ in "xyz"]
    reason = "all steps done; the adapter is that of step 4, the best one"
    write_events(first, *samples, *later, FinishedEvent(reason=reason, step=8, best=4, adapter="adapter"))
    RunState(state="finished").write(first.state_path)
    assert view_proof(run, proof).without.answers == ("x", "y", "z")


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("right", "right"), "Without these 2 rows the answer is the one wanted, and without random rows too."),
        (("right", "C"), "Without these 2 rows the answer is the one wanted, and without random rows another."),
        (("B", "right"), "Without these 2 rows the answer is another, and without random rows the one wanted."),
        (("B", "C"), "Without these 2 rows the answer is another, and without random rows too."),
        (("right", "A"), "Without these 2 rows the answer is the one wanted. 1 of 1 answer changed"),
        (("A", "A"), "The answer stays the same without these 2 rows. 0 of 1 answer changed"),
    ],
)
def test_the_summary_says_what_the_answer_became(run: Run, answers: tuple[str, str], said: str) -> None:
    asked = replace(QUESTIONS[0], expected="right")
    proof = queued(run, questions=(asked,), answers=("A",))
    for number, answer in enumerate(answers, 1):
        ended(began(number), number, answer)
    assert view_proof(run, proof).summary.startswith(said)


def test_torn_and_foreign_files_are_passed_over(run: Run) -> None:
    proof = queued(run)
    folder = run.path / PROOFS
    whole = (folder / "p1.json").read_text()
    (folder / "p2.json").write_text(whole[: len(whole) // 2])
    (folder / "p3.json").write_text('{"version": 1, "questions": [], "answers": []}')
    (folder / "p4.json").write_text(whole.replace('"version": 1', '"version": 99'))
    (folder / "p5.json").write_text("[1]")
    assert list_proofs(run) == [proof]
    assert isinstance(view_proof(run, proof), ProofView)


def test_a_queue_that_takes_no_runs_leaves_no_proof(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise UserError("The queue is full.")

    monkeypatch.setattr(store, "add", refuse)
    with pytest.raises(UserError, match="full"):
        queued(run)
    assert list((run.path / PROOFS).iterdir()) == []


def test_only_an_ended_run_and_named_rows_are_taken(run: Run) -> None:
    asked = [{"role": "user", "content": "why?"}]
    with pytest.raises(UserError, match="No rows are named"):
        begin_proof(run, [], asked)
    live_state().write(run.state_path)
    with pytest.raises(UserError, match="only an ended run"):
        begin_proof(run, [FileLine("rows.jsonl", 3)], asked)
