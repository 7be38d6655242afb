"""State machine: the queue under its commands, and a runner that dies at any of its writes and starts."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.errors import UserError
from core.launch import launcher
from core.queue import runner, store
from core.queue.entry import ACTIVE
from core.queue.fate import run_of
from core.runs.record.store import Run, make_run
from tests.core.queue.helpers import FakeWorkers, add, make_runner
from tests.examples import examples

T = TypeVar("T")

#: Where a runner may die: before or after the n-th thing it does that is seen from outside.
#: A start takes four: the claim, the count of starts, the directory, the process.
DEATHS = st.sampled_from([None, None, *range(10), 7, 7])


class Killed(BaseException):
    """Stands for SIGKILL: the runner does nothing after it."""


class QueueUnderKills(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.directory = tempfile.TemporaryDirectory()
        self.patch.setenv("LOCALTUNE_HOME", self.directory.name)
        self.workers = FakeWorkers(self.patch)
        self.left: int | None = None
        # fsync makes no difference when only a process dies, and takes most of the time.
        self.patch.setattr(os, "fsync", lambda _: None)
        write, begun = store.write_queue, self.workers.begin

        def spawn_and_begin(run: Run, *, resume: bool = False, alone: bool = False) -> None:
            self.act(lambda: self.workers.spawn(run, resume=resume))
            begun(run)

        self.patch.setattr(store, "write_queue", lambda queue: self.act(lambda: write(queue)))
        self.patch.setattr(launcher, "launch", spawn_and_begin)
        self.patch.setattr(runner, "make_run", lambda *given: self.act(lambda: make_run(*given)))

    def act(self, do: Callable[[], T]) -> T:
        """Do something that is seen from outside, unless the runner dies before it or after it."""
        if self.left == 0:
            raise Killed
        done = do()
        if self.left is not None:
            self.left -= 2
            if self.left < 0:
                self.left = 0
                raise Killed
        return done

    def unwritten(self) -> list[Run]:
        """Runs with a process that has not written its pid: the runner died in between, the process goes on."""
        return [run for run in self.live() if run.state().pid is None]

    def live(self) -> list[Run]:
        return [Run(Path(self.directory.name) / "runs" / name) for name in self.workers._locks]

    @rule(names=st.lists(st.sampled_from("abc"), min_size=1, max_size=2))
    def add(self, names: list[str]) -> None:
        add(*names)

    @initialize()
    def some(self) -> None:
        add("a", "b", "c")

    @rule(death=DEATHS, passes=st.integers(2, 6))
    def look(self, death: int | None, passes: int) -> None:
        """A runner begins, makes some passes, and perhaps dies in one."""
        self.left = death
        made = make_runner()
        try:
            for _ in range(passes):
                if made.tick() is None:
                    break
        except Killed:
            pass
        self.left = None

    @precondition(lambda self: bool(self.unwritten()))
    @rule()
    def a_worker_begins(self) -> None:
        for run in self.unwritten():
            self.workers.begin(run)

    @precondition(lambda self: any(run.state().pid is not None for run in self.live()))
    @rule(how=st.sampled_from(["finished", "failed", "stopped", "killed"]))
    def a_run_ends(self, how: str) -> None:
        run = next(run for run in self.live() if run.state().pid is not None)
        if how == "killed":
            self.workers.vanish(run)
        else:
            self.workers.end(run, how)

    @precondition(lambda _: bool(store.read_queue().upcoming))
    @rule(data=st.data(), what=st.sampled_from(["held", "released", "removed", "first", "last"]))
    def a_command(self, data: st.DataObject, what: str) -> None:
        entry = data.draw(st.sampled_from(store.read_queue().upcoming))
        changes = {
            "first": lambda queue: queue.with_position(entry.id, 1),
            "last": lambda queue: queue.with_position(entry.id, 99),
        }
        try:
            store.change(changes.get(what) or (lambda queue: getattr(queue, what)(entry.id)))
        except UserError:
            assert what in ("held", "released")

    @rule()
    def cleared(self) -> None:
        store.clear()

    @invariant()
    def no_run_has_started_twice(self) -> None:
        assert not [run for run, count in Counter(run for run, _ in self.workers.launched).items() if count > 1]

    @invariant()
    def at_most_one_run_is_on(self) -> None:
        assert len(self.workers._locks) <= 1

    @invariant()
    def what_is_on_belongs_to_the_entry_that_has_the_device(self) -> None:
        active = [entry for entry in store.read_queue().entries if entry.state in ACTIVE]
        assert len(active) <= 1
        for run in self.live():
            assert [run_of(entry) for entry in active] == [run]

    def teardown(self) -> None:
        """Let everything end: nothing that was added may be lost."""
        self.left = None
        for _ in range(200):
            for run in self.unwritten():
                self.workers.begin(run)
            for run in self.live():
                self.workers.end(run)
            if make_runner().tick() is None:
                break
        left = [entry for entry in store.read_queue().entries if not entry.is_over and entry.state != "held"]
        self.patch.undo()
        self.directory.cleanup()
        assert not left


QueueUnderKills.TestCase.settings = settings(max_examples=examples(25), stateful_step_count=16, deadline=None)
TestQueueUnderKills = QueueUnderKills.TestCase
