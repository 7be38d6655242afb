"""``localtune-tui fetch`` as people and scripts call it, and the errors of other commands before a fetch."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from core import paths
from tests.cases import cases
from tests.core.commands.conftest import Call
from tests.core.hub.conftest import rows
from tests.core.hub.fake_hub import FakeHub, Repository
from tests.waiting import wait_for


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a dataset, which the environment points to."""
    with closing(FakeHub()) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        found.datasets["me/set"] = Repository({"train.jsonl": rows(1, 2, 3), "test.jsonl": rows(9)})
        yield found


def test_it_says_how_large_it_is_and_then_where_it_is(call: Call, hub: FakeHub) -> None:
    ended = call.ok("fetch", "hf://datasets/me/set")
    asking, size = ended.err.splitlines()
    assert asking == f"asking {hub.endpoint.removeprefix('http://')} for hf://datasets/me/set"
    assert size.startswith("1 file, 111 B. The split train is 1 of 2 data files.")
    assert str(paths.datasets_dir() / "me--set") in ended.out
    assert 'data.train = "hf://datasets/me/set"' in ended.out
    told = call.ok("fetch", "hf://datasets/me/set", "--json").json
    assert (told["kind"], told["files"], told["bytes"], told["fetched_bytes"]) == ("dataset", 1, 111, 0)


def test_the_other_commands_say_that_it_must_be_fetched_and_read_it_then(
    call: Call, hub: FakeHub, tmp_path: Path
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('data.train = "hf://datasets/me/set"\ndata.eval = "hf://datasets/me/set#test"\n')
    for words in (("data", "hf://datasets/me/set"), ("data", "--config", str(config)), ("train", str(config))):
        ended = call(*words)
        assert ended.code == 1
        (line,) = [line for line in ended.err.splitlines() if not line.startswith("Tokens are not counted")]
        assert line == (
            "localtune-tui: hf://datasets/me/set is not on this machine. "
            "'localtune-tui fetch hf://datasets/me/set' downloads it."
        )
    assert hub.asked == []
    call.ok("fetch", "hf://datasets/me/set")
    asked = len(hub.asked)
    told = call.ok("data", "hf://datasets/me/set", "--json").json
    assert (told["format"], told["rows"], told["used"]) == ("prompt_completion", 3, 3)
    assert told["reason"].endswith("The split train is 1 of 2 data files.")
    ended = call("train", str(config))
    # Both must have the same commit, so the hint names that one.
    missing = f"hf://datasets/me/set@{hub.datasets['me/set'].commit}#test"
    assert f"{missing} is not whole on this machine: test.jsonl is missing." in ended.err
    call.ok("fetch", missing)
    asked = len(hub.asked)
    assert "is not prepared yet" in call("data", "--config", str(config)).err
    assert len(hub.asked) == asked


@cases("entry", ["rows.jsonl", "hf://datasets/set", "hf://datasets/me/none"])
def test_what_cannot_be_fetched_is_one_line(call: Call, hub: FakeHub, entry: str) -> None:
    ended = call.refused("localtune-tui: ", "fetch", entry, lines=call.ANY)
    assert ended.err.splitlines()[-1].startswith("localtune-tui: ")
    assert "Traceback" not in ended.err


def test_ctrl_c_ends_the_download_and_keeps_what_has_come(call: Call, hub: FakeHub) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(*range(30_000))})
    hub.stalls["train.jsonl"] = 1 << 20
    process = subprocess.Popen(
        [sys.executable, "-m", "tui", "fetch", "hf://datasets/me/set"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    partial = paths.datasets_dir() / "me--set" / hub.datasets["me/set"].commit / ".partial"
    wait_for(lambda: any(path.stat().st_size >= 1 << 18 for path in partial.glob("*.part")), 60, "the first bytes")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "What has come is kept; the same command goes on." in stderr
    hub.stalls.clear()
    hub.resume.set()
    told = call.ok("fetch", "hf://datasets/me/set", "--json").json
    assert 0 < told["fetched_bytes"] <= told["bytes"] - (1 << 18)
