"""Commands to a live worker over its real socket, signals, and the governor's rests and pauses."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.runs.control.client import ControlClient, WithdrawnError
from core.runs.record.events import CheckpointEvent, ControlEvent, EvalEvent, GovernorEvent, PhaseEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import newest_valid
from tests.core.hardware.conftest import fake_driver as fake_driver
from tests.faults.injections import RELEASE_VARIABLE
from tests.forking import FAULT_VARIABLE
from tests.waiting import wait_for

from . import workers as e2e
from .workers import Workers

QUESTION = [{"role": "user", "content": "ticket login printer"}]


def ask(run: Run, **args: Any) -> tuple[list[str], dict[str, Any]]:
    """Have something generated: the pieces, and the answer."""
    *pieces, answer = ControlClient(run).generate({"messages": QUESTION, "max_new_tokens": 12, **args})
    return [piece["token"] for piece in pieces], answer


def pause_at_start(run: Run) -> None:
    """Have a run wait before its first step."""
    e2e.wait_until_listening(run)
    assert ControlClient(run).request("ping")["step"] == 0
    assert ControlClient(run).request("pause") == {"state": "paused", "step": 0}
    e2e.wait_until_state(run, "paused")


@pytest.mark.long
def test_nothing_that_is_asked_of_a_run_changes_its_result(workers: Workers, reference: Run) -> None:
    run = workers.start("disturbed", e2e.held_at(0, 3))
    pause_at_start(run)
    with pytest.raises(UserError, match="token"):
        list(ControlClient(run).generate({"messages": [{"role": "user", "content": "word " * 2000}]}))
    pieces, answer = ask(run, source="base", temperature=0.9, seed=1)
    assert answer["source"] == "base"
    assert "".join(pieces) == answer["text"] != ""
    assert 0 < answer["tokens"] <= 12
    assert answer["first_token_seconds"] > 0
    assert ask(run)[1]["source"] == "step-0"

    endless = {"messages": QUESTION, "max_new_tokens": 400, "temperature": 1.0, "seed": 1}
    abandoned = ControlClient(run).generate(endless)
    next(abandoned)
    abandoned.close()
    with pytest.raises(UserError, match="No step is done"):
        ControlClient(run).request("checkpoint")
    assert ControlClient(run).request("resume") == {"state": "training", "step": 0}

    e2e.wait_until_step(run, 3)
    tuned = ask(run, temperature=0.7, top_p=0.9)[1]["source"]
    assert ask(run, source="base")[1]["source"] == "base"
    assert 3 <= int(tuned.removeprefix("step-")) < e2e.STEPS
    saved = ControlClient(run).request("checkpoint")["step"]
    stopped_at = ControlClient(run).request("pause")["step"]
    ask(run, max_new_tokens=100)
    assert e2e.wait_until_state(run, "paused").step == stopped_at
    assert ControlClient(run).request("ping")["step"] == stopped_at
    assert [event.step for event in e2e.steps(run)][-1] == stopped_at
    ControlClient(run).request("resume")
    e2e.finish(run)

    told = e2e.steps(run)
    assert [event.step for event in told if event.paused_seconds > 0] == [1, stopped_at + 1]
    assert saved in [event.step for event in e2e.only(CheckpointEvent, run)]
    results = [event.result for event in e2e.only(ControlEvent, run) if event.command == "generate"]
    assert any("cancelled" in result for result in results)
    assert [event.loss for event in told] == e2e.losses(reference)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    assert "Traceback" not in e2e.log(run)


def test_the_learning_rate_can_be_set_and_the_change_outlives_a_stop(workers: Workers, reference: Run) -> None:
    run = workers.start("set", e2e.held_at(0, 6))
    pause_at_start(run)
    client = ControlClient(run)
    for args in ({}, {"train.learning_rate": [1e-3]}, {"train.learning_rate": 1e-3, "checkpoint.every_steps": -1}):
        with pytest.raises(UserError):
            client.request("set", **args)
    client.request("set", **{"train.learning_rate": 1e-3, "checkpoint.every_steps": 1000})
    client.request("set", **{"train.learning_rate": "2e-3"})
    client.request("resume")
    e2e.wait_until_step(run, 6)
    answer = client.generate({"messages": QUESTION, "max_new_tokens": 400})
    next(answer)
    assert client.request("stop")["state"] == "stopping"
    *_, last = answer
    assert last["finish"] == "cancelled"
    assert e2e.exit_code(run) == 3

    end = e2e.ending(run)
    assert (end.type, end.reason) == ("stopped", f"stopped on request after step {end.step}")
    assert f"localtune-tui continue {run.id}" in end.hint
    assert [event.step for event in e2e.only(CheckpointEvent, run)] == [end.step]
    assert [event.command for event in e2e.only(ControlEvent, run)].count("stop") == 1
    assert run.state().state == "stopped"
    found, damaged = newest_valid(run.checkpoints_path)
    assert found is not None
    assert (found.step, damaged) == (end.step, [])
    assert end.adapter == str(found.adapter_path.relative_to(run.path))
    with pytest.raises(UserError, match="was stopped; only a live run takes commands"):
        client.request("ping")

    workers.complete(run)
    rates = [event.lr for event in e2e.steps(run)]
    assert rates == pytest.approx([event.lr * 2e-3 / 5e-3 for event in e2e.steps(reference)])
    assert "resumed" in e2e.notice_codes(run)
    assert read_history(run).settings == {"train.learning_rate": 2e-3, "checkpoint.every_steps": 1000}


class Asked:
    """A request in a thread of its own, as it is answered only when the step is over."""

    def __init__(self, run: Run, command: str) -> None:
        self.answer: dict[str, Any] | UserError | None = None
        self._run, self._command = run, command
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.answer = ControlClient(self._run).request(self._command)
        except UserError as error:
            self.answer = error

    def result(self) -> dict[str, Any] | UserError | None:
        self._thread.join(e2e.PATIENCE)
        return self.answer


def wait_until_within_step(run: Run, step: int) -> None:
    """Wait for some micro-batches of a step to be done, by its state."""

    def is_within() -> bool:
        progress = run.state().progress
        return run.state().step == step - 1 and progress is not None and progress.what == "micro_batches"

    wait_for(is_within, e2e.PATIENCE, f"the middle of step {step}")


def wait_until_pending(run: Run, *names: str) -> None:
    """Wait for these requests, in whatever order they came, and no other to be pending."""
    wait_for(lambda: sorted(run.state().pending) == sorted(names), e2e.PATIENCE, f"{names or 'nothing'} to be pending")


def test_what_is_asked_in_the_middle_of_a_step_is_reported_at_once_and_can_be_taken_back(workers: Workers) -> None:
    release = workers.directory / "release"
    waiting = {FAULT_VARIABLE: "wait_within:1,2,3", RELEASE_VARIABLE: str(release)}
    rows = {"max_steps": 3, "batch_size": 4, "micro_batch_size": 1}
    run = workers.start("heard", waiting, train=rows, eval={"every_steps": None, "exact_match": False})
    client = ControlClient(run)
    wait_until_within_step(run, 1)
    for command in ("pause", "checkpoint", "stop"):
        asked = Asked(run, command)
        wait_until_pending(run, command)
        assert client.request("withdraw", what=command) == {"withdrawn": [command]}
        wait_until_pending(run)
        assert isinstance(asked.result(), WithdrawnError)
    assert client.request("withdraw", what="pause") == {"withdrawn": []}
    with pytest.raises(UserError, match="generate cannot be taken back"):
        client.request("withdraw", what="generate")
    assert (run.state().step, run.state().state) == (0, "training"), "the step waits until all of it was asked"
    Path(f"{release}-1").touch()

    wait_until_within_step(run, 2)
    asks = [Asked(run, "pause"), Asked(run, "pause"), Asked(run, "checkpoint"), Asked(run, "checkpoint")]
    wait_until_pending(run, "pause", "checkpoint")
    assert run.state().step == 1
    Path(f"{release}-2").touch()
    assert [ask.result() for ask in asks] == [{"state": "paused", "step": 2}] * 2 + [{"step": 2}] * 2
    assert e2e.wait_until_state(run, "paused").pending == ()
    client.request("resume")
    wait_until_within_step(run, 3)
    e2e.signal_worker(run, signal.SIGTERM)
    wait_until_pending(run, "stop")
    with pytest.raises(UserError, match="asked for by SIGTERM, and cannot be taken back"):
        client.request("withdraw", what="stop")
    Path(f"{release}-3").touch()
    assert e2e.exit_code(run) == 3

    told = [(event.command, event.result) for event in e2e.only(ControlEvent, run)]
    assert told[:3] == [("withdraw", name) for name in ("pause", "checkpoint", "stop")]
    # Asked at once by four threads: nobody decides which comes first.
    assert sorted(told[3:5]) == [("checkpoint", "ok"), ("pause", "ok")]
    assert told[5:] == [("resume", "ok"), ("stop", "ok")]
    assert run.state().pending == ()
    assert run.state().progress is None


#: Minutes of measuring before the first step, where nobody ends them.
MEASURED: dict[str, Any] = {
    "eval": {"baseline": True, "exact_match": True, "max_rows": 400, "every_steps": None},
    "chat": {"max_new_tokens": 64},
}


def test_the_first_evaluation_lets_a_question_in_and_can_be_skipped(workers: Workers, reference: Run) -> None:
    workers.eval_data = e2e.write_rows(workers.directory / "many.jsonl", 400, seed=3)
    run = workers.start("skipped", e2e.held_at(2, 3), **MEASURED)
    e2e.wait_until_evaluating(run)
    with ControlClient(run) as client:
        assert ask(run, max_new_tokens=4)[1]["source"] == "step-0"
        assert not e2e.only(EvalEvent, run), "the measurement was over already"
        assert client.request("skip_evaluation") == {"step": 0}
        e2e.wait_until_step(run, 2)
        with pytest.raises(UserError, match="no evaluation to skip"):
            client.request("skip_evaluation")
        client.request("stop")
    assert e2e.exit_code(run) == 3
    assert not e2e.only(EvalEvent, run)
    assert "evaluation before the first step skipped on request" in [line.text for line in read_history(run).log]
    assert e2e.losses(run) == e2e.losses(reference)[: len(e2e.steps(run))]


def test_sighup_means_nothing_and_sigterm_stops_after_a_checkpoint(workers: Workers, reference: Run) -> None:
    run = workers.start("term", e2e.held_at(4))
    e2e.wait_until_step(run, 2)
    e2e.signal_worker(run, signal.SIGHUP)
    e2e.stop_at(run, 4)
    state, end = run.state(), e2e.ending(run)
    assert (state.state, end.type) == ("stopped", "stopped")
    assert end.reason == state.reason == f"stopped by SIGTERM after step {end.step}"
    assert end.step == e2e.steps(run)[-1].step == e2e.only(CheckpointEvent, run)[-1].step
    assert [(event.command, event.sender) for event in e2e.only(ControlEvent, run)] == [("stop", "SIGTERM")]
    assert not run.socket_path.exists()
    workers.complete(run)
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)


def test_sigint_stops_a_paused_run_too(workers: Workers) -> None:
    run = workers.held("int", 1)
    step = ControlClient(run).request("pause")["step"]
    e2e.wait_until_state(run, "paused")
    e2e.signal_worker(run, signal.SIGINT)
    assert e2e.exit_code(run) == 3
    assert e2e.ending(run).reason == f"stopped by SIGINT after step {step}"
    assert e2e.only(CheckpointEvent, run)[-1].step == step


def test_a_stop_before_training_leaves_nothing_half_written(workers: Workers) -> None:
    workers.eval_data = e2e.write_rows(workers.directory / "many.jsonl", 400, seed=3)
    # Held before its first step at the latest, should the signal come late.
    runs = {
        phase: workers.start(phase.replace("_", "-"), e2e.held_at(0), **MEASURED)
        for phase in ("importing", "preparing_data", "evaluating")
    }
    for phase, run in runs.items():

        def entered(run: Run = run, phase: str = phase) -> bool:
            return any(event.name == phase for event in e2e.only(PhaseEvent, run))

        wait_for(entered, e2e.PATIENCE, phase)
        e2e.signal_worker(run, signal.SIGTERM)
    for run in runs.values():
        assert e2e.exit_code(run) == 3, e2e.log(run)
        end = e2e.ending(run)
        assert (end.type, end.step, end.adapter) == ("stopped", 0, None)
        assert run.state().state == "stopped"
        assert not e2e.only(EvalEvent, run)
        assert not run.adapter_path.exists()
        assert not run.checkpoints_path.exists()
        assert "Traceback" not in e2e.log(run)
        with pytest.raises(UserError, match="no complete checkpoint"):
            workers.resume(run)


#: A worker that rests half of the time from the beginning, and writes down how long it has rested.
RESTING = """
import atexit, os
from pathlib import Path
from core.worker.process.governor import Throttle
begin = Throttle.__init__
def resting(self, controls, *args, **options):
    begin(self, controls, 0.5, *args, **options)
    atexit.register(lambda: Path(os.environ["TEST_RESTED"]).write_text(str(self.rested_seconds)))
