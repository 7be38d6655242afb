from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from core.hardware.sampler import Watched
from tests.waiting import wait_for


def test_an_answer_that_does_not_come_is_pending_and_asked_for_once() -> None:
    release, asked = threading.Event(), []
    answered = threading.Event()

    def make() -> Callable[[], int]:
        def read() -> int:
            asked.append(1)
            release.wait(60)
            return len(asked)

        return read

    watched = Watched(make, "test", answered.set)
    assert not asked
    for _ in range(3):
        watched.ask()
    wait_for(lambda: asked, 10, "the question")
    assert (watched.is_pending, watched.answer, watched.moment) == (True, None, None)
    release.set()
    assert answered.wait(60)
    assert (watched.is_pending, watched.answer, len(asked)) == (False, 1, 1)
    watched.close()
    watched.ask()
    assert len(asked) == 1


def test_a_failure_keeps_the_answer_before() -> None:
    answers: Iterator[Callable[[], int]] = iter([lambda: 1, _fail, lambda: 3])

    def read() -> int:
        return next(answers)()

    watched = Watched(lambda: read, "test", lambda: None)

    def ask() -> int | None:
        watched.ask()
        wait_for(lambda: not watched.is_pending, 10, "the answer")
        return watched.answer

    assert (ask(), watched.failure) == (1, "")
    assert (ask(), watched.failure) == (1, "[Errno 5] broken sensor")
    assert (ask(), watched.failure) == (3, "")
    watched.close()


def _fail() -> int:
    raise OSError(5, "broken sensor")
