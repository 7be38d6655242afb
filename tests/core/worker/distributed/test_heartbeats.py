"""Heartbeats of processes over the store by which they have met."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore, Store, TCPStore
from torch.distributed import distributed_c10d

from core.worker.distributed import heartbeats
from core.worker.distributed.heartbeats import Heartbeats, keep_beating
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.rendezvous import tcp_meeting
from core.worker.process.reports import Pulse

from .pairs import run_pair


def leaving_with_the_other(ranks: Ranks, said: Path) -> Callable[[str], None]:
    """The act of a process that has lost the other: it writes down why, ends it, and leaves."""
    other = ranks.gather({"pid": os.getpid()})[1 - ranks.rank]["pid"]

    def lost(why: str) -> None:
        said.write_text(why)
        os.kill(other, signal.SIGKILL)
        os._exit(0)

    return lost


def test_a_process_is_silent_when_its_beats_have_not_changed_for_a_while() -> None:
    moment, store = 0.0, HashStore()
    mine, other = (Heartbeats(store, rank, 2, lambda: moment) for rank in range(2))
    mine.beat()
    moment = 9.0
    assert mine.silent(10.0) is None, "it may still be starting"
    other.beat()
    mine.beat()
    moment = 18.0
    mine.beat()
    assert mine.silent(10.0) is None
    moment = 19.0
    assert mine.silent(10.0) is None, "the store was not asked since"
    mine.beat()
    assert mine.silent(10.0) == 1
    other.beat()
    mine.beat()
    assert mine.silent(10.0) is None


def test_a_lost_store_proves_only_the_loss_of_the_first_process() -> None:
    moment, patience = 0.0, timedelta(seconds=5)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)
    store = TCPStore("127.0.0.1", server.port, is_master=False, timeout=patience)
    mine, first, third = (Heartbeats(store, rank, 4, lambda: moment) for rank in (1, 0, 3))
    third.beat()
    mine.beat()
    moment = 1.0
    first.beat()
    mine.beat()
    del server
    mine.beat()
    moment = 10.5
    assert mine.silent(10.0) is None, "process 3 was heard longer ago, and cannot be heard since"
    moment = 11.0
    assert mine.silent(10.0) == 0


class BlockingStore(Store):
    """A store whose owner is suspended: a question is never answered."""

    def set(self, key: str, value: str) -> None:
        """Sent, and not heard by anybody."""

    def check(self, keys: list[str]) -> bool:
        """Never comes back."""
        return threading.Event().wait()


def test_a_question_that_is_not_answered_holds_up_nobody_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    told, said = threading.Event(), list[str]()

    def lost(why: str) -> None:
        said.append(why)
        told.set()

    monkeypatch.setattr(distributed_c10d, "_get_default_store", BlockingStore)
    monkeypatch.setattr(heartbeats, "PrefixStore", lambda _, found: found)
    keep_beating(1, 2, 0.1, lambda: True, lost)
    assert told.wait(20)
    assert said == ["process 0 has given no sign of life for 0 s"]


def test_who_waits_leaves_when_the_first_hangs_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_QUIET_SECONDS", 0.5)

    def work(ranks: Ranks) -> Any:
        lost, pulse = leaving_with_the_other(ranks, tmp_path / "said"), ranks.pulse
        options: Any = {"wait": lambda: ranks.waits, "pulse": lambda: pulse.count}
        keep_beating(ranks.rank, ranks.count, 2.0, lambda: ranks.is_waiting, lost, **options)
        ranks.meet()
        ranks.pulse.begin()
        if ranks.is_first:
            threading.Event().wait(60)
        ranks.meet()
        return None

    assert run_pair(tmp_path, work, timeout=600.0, patience=30.0) == ["gone", "gone"]
    assert (tmp_path / "said").read_text().startswith("process 0 hangs: it has been waited for for ")


def test_a_pulse_that_is_held_back_is_no_hang() -> None:
    now = [0.0]
    store = HashStore()
    pulse = Pulse()
    first = Heartbeats(store, 0, 2, lambda: now[0], lambda: pulse.count)
    second = Heartbeats(store, 1, 2, lambda: now[0])

    def after(seconds: float) -> float:
        now[0] += seconds
        first.beat()
        second.beat()
        return second.still()

    assert after(100.0) == after(100.0) == 0.0, "it has not begun"
    pulse.begin()
    assert (after(1.0), after(50.0)) == (0.0, 50.0)
    with pulse.alone():
        assert after(1.0) == after(900.0) == 0.0
    assert (after(1.0), after(9.0)) == (0.0, 9.0)
    pulse.beat()
    assert after(1.0) == 0.0
    now[0] += 60.0
    assert second.still() == 0.0, "what is not heard anew is not known"
    pulse.end()
    assert after(1.0) == after(99.0) == 0.0


@pytest.mark.long
@pytest.mark.parametrize("suspended", [0, 1])
def test_who_waits_without_a_limit_leaves_when_another_is_suspended(tmp_path: Path, suspended: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = tcp_meeting("127.0.0.1", free.getsockname()[1])

    def work(ranks: Ranks) -> None:
        lost = leaving_with_the_other(ranks, tmp_path / "said")
        keep_beating(ranks.rank, ranks.count, 2.0, lambda: ranks.is_waiting, lost)
        ranks.meet()
        if ranks.rank == suspended:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.meet()

    assert run_pair(tmp_path, work, timeout=600.0, patience=20.0, place=place) == ["gone", "gone"]
    assert (tmp_path / "said").read_text() == f"process {suspended} has given no sign of life for 2 s"
