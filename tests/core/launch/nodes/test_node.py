"""Ranks on another machine: agent and ranks are real processes, reached by a fake ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.config.schema import Config
from core.launch.nodes.node import Node
from tests.core.launch.nodes.fake_ssh import FakeSsh
from tests.core.launch.nodes.test_compare import address, free_port
from tests.waiting import wait_for

FAKE = Path(__file__).with_name("fake_agent.py")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    distributed = {"hosts": ["tower"], "address": address(), "port": free_port()}
    return Config.model_validate({"data": {"train": str(tmp_path / "rows.jsonl")}, "distributed": distributed})


@pytest.fixture
def pids(tmp_path: Path, ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory with the pids of the ranks."""
    found = tmp_path / "pids"
    found.mkdir()
    monkeypatch.setenv("FAKE_PIDS", str(found))
    # The store is another one, as on another machine.
    lines = f"export LOCALTUNE_HOME={tmp_path}/there; set -- exec {sys.executable} {FAKE}"
    ssh.machine("tower", lines)
    monkeypatch.setenv("PYTHONPATH", str(FAKE.parents[4]))
    yield found
    for file in found.iterdir():
        if psutil.pid_exists(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)


def variables(*ranks: int) -> list[dict[str, str]]:
    return [{"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(place)} for place, rank in enumerate(ranks)]


def start(config: Config, said: list[str], *ranks: int) -> Node:
    node = Node("tower", said.append)
    node.start("20260101-000000-run", config, config.distributed.address or "", variables(*ranks), resume=True)
    return node


def are_gone(pids: Path, *ranks: int) -> bool:
    return not any(psutil.pid_exists(int((pids / str(rank)).read_text())) for rank in ranks)


def have_begun(pids: Path, *ranks: int) -> bool:
    return all((pids / str(rank)).exists() for rank in ranks)


def test_ranks_run_there_and_end_with_the_connection(
    config: Config, pids: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    said: list[str] = []
    node = start(config, said, 1, 2)
    try:
        wait_for(lambda: have_begun(pids, 1, 2) and len(said) == 2, 30, "the ranks")
        assert [node.ranks[rank].pid for rank in (1, 2)] == [int((pids / rank).read_text()) for rank in "12"]
        assert [rank.poll() for rank in node.ranks.values()] == [None, None]
        line = next(line for line in said if line.startswith("tower, rank 1: rank "))
        assert '"RANK": "1", "WORLD_SIZE": "3"' in line
        assert '"GLOO_SOCKET_IFNAME": null' not in line
        assert "--resume" in line
        assert next((tmp_path / "there" / "ranks").glob("*/20260101-000000-run/run.toml")).exists()
    finally:
        node.end()
    assert are_gone(pids, 1, 2)
    assert not list((tmp_path / "there" / "ranks").glob("*/20260101-000000-run"))
    assert node.failure is None


def test_a_rank_that_ends_has_its_status_and_its_last_words(
    config: Config, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK", "fail")
    node = start(config, [], 1)
    try:
        wait_for(lambda: node.ranks[1].poll() is not None, 30, "the ranks")
        assert node.ranks[1].poll() == 4
        assert node.ranks[1].last_words[-1] == "RuntimeError: the card fell off the bus"
    finally:
        node.end()
    assert node.failure is None
    assert have_begun(pids, 1)


def test_a_connection_that_is_cut_ends_the_ranks_on_both_sides(
    config: Config, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK", "train")
    node = start(config, [], 1, 2)
    try:
        wait_for(lambda: have_begun(pids, 1, 2), 30, "the ranks")
        assert node._process is not None
        # It is the agent that dies: the ranks lose their lifeline, and the head its connection.
        node._process.kill()
        wait_for(lambda: all(rank.poll() == -signal.SIGKILL for rank in node.ranks.values()), 30, "the ranks")
        wait_for(lambda: are_gone(pids, 1, 2), 30, "the ranks")
    finally:
        node.end()
    assert str(node.failure).startswith("tower did not answer: ssh was ended by SIGKILL.")
    assert node.ranks[1].last_words[-1].startswith("tower did not answer")


def test_ranks_end_when_the_head_is_killed(config: Config, pids: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config.model_dump_json())
    program = textwrap.dedent(
        """
        import pathlib, sys, time
        from core.config.schema import Config
        from tests.core.launch.nodes.test_node import start
        node = start(Config.model_validate_json(pathlib.Path(sys.argv[1]).read_text()), [], 1, 2)
        time.sleep(60)
        """
    )
    environment = {**os.environ, "FAKE_RANK": "train"}
    head = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "config.json")], env=environment)
    try:
        wait_for(lambda: have_begun(pids, 1, 2), 30, "the ranks")
    finally:
        head.kill()
        head.wait()
    wait_for(lambda: are_gone(pids, 1, 2), 30, "the ranks")


def test_an_agent_that_refuses_is_heard(config: Config, ssh: FakeSsh) -> None:
    refusal = '{"error": "/data/rows.jsonl cannot be read.", "hint": "Copy it."}'
    ssh.machine("tower", f"echo '{refusal}'; exit 1")
    node = start(config, [], 1)
    try:
        wait_for(lambda: node.ranks[1].poll() is not None, 30, "the ranks")
    finally:
        node.end()
    assert str(node.failure) == "tower: /data/rows.jsonl cannot be read. Copy it."