Throttle.__init__ = resting
"""


@pytest.mark.long
def test_rests_change_no_bit_of_what_is_trained(workers: Workers, reference: Run) -> None:
    rested = workers.directory / "rested"
    run = workers.finished("half", e2e.hooked(workers.directory / "half", RESTING, TEST_RESTED=str(rested)))
    assert float(rested.read_text()) > 0.3 * sum(event.seconds for event in e2e.steps(run)), "it did rest"
    assert e2e.adapter_bytes(run) == e2e.adapter_bytes(reference)
    assert e2e.losses(run) == e2e.losses(reference)


def test_a_pause_of_the_governor_and_one_of_the_user_end_apart(workers: Workers) -> None:
    run = workers.held("governed", 2, train={"max_steps": 10})
    with ControlClient(run) as client:
        client.request("set", **{"hardware.disk_free_min_gb": 1_000_000})
        state = e2e.wait_until_state(run, "paused")
        assert state.reason.startswith("room on the disk is at ")
        assert state.reason.endswith("until 1.1e6 GB")
        with pytest.raises(UserError, match="The governor pauses the run: room on the disk") as refused:
            client.request("resume")
        assert refused.value.hint.endswith(f"sooner with another limit: 'localtune-tui set {run.id}'.")
        client.request("pause")
        client.request("set", **{"hardware.disk_free_min_gb": None})
        wait_for(lambda: not run.state().reason, e2e.PATIENCE, "the governor's pause to end")
        assert run.state().state == "paused", "that of the user is on"
        for told in ({"night.deadline": "25:00"}, {"hardware.temperature_limit_c": 80}):
            with pytest.raises(UserError):
                client.request("set", **told)
        client.request("set", **{"night.deadline": "07:00"})
        client.request("resume")
    e2e.finish(run)
    actions = [event.action for event in e2e.only(GovernorEvent, run)]
    assert actions == ["pause", "resume"]
    history = read_history(run)
    assert history.settings == {"hardware.disk_free_min_gb": None, "night.deadline": "07:00"}
    assert [mark.kind for mark in history.marks].count("governor") == 2
    assert history.paused_seconds > 0
