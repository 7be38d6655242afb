"""Processes that work together: the first one's word counts, and whoever fails is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.jobs.process import Answers
from core.worker.audit.processes import Message, work_together
from core.worker.distributed.rendezvous import RankLostError
from tests.cases import cases
from tests.waiting import wait_for

#: As good as for ever.
LONG = 1000.0
Part = Callable[[Answers], object]


def run(*parts: Part) -> tuple[Message | str, list[Message]]:
    """Let each process do its part; returns the result and all messages."""
    heard: list[Message] = []
    return work_together(len(parts), lambda rank, answers: parts[rank](answers), heard.append), heard


def wait(_: Answers) -> None:
    time.sleep(LONG)


def lose(_: Answers) -> None:
    raise RankLostError("RuntimeError: Connection closed by peer.")


def end_by(number: signal.Signals) -> Part:
    return lambda _: os.kill(os.getpid(), number)


def fail(answers: Answers) -> None:
    answers.send({"error": "There is no room."})
    raise OSError("no room")


def test_the_others_end_with_the_first_one_whose_last_word_is_the_result(tmp_path: Path) -> None:
    def other(answers: Answers) -> None:
        (tmp_path / str(os.getpid())).touch()
        wait(answers)

    def first(answers: Answers) -> None:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2, 60.0, "the others to begin")
        answers.progress("step 1", 1, 2)
        answers.send({"outcome": "equal", "text": "x" * 200_000})

    result, heard = run(first, other, other)
    assert result == {"outcome": "equal", "text": "x" * 200_000}
    assert heard == [{"progress": {"activity": "step 1", "done": 1, "total": 2}}, result]
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


def test_processes_begin_and_end_at_the_same_time() -> None:
    result, _ = run(lambda answers: answers.send({"outcome": "differs"}), lambda _: None)
    assert result == {"outcome": "differs"}


@cases(
    ("parts", "reason"),
    [
        ((end_by(signal.SIGKILL),), "The process that executed it was ended by SIGKILL."),
        ((end_by(signal.SIGKILL), lose), "The process that executed it was ended by SIGKILL."),
        ((fail, lose), "The process that executed it ended with code 1."),
        ((lose, end_by(signal.SIGKILL)), "Process 1 of those that executed it was ended by SIGKILL."),
        ((lose, lose, fail), "Process 2 of those that executed it has failed: There is no room."),
        (
            (lose, wait),
            "The processes that executed it lost each other: RuntimeError: Connection closed by peer.",
        ),
    ],
    ids=["alone", "the first", "an error of the first", "another", "an error of another", "nobody"],
)
def test_who_was_the_reason_is_reported(parts: tuple[Part, ...], reason: str) -> None:
    assert run(*parts)[0] == reason


def test_a_first_one_that_does_not_notice_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.audit.processes._SETTLE_SECONDS", 0.1)
    assert run(wait, end_by(signal.SIGTERM))[0] == "Process 1 of those that executed it was ended by SIGTERM."
