"""Which runs have the device."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.config.schema import Config, DataSection
from core.queue.fate import live_run
from core.runs.record.state import PARKED_BY_HAND, RunState, hostname, own_identity
from core.runs.record.store import Run, create_run
from tests.cases import cases


@cases(
    ("state", "parked", "has_device"),
    [
        ("training", "", True),
        ("paused", "", True),
        ("paused", PARKED_BY_HAND, False),
        ("paused", "ollama runner is running", True),
        ("finished", "", False),
    ],
)
def test_a_run_has_the_device_until_it_is_over_or_was_parked_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, parked: str, has_device: bool
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    run = create_run(Config(data=DataSection(train="rows.jsonl")), "other")
    pid, started = own_identity()
    RunState(state=state, parked=parked, pid=pid, pid_started=started, host=hostname(), updated=time.time()).write(
        run.state_path
    )
    found: Run | None = live_run()
    assert (found == run) is has_device
    assert live_run(besides=run.id) is None
