"""OpenMP threads beside other processes: when they spin, and that the mode takes hold and ends."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from core.worker.process.openmp import (
    CALM,
    CpuLoad,
    CpuLoadMeter,
    SpinControl,
    SpinPolicy,
    renew_thread_pool,
    waited_seconds,
)
from tests.cases import cases
from tests.waiting import wait_for

QUIET = CpuLoad(cores=2, threads=2, others=0.05, waited=0.015)
CROWDED = CpuLoad(cores=2, threads=2, others=1.0, waited=0.5)


@cases(
    ("load", "brief"),
    [
        (QUIET, False),
        (CROWDED, True),
        # The screen of an app, or a browser: spinning still wins.
        (CpuLoad(2, 2, 0.4, 0.2), False),
        # Others have cores of their own, on this machine or outside of this container.
        (CpuLoad(16, 8, 6.0, 0.5), False),
        (CpuLoad(16, 8, 8.6, 0.3), True),
        (CpuLoad(2, 2, 30.0, 0.01), False),
        # A system that does not count waits.
        (CpuLoad(2, 2, 1.0, None), True),
        # A single thread never waits.
        (CpuLoad(2, 1, 2.0, 0.5), False),
    ],
)
def test_threads_spin_while_there_is_a_core_for_each(load: CpuLoad, brief: bool) -> None:
    assert SpinPolicy().decide(load) is brief


def test_they_spin_again_only_after_a_while_without_a_crowd() -> None:
    policy = SpinPolicy()
    assert policy.decide(CROWDED)
    # Waits are short in this mode; the load alone shows that the others are still there.
    assert policy.decide(CpuLoad(2, 2, 1.0, 0.01))
    assert all(policy.decide(QUIET) for _ in range(CALM - 1))
    assert policy.decide(CROWDED)
    assert [policy.decide(QUIET) for _ in range(CALM)] == [True] * (CALM - 1) + [False]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("two_threads")
def test_sleeping_teams_come_with_the_crowd_and_go_with_it_and_change_no_bit() -> None:
    a, b = torch.randn(300, 301), torch.randn(301, 302)
    spinning = a @ b
    load = QUIET
    control = SpinControl(lambda: load, beat=0.01)
    before, computed = native_threads(), torch.get_num_threads()
    control.start()
    try:
        load = CROWDED
        wait_for(lambda: control.is_brief, 20.0, "the mode to change")
        # A thread of ours, and as many of libgomp's as make them more than the cores.
        wait_for(lambda: native_threads() >= before + 3, 20.0, "the mode to change")
        assert torch.get_num_threads() == computed
        assert torch.equal(a @ b, spinning)
        load = QUIET
        wait_for(lambda: not control.is_brief and native_threads() <= before + 1, 20.0, "the mode to change")
    finally:
        control.close()
    wait_for(lambda: not any(thread.name == "openmp" for thread in threading.enumerate()), 20.0, "the mode to change")


def test_the_load_of_this_machine_is_read() -> None:
    meter = CpuLoadMeter(threads=2)
    sum(range(2_000_000))
    load = meter.look()
    assert load.cores == len(os.sched_getaffinity(0))
    assert 0.0 <= load.others <= load.cores * 1.5
    waited = waited_seconds()
    assert waited is None or waited >= 0.0


def _compute_in_threads() -> None:
    renew_thread_pool()
    together, failed = threading.Barrier(8), list[str]()

    def compute() -> None:
        together.wait()
        try:
            # The first of a thread asks for the pool.
            torch.ones(1 << 17).add_(1.0)
        except RuntimeError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=compute) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit("; ".join(failed) or 0)


@pytest.mark.long
def test_threads_of_a_forked_process_find_the_pool() -> None:
    # Creates the parent's pool, which a forked process must replace.
    torch.set_num_threads(torch.get_num_threads())
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=_compute_in_threads)
        process.start()
        process.join(60)
        assert process.exitcode == 0
