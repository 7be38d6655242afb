"""The command ``track``: missing metrics are sent once, and failures are reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.runs.record.state import own_identity
from core.runs.record.store import create_run
from core.tracking.position import Position, TrackerFiles
from tests.core.commands.conftest import CommandLine, wait_for
from tests.core.tracking.conftest import FAKE, Desk, configured, steps


@pytest.fixture
def desk(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A finished run with a tracker in its configuration, and a library that records its calls."""
    found = Desk(create_run(configured(tmp_path, tools="trackio"), "tickets"), tmp_path)
    (tmp_path / "lib").mkdir()
    for tool in ("trackio", "wandb"):
        (tmp_path / "lib" / f"{tool}.py").write_text(FAKE)
    path = os.pathsep.join([str(tmp_path / "lib"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls"))
    found.write(steps(1, 4))
    found.finish(4)
    return found


def sent(desk: Desk) -> list[int]:
    """Steps whose loss was sent to a library."""
    return [int(figures.get("step", step)) for figures, step in desk.calls("log") if "train/loss" in figures]


def test_a_run_is_sent_to_its_trackers_and_then_has_everything(cli: CommandLine, desk: Desk) -> None:
    result = cli("track", "latest", "--json")
    assert result.code == 0, result.err
    assert result.json["run"] == desk.run.id
    (tracker,) = result.json["trackers"]
    assert (tracker["tracker"], tracker["state"], tracker["sent"], tracker["step"]) == ("trackio", "done", 4, 4)
    assert Path(tracker["directory"]).is_relative_to(desk.run.path)
    again = cli("track", "latest")
    assert "trackio: has everything, up to step 4" in again.out
    assert sent(desk) == [1, 2, 3, 4]


def test_a_failure_is_reported_and_the_next_attempt_sends_it(
    cli: CommandLine, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "raise@log2")
    result = cli("track", "latest", "--to", "wandb", "--to", "trackio")
    assert result.code == 1
    assert "wandb: failed, RuntimeError: the server said no to nobody" in result.out
    assert "trackio: failed" in result.out
    watched = cli("watch", "latest").out
    assert "tracker   trackio failed: RuntimeError: the server said no to nobody" in watched
    assert f"track {desk.run.id}" in watched
    monkeypatch.delenv("FAKE")
    (desk.directory / "calls").unlink()
    assert cli("track", "latest", "--to", "wandb").code == 0
    assert sent(desk) == [1, 2, 3, 4]


def test_what_cannot_be_asked_for_is_refused(
    cli: CommandLine, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Only wandb has a server" in cli("track", "latest", "--to", "trackio", "--online").err
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    result = cli("track", "latest", "--online")
    assert result.code == 1
    assert "wandb-online: failed, WANDB_API_KEY is not set" in result.out
    plain = Desk(create_run(configured(tmp_path), "plain"), tmp_path)
    plain.finish(0)
    assert "has no trackers in its configuration" in cli("track", plain.run.id).err


def test_a_live_run_is_followed_in_the_background(cli: CommandLine, desk: Desk) -> None:
    desk.set_state("training")
    result = cli("track", "latest", "--json")
    assert result.code == 0
    assert result.json["trackers"][0]["state"] == "following"
    place = TrackerFiles(desk.run, "trackio")
    wait_for(lambda: sent(desk) == [1, 2, 3, 4], "four steps")
    assert place.position().is_working
    # The process already sending does it.
    assert cli("track", "latest").code == 0
    desk.write(steps(5, 5))
    desk.finish(5)
    wait_for(lambda: place.position().state == "done", "the end")
    assert sent(desk) == [1, 2, 3, 4, 5]
    assert Position.read(place.position_path).pid != own_identity()[0]
