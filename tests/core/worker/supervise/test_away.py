"""Machines that are away when a run is to start again."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.schema import Config
from core.worker.supervise.away import machine_away
from tests.core.launch.nodes.fake_ssh import FakeSsh
from tests.core.launch.nodes.test_compare import address


def config(at: str) -> Config:
    values = {"data": {"train": "rows.jsonl"}, "distributed": {"hosts": ["tower", "attic"], "address": at}}
    return Config.model_validate(values)


def never() -> bool:
    """Nobody stops the run."""
    return False


def test_a_machine_is_away_while_ssh_does_not_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = FakeSsh(tmp_path / "fake-ssh", monkeypatch)
    ssh.machine("tower")
    ssh.machine("attic", "echo 'ssh: connect to host attic port 22: No route to host' >&2; exit 255")
    away = machine_away(config(address()), never)
    assert away is not None
    assert away.message == ("attic cannot be reached over ssh: connect to host attic port 22: No route to host.")
    ssh.machine("attic")
    assert machine_away(config(address()), never) is None
    assert [line.split(" -- ")[1] for line in ssh.asked] == ["tower true", "attic true"] * 2


def test_this_machine_is_away_while_no_interface_has_its_address() -> None:
    away = machine_away(config("192.0.2.1"), never)
    assert away is not None
    assert away.message == "This machine has no network interface with distributed.address 192.0.2.1 any more."


def test_a_run_that_is_stopped_logs_in_nowhere_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = FakeSsh(tmp_path / "fake-ssh", monkeypatch)
    ssh.machine("tower")
    ssh.machine("attic", "exit 255")
    assert machine_away(config(address()), lambda: bool(ssh.asked)) is None
    assert [line.split(" -- ")[1] for line in ssh.asked] == ["tower true"]
