"""``localtune-tui fetch`` as people and scripts call it, and what the other commands say before it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import paths
from tests.core.hub.conftest import rows
from tests.core.hub.fake_hub import FakeHub, Repository, running_hub
from tests.waiting import wait_for


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as found:
        found.datasets["me/set"] = Repository({"train.jsonl": rows(1, 2, 3), "test.jsonl": rows(9)})
        yield found


def environment(hub: FakeHub) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return {**kept, "HF_ENDPOINT": hub.endpoint}


def call(hub: FakeHub, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tui", *words],
        env=environment(hub),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_says_how_large_it_is_and_then_where_it_is(hub: FakeHub) -> None:
    ended = call(hub, "fetch", "hf://datasets/me/set")
    assert ended.returncode == 0, ended.stderr
    asking, size = ended.stderr.splitlines()
    assert asking == f"asking {hub.endpoint.removeprefix('http://')} for hf://datasets/me/set"
    assert size.startswith("1 file, 111 B. The split train is 1 of 2 data files.")
    assert str(paths.datasets_dir() / "me--set") in ended.stdout
    assert 'data.train = "hf://datasets/me/set"' in ended.stdout
    told = json.loads(call(hub, "fetch", "hf://datasets/me/set", "--json").stdout)
    assert (told["kind"], told["files"], told["bytes"], told["fetched_bytes"]) == ("dataset", 1, 111, 0)


def test_the_other_commands_say_that_it_must_be_fetched_and_read_it_then(hub: FakeHub, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('data.train = "hf://datasets/me/set"\ndata.eval = "hf://datasets/me/set#test"\n')
    for words in (("data", "hf://datasets/me/set"), ("data", "--config", str(config)), ("train", str(config))):
        ended = call(hub, *words)
        assert ended.returncode == 1
        (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("Tokens are not counted")]
        assert line == (
            "localtune-tui: hf://datasets/me/set is not on this machine. "
            "'localtune-tui fetch hf://datasets/me/set' downloads it."
        )
    assert hub.asked == []
    assert call(hub, "fetch", "hf://datasets/me/set").returncode == 0
    asked = len(hub.asked)
    told = json.loads(call(hub, "data", "hf://datasets/me/set", "--json").stdout)
    assert (told["format"], told["rows"], told["used"]) == ("prompt_completion", 3, 3)
    assert told["reason"].endswith("The split train is 1 of 2 data files.")
    ended = call(hub, "train", str(config))
    # Both must be of one commit, so that is what is to be fetched.
    missing = f"hf://datasets/me/set@{hub.datasets['me/set'].commit}#test"
    assert f"{missing} is not whole on this machine: test.jsonl is missing." in ended.stderr
    assert call(hub, "fetch", missing).returncode == 0
    asked = len(hub.asked)
    assert "is not prepared yet" in call(hub, "data", "--config", str(config)).stderr
    assert len(hub.asked) == asked


def test_a_model_that_is_not_here_is_said_before_a_run_is_started(hub: FakeHub, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(rows(1))
    config = tmp_path / "run.toml"
    config.write_text('model.base = "org/tiny"\ndata.train = "rows.jsonl"\n')
    ended = call(hub, "train", str(config))
    assert ended.returncode == 1
    assert "The model org/tiny is not on this machine" in ended.stderr
    assert "'localtune-tui fetch hf://org/tiny' downloads it." in ended.stderr
    assert not paths.runs_dir().exists()


@pytest.mark.parametrize("entry", ["rows.jsonl", "hf://datasets/set", "hf://datasets/me/none"])
def test_what_cannot_be_fetched_is_one_line(hub: FakeHub, entry: str) -> None:
    ended = call(hub, "fetch", entry)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("localtune-tui: ")
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_the_download_and_keeps_what_has_come(hub: FakeHub) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(*range(200_000))})
    hub.stalls["train.jsonl"] = 3 << 20
    process = subprocess.Popen(
        [sys.executable, "-m", "tui", "fetch", "hf://datasets/me/set"],
        env=environment(hub),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = paths.datasets_dir() / "me--set" / hub.datasets["me/set"].commit / ".partial"
    wait_for(lambda: any(path.stat().st_size >= 1 << 20 for path in partial.glob("*.part")), 60, "the first bytes")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "What has come is kept; the same command goes on." in stderr
    hub.stalls.clear()
    hub.resume.set()
    told = json.loads(call(hub, "fetch", "hf://datasets/me/set", "--json").stdout)
    assert 0 < told["fetched_bytes"] <= told["bytes"] - (1 << 20)
