"""Forked processes: results in order, errors as they are, and a death that is noticed whatever it interrupts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from core.analysis.forked import ForkedProcessError, forked_map
from core.errors import UserError
from tests.cases import cases

LARGE = 8 << 20


def nothing() -> None:
    """No preparation."""


@cases("processes", [1, 2, 3])
def test_results_come_in_order(processes: int) -> None:
    factor = 3  # is there in the forked processes too
    assert list(forked_map(lambda item: item * factor, range(50), processes, nothing)) == [3 * n for n in range(50)]
    assert list(forked_map(str, [], processes, nothing)) == []


def test_an_error_is_raised_where_its_result_would_be() -> None:
    def work(item: int) -> int:
        if item == 7:
            raise UserError("The file has changed.", "Open it again.")
        return item

    seen: list[int] = []
    with pytest.raises(UserError) as caught:
        seen.extend(forked_map(work, range(50), 2, nothing))
    assert (caught.value.message, caught.value.hint) == ("The file has changed.", "Open it again.")
    assert seen == list(range(len(seen)))


def die(item: int) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def die_while_sending(item: int) -> bytes:
    """Half of a large result is in the pipe when the alarm goes off."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    return bytes(LARGE)


@pytest.mark.parametrize("work", [die, die_while_sending])
def test_a_process_that_is_killed_is_noticed(work: Callable[[int], bytes]) -> None:
    def mixed(item: int) -> bytes:
        return work(item) if item == 5 else bytes(LARGE)

    with pytest.raises(ForkedProcessError) as caught:
        list(forked_map(mixed, range(20), 2, nothing))
    assert caught.value.status == -signal.SIGKILL


def test_those_who_stop_listening_leave_no_process() -> None:
    pids = []
    for pid in forked_map(lambda _: os.getpid(), range(50), 2, nothing):
        pids.append(pid)
        if len(set(pids)) == 2 or len(pids) == 20:
            break
    for pid in set(pids):
        with pytest.raises((ProcessLookupError, ChildProcessError)):
            os.kill(pid, 0)
