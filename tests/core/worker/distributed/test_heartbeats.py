"""Heartbeats of processes over the store by which they have met."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch._C._distributed_c10d import HashStore, TCPStore

from core.worker.distributed.heartbeats import Heartbeats, keep_beating
from core.worker.distributed.ranks import Ranks

from .pairs import run_pair


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
    assert mine.silent(10.0) == 1
    other.beat()
    mine.beat()
    assert mine.silent(10.0) is None


def test_a_store_that_is_gone_says_nothing_of_the_others() -> None:
    moment, patience = 0.0, timedelta(seconds=5)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=patience)
    store = TCPStore("127.0.0.1", server.port, is_master=False, timeout=patience)
    mine = Heartbeats(store, 0, 2, lambda: moment)
    mine.beat()
    del server
    mine.beat()
    assert mine.silent(10.0) is None
    moment = 10.0
    assert mine.silent(10.0) == 1


def test_who_waits_without_a_limit_leaves_when_another_is_suspended(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        def lost(why: str) -> None:
            (tmp_path / "said").write_text(why)
            os._exit(0)

        keep_beating(ranks.rank, ranks.count, 2.0, lambda: ranks.is_waiting, lost)
        ranks.meet()
        if not ranks.is_first:
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.meet()
        return None

    first, _ = run_pair(tmp_path, work, timeout=600.0)
    assert first == "gone"
    assert (tmp_path / "said").read_text() == "process 1 has given no sign of life for 2 s"
