"""Snapshots of the queue with running, waiting, held and ended entries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.queue import store
from core.queue.entry import QueueEntry
from core.queue.status import RunnerStatus
from tests.core.queue.helpers import config_for
from tests.snapshots.conftest import MOMENT, Compare, make_app, until
from tests.tui.harness import wait_for
from tests.tui.scripted_run import ScriptedRun


def fill(home: Path) -> None:
    """A night's work."""
    script = ScriptedRun(home, start=MOMENT)
    script.train_to(40)
    config = config_for(train={"max_steps": 100})
    names: list[dict[str, Any]] = [
        {"name": "tickets"},
        {"name": "faq with a longer name than there is room for in a narrow terminal, and then some"},
        {"name": "x", "values": {"train.learning_rate": 1e-4, "method.rank": 8}, "sweep": "s1"},
        {"name": "x", "values": {"train.learning_rate": 2e-4, "method.rank": 16}, "sweep": "s1"},
        {"name": "summaries"},
        {"name": "letters"},
        {"name": "old"},
    ]
    store.add([(QueueEntry(id=1, **values), config) for values in names])

    def how(queue: Any) -> Any:
        queue = queue.with_entry(queue.entry(1).moved("starting", run=script.run.id, begun=MOMENT))
        queue = queue.with_entry(replace(queue.entry(1), state="running"))
        queue = queue.held(4)
        ends = {"ended": MOMENT - 600.0, "outcome": "finished"}
        queue = queue.with_entry(replace(queue.entry(5), state="done", run="r5", **ends))
        failed = {"ended": MOMENT - 900.0, "outcome": "failed", "reason": "the loss has not been finite for 5 steps"}
        queue = queue.with_entry(replace(queue.entry(6), state="failed", run="r6", **failed))
        return queue.with_entry(replace(queue.entry(7), state="skipped", reason="7.toml cannot be read"))

    store.change(how)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_queue(
    size: tuple[int, int], snap_compare: Compare, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(private_home)
    fill(private_home)
    runner = RunnerStatus(pid=1, pid_started="x", doing="follows 20261124-143600-tickets, which is training")
    monkeypatch.setattr("core.queue.view.read_status", lambda: runner)

    async def open_queue(pilot: Pilot[Any]) -> None:
        # The line of the run comes first.
        await wait_for(pilot, lambda: app.state.live_run is not None)
        await until("letters", "3", "Q")(pilot)

    assert snap_compare(app, terminal_size=size, run_before=open_queue)


@pytest.mark.parametrize("size", [(80, 24)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_empty_queue(size: tuple[int, int], snap_compare: Compare, private_home: Path) -> None:
    assert snap_compare(make_app(private_home), terminal_size=size, run_before=until("Nothing waits.", "Q"))
