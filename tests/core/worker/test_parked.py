"""A run that waits without its device."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.hardware.claims import Claim
from core.helper import finding_core
from core.runs.control.protocol import Request
from core.runs.record.events import StoppedEvent
from core.runs.record.state import PARKED_BY_HAND
from core.runs.record.store import create_run
from core.worker import parked
from core.worker.parked import ParkedRun, parked_run, watch_claims
from core.worker.process.control import Command, Controls, ParkRequested, StopRequested
from core.worker.process.recorder import Recorder
from core.worker.supervise.verdict import EXIT_LOST
from tests.waiting import wait_for

GAME = Claim("another program", "chess is running")


def config(**parking: Any) -> Config:
    values = {"data": {"train": "rows.jsonl"}, "parking": parking, "hardware": {"device": "cpu"}}
    return Config.model_validate(values)


@pytest.fixture
def recorder(private_home: object) -> Iterator[Recorder]:
    made = Recorder(create_run(config(), "parked"), parked="chess is running")
    yield made
    made.close("stopped", "the test is over", StoppedEvent(reason="", step=0))


class Waiting:
    """A parked run in a thread, with claims and room as the test sets them."""

    def __init__(self, recorder: Recorder, cause: str, **parking: Any) -> None:
        self.claim: Claim | None = GAME
        self.free = 10
        self.controls = Controls()
        self.answers: list[dict[str, Any]] = []
        self.result: str | Exception | None = None
        settings = config(**{"calm": 0, **parking})
        self.run = ParkedRun(
            settings, recorder, self.controls, cause, 5, free=lambda: self.free, claim=lambda: self.claim
        )
        self.thread = threading.Thread(target=self._wait)
        self.thread.start()

    def _wait(self) -> None:
        try:
            self.result = self.run.wait()
        except StopRequested as request:
            self.result = request

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command; its answer."""
        known = len(self.answers)
        self.controls.put(Command(Request("1", command), self.answers.append))
        wait_for(lambda: len(self.answers) > known, 20, f"the answer to {command}")
        return self.answers[-1]

    def ended(self) -> str | Exception | None:
        """Result of the wait."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.result


def test_a_parked_run_continues_once_the_claim_is_gone_and_memory_is_free(recorder: Recorder) -> None:
    waiting = Waiting(recorder, GAME.cause)
    assert recorder.state.state == "paused"
    waiting.free, waiting.claim = 4, None
    wait_for(lambda: "4 B are free" in recorder.state.parked, 20, "the reason")
    assert waiting.result is None
    assert "The run cannot have its device back: the run needs 5" in waiting.ask("resume")["error"]
    waiting.free = 5
    assert waiting.ended() == "the parking rules"


def test_parked_by_hand_it_waits_for_somebody_whose_wish_a_claim_outweighs(recorder: Recorder) -> None:
    waiting = Waiting(recorder, GAME.cause)
    assert waiting.ask("park")["state"] == "parked"
    wait_for(lambda: recorder.state.parked == PARKED_BY_HAND, 20, "the park to be heard")
    assert waiting.ask("resume")["error"] == "The run cannot have its device back: chess is running."
    waiting.claim = None
    refused = waiting.ask("generate")
    assert refused["error"] == "The run is parked: its model is not in memory."
    assert (refused["hint"], refused["action"]) == ("Let it go on first.", "resume")
    assert waiting.ask("pause")["ok"] is True
    assert waiting.result is None
    assert waiting.ask("resume")["state"] == "training"
    assert waiting.ended() == "socket"


def test_the_calm_is_waited_for(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parked, "LOOK_SECONDS", 0.05)
    waiting = Waiting(recorder, GAME.cause, calm=3600)
    waiting.claim = None
    wait_for(lambda: recorder.state.parked == "3600 s without a claim are waited for", 20, "the calm")
    waiting.claim = GAME
    wait_for(lambda: recorder.state.parked == GAME.cause, 20, "the claim")
    waiting.controls.request_stop("SIGTERM")
    ended = waiting.ended()
    assert isinstance(ended, StopRequested)
    assert (ended.sender, ended.now) == ("SIGTERM", False)


def test_the_watch_asks_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    controls = Controls()
    monkeypatch.setattr(parked, "find_claim", lambda *_: GAME)
    watch_claims(config(programs="chess").parking, controls, lambda: None)
    wait_for(lambda: controls.is_leaving, 20, "the device to be claimed")
    assert controls.pending == ("park",)
    with pytest.raises(ParkRequested) as caught:
        controls.check_stop()
    assert (caught.value.sender, caught.value.cause) == (GAME.sender, GAME.cause)
    controls.drop_park()
    controls.check_stop()


def test_free_memory_is_that_of_the_run_s_device(recorder: Recorder) -> None:
    waiting = parked_run(recorder.run, config(), recorder, Controls(), PARKED_BY_HAND, 1)
    free = wait_for(waiting.free, 20, "a reading")
    assert free is not None
    assert 0 < free < 1 << 50


@pytest.mark.parametrize(("others", "code"), [("1", 0), ("2", EXIT_LOST)])
def test_one_of_several_from_another_program_does_not_go_on_alone(private_home: Path, others: str, code: int) -> None:
    """The others have left when the device was given back."""
    program = (
        "import sys, core.worker.__main__ as main\n"
        "main._worker = lambda *_: ['--resume']\n"
        "main._become = lambda *_: sys.exit(0)\n"
        "sys.exit(main.main([sys.argv[1], '--parked', 'on request']))\n"
    )
    run = create_run(config(), "parked")
    place = {"RANK": "0", "WORLD_SIZE": others, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-c", program, str(run.path)]
    ended = subprocess.run(command, env=finding_core(os.environ) | place, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert ("to be started anew" in ended.stderr) == (code == EXIT_LOST)
