"""Figures reach a tracker once each, whatever happens to it in between."""

from __future__ import annotations

import itertools
import stat

import pytest

from core.config.choices import Tracker
from core.tracking.position import TrackerFiles
from tests.core.tracking.conftest import Desk, steps
from tests.short_list import long_but
from tests.waiting import wait_for


def sent_steps(desk: Desk) -> list[int]:
    """The optimizer steps whose loss has been logged, in order."""
    logged = desk.calls("log")
    return [figures.get("step", step) for figures, step in logged if "train/loss" in figures]


@pytest.mark.parametrize("tool", ["wandb", "trackio"])
def test_a_finished_run_is_sent_whole_and_only_once(desk: Desk, tool: Tracker) -> None:
    place = desk.recorded(10, tool)
    code, out = desk.track(place)
    assert code == 0, out
    assert sent_steps(desk) == list(range(1, 11))
    begun = desk.calls("init")[0][0]
    assert (begun["project"], begun["name"]) == ("mine", "first")
    assert begun["config"]["method.rank"] == 16
    text = str(desk.calls("init")) + str(desk.calls("log"))
    assert "private-rows" not in text
    assert "secret prompt" not in text
    figures = [figures for figures, _ in desk.calls("log")]
    assert {"eval/loss": 1.5}.items() <= figures[5].items()
    assert {"memory/cuda-0/peak_bytes": float(1 << 30)}.items() <= figures[6].items()
    hardware = figures[7]
    assert hardware["hardware/cuda-0/temperature_c"] == 61.0
    assert "hardware/cuda-0/power_w" not in hardware
    assert len(desk.calls("finish")) == 1
    assert place.position().state == "done"
    assert place.position().step == 10

    # Nothing is new: the library is not even opened.
    assert desk.track(place)[0] == 0
    assert len(desk.calls("init")) == 1

    # A run that went on: only new events are sent.
    desk.write(steps(11, 12))
    assert desk.track(place)[0] == 0
    assert sent_steps(desk) == list(range(1, 13))
    rows = [step for _, step in desk.calls("log")]
    assert rows == (list(range(len(rows))) if tool == "wandb" else sorted(rows))


def test_a_live_run_is_followed_to_its_end(desk: Desk) -> None:
    desk.fake("wandb")
    place = TrackerFiles(desk.run, "wandb")
    tracker = desk.start(place)
    desk.write(steps(1, 3))
    wait_for(lambda: len(sent_steps(desk)) == 3, 60, "three steps")
    assert tracker.process.poll() is None
    assert place.position().is_working
    desk.write(steps(4, 4))
    desk.finish(4)
    code, out = tracker.end()
    assert code == 0, out
    assert sent_steps(desk) == [1, 2, 3, 4]


FAULTS = ["hang@log3", "raise@log3", "exit@log3", "die@log3", "hang@finish", "raise@init"]
HALF = list(zip(("wandb", "trackio") * 3, FAULTS, strict=True))


# Each fault once, each tool with half of them; all of them in the long tests.
@pytest.mark.parametrize(("tool", "behavior"), long_but(HALF, itertools.product(("wandb", "trackio"), FAULTS)))
def test_what_a_tracker_missed_is_sent_afterwards(desk: Desk, tool: Tracker, behavior: str) -> None:
    place = desk.recorded(4, tool)
    code, out = desk.track(place, patience=2.0, FAKE=behavior)
    assert code != 0
    found = place.position()
    assert found.state == "failed"
    assert found.rows == 0
    assert found.reason
    if behavior.startswith("raise"):
        assert "RuntimeError: the server said no" in found.reason
    if behavior.startswith("hang"):
        assert "Timeout" in out
    (desk.directory / "calls").unlink()
    assert desk.track(place)[0] == 0
    assert sent_steps(desk) == [1, 2, 3, 4]
    if tool == "wandb":
        # The directory of the first attempt is gone: 'wandb sync' would send its rows again.
        assert len(list((place.data / "wandb").glob("offline-run-*"))) == 1


def test_a_library_that_is_missing_is_named(desk: Desk) -> None:
    (desk.directory / "lib").mkdir()
    (desk.directory / "lib" / "trackio.py").write_text("raise ImportError('numpy is broken')")
    place = desk.recorded(1, "trackio", is_fake=False)
    code, _ = desk.track(place)
    assert code == 4
    assert place.position().reason == "ImportError: numpy is broken"


def test_a_key_is_used_online_only_and_written_nowhere(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "correct-horse-battery-staple"
    online = desk.recorded(2, "wandb", online=True)
    code, _ = desk.track(online)
    assert code == 4
    assert "WANDB_API_KEY is not set" in online.position().reason
    assert not desk.calls("init")

    monkeypatch.setenv("WANDB_API_KEY", key)
    assert "WANDB_API_KEY" not in desk.environment(TrackerFiles(desk.run, "wandb"))
    assert desk.environment(TrackerFiles(desk.run, "wandb"))["WANDB_MODE"] == "offline"
    code, out = desk.track(online, FAKE="raise@log1")
    assert code == 4
    assert "the server said no to ***" in online.position().reason
    code, more = desk.track(online)
    assert code == 0, more
    assert key not in out + more
    # The server gets the same id and the same row numbers, and drops duplicates.
    assert [(values[0]["id"], values[0]["mode"]) for values in desk.calls("init")] == [(desk.run.id, "online")] * 2
    assert [step for _, step in desk.calls("log")] == [0, 1, 0, 1]
    for path in desk.run.path.rglob("*"):
        assert path.is_dir() or key.encode() not in path.read_bytes()


def test_all_of_it_lies_in_the_run_directory_for_the_user_alone(desk: Desk) -> None:
    place = desk.recorded(1, "wandb")
    assert desk.track(place)[0] == 0
    for path in [place.root, *place.root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    environment = desk.environment(place)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        assert environment[name].startswith(str(desk.run.path))


def test_only_one_process_sends_a_run_to_a_tracker(desk: Desk) -> None:
    desk.fake("wandb")
    desk.write(steps(1, 1))
    place = TrackerFiles(desk.run, "wandb")
    first = desk.start(place)
    wait_for(lambda: len(sent_steps(desk)) == 1, 60, "the first step")
    code, out = desk.track(place, patience=0.1)
    assert code == 5
    assert "by another process" in out
    desk.finish(1)
    first.end()
    assert sent_steps(desk) == [1]


def test_what_another_version_has_written_hides_nothing_behind_it(desk: Desk) -> None:
    desk.fake("wandb")
    desk.write(steps(1, 1))
    with desk.run.events_path.open("a") as file:
        for _ in range(3):
            file.write('{"t": 1.0, "type": "unheard", "text": "' + "x" * (1 << 20) + '"}\n')
    desk.write(steps(2, 2))
    desk.finish(2)
    assert desk.track(TrackerFiles(desk.run, "wandb"))[0] == 0
    assert sent_steps(desk) == [1, 2]
