from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.config.clock import next_time
from core.errors import UserError
from core.hardware.snapshot import Device
from core.queue import store
from core.queue.book import Queue
from core.queue.fate import run_of
from core.queue.night import Night
from core.queue.tonight import change_night, tell_live_run
from core.runs.catalog.earlier import begin_from
from core.runs.control.client import ControlClient
from core.runs.record.store import create_run
from tests.core.queue.helpers import FakeWorkers, add, config_for, make_runner
from tests.core.runs.helpers import live_state

EVENING = datetime(2026, 11, 24, 20).timestamp()
SEVEN = next_time(7 * 60, EVENING)


def test_a_night_is_read_as_typed_and_kept_in_the_queue() -> None:
    asked = {"temperature_limit_c": "75", "night.quiet_hours": "22:00-07:00", "deadline": "07:00", "power_limit_w": ""}
    night = Night.read(asked | {"hardware.power_limit_w": "none"}, EVENING)
    assert night.words(EVENING) == "at most 75 °C · no power limit · quiet 22:00-07:00 · done by 07:00"
    assert "07:00" not in night.words(SEVEN).partition("quiet 22:00-07:00")[2], "the deadline has passed"
    queue = Queue(night=night)
    assert Queue.loads(queue.dumps()) == queue
    for wrong in ({"rank": "8"}, {"quiet_hours": "22"}, {"temperature_limit_c": "warm"}, {"deadline": "25:00"}):
        with pytest.raises(UserError):
            Night.read(wrong, EVENING)
    text = queue.dumps()
    for damaged in (text.replace('"22:00-07:00"', '"22"'), text.replace(f'"since": {EVENING}', '"since": -1')):
        with pytest.raises(ValueError, match=r"."):
            Queue.loads(damaged)


def test_each_run_gets_its_share_of_the_time_until_the_deadline() -> None:
    night = Night.read({"deadline": "07:00", "quiet_hours": "none"}, EVENING)
    for now, share, expected in ((EVENING, 0.5, "01:30"), (EVENING, 1.0, "07:00"), (EVENING, None, None)):
        assert night.for_run(now, share) == {"night.quiet_hours": None, "night.deadline": expected}
    assert "night.deadline" not in night.for_run(SEVEN + 60, 1.0)


def test_a_run_starts_with_the_limits_of_the_night_and_its_entry_keeps_its_own(home: Path, fakes: FakeWorkers) -> None:
    add("a", hardware={"device": "cpu", "temperature_limit_c": 80.0}, night={"quiet_hours": "23:00-06:00"})
    change_night({"quiet_hours": "22:00-07:00", "deadline": "07:00"}, EVENING * 2)
    runner = make_runner()
    for _ in range(3):
        runner.tick()
    active = store.read_queue().active
    assert active is not None
    config = run_of(active).config()
    assert (config.night.quiet_hours, config.night.deadline) == ("22:00-07:00", "07:00")
    assert config.hardware.temperature_limit_c == 80.0
    assert store.read_entry_config(active).night.quiet_hours == "23:00-06:00"
    again = begin_from(run_of(active))
    assert (again.get("night.quiet_hours"), again.get("night.deadline")) == ("23:00-06:00", None)


def test_a_limit_that_the_device_cannot_keep_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = {"auto": None, "cpu": Device(index=0, kind="cpu", name="Some CPU")}
    monkeypatch.setattr("core.governor.check.read_device", lambda wanted, _: devices[wanted])
    change_night({"temperature_limit_c": "70"}, EVENING)
    change_night({}, EVENING)
    add("a", hardware={"device": "cpu"})
    with pytest.raises(UserError, match="Some CPU does not report its temperature"):
        change_night({"temperature_limit_c": "70", "quiet_hours": "22:00-07:00"}, EVENING)
    assert store.read_queue().night == Night()
    change_night({"temperature_limit_c": "none", "quiet_hours": "22:00-07:00"}, EVENING)


def test_an_entry_that_fails_for_a_limit_of_the_night_says_so(home: Path, fakes: FakeWorkers) -> None:
    add("a")
    store.change(lambda queue: replace(queue, night=Night.read({"temperature_limit_c": "70"}, EVENING)))
    runner = make_runner()
    for _ in range(3):
        runner.tick()
    active = store.read_queue().active
    assert active is not None
    fakes.end(run_of(active), "failed", reason="hardware.temperature_limit_c cannot be kept. Remove the option.")
    runner.tick()
    assert "It is set in Tonight" in store.read_queue().entry(1).reason


def test_the_run_that_is_on_is_sent_what_has_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    def request(_: ControlClient, command: str, **args: Any) -> dict[str, Any]:
        sent.append(args)
        if args.get("hardware.temperature_limit_c") == 75:
            raise UserError("The device tells no temperature.", "Leave it out.")
        return {"step": 3}

    monkeypatch.setattr(ControlClient, "request", request)
    monkeypatch.setattr("core.governor.check.read_device", lambda *_: None)
    assert tell_live_run(change_night({"quiet_hours": "22:00-07:00"}, EVENING), EVENING) == "", "no run is on"
    run = create_run(config_for(night={"quiet_hours": "23:00-06:00"}), "mine")
    live_state().write(run.state_path)
    told = tell_live_run(change_night({"quiet_hours": "21:00-07:00"}, EVENING), EVENING)
    assert told == "The current run now has quiet hours 21:00-07:00."
    assert "quiet hours 23:00-06:00" in tell_live_run(change_night({}, EVENING), EVENING), "its own again"
    told = tell_live_run(change_night({"temperature_limit_c": "75"}, EVENING), EVENING)
    assert "The current run keeps its own limits: The device tells no temperature." in told
    assert [list(args) for args in sent] == [["night.quiet_hours"]] * 2 + [["hardware.temperature_limit_c"]]


def test_a_waiting_entry_is_edited_and_a_started_one_is_not(home: Path) -> None:
    add("a", "b")
    store.edit(1, ["rank = 32", "train.learning_rate=1e-3"])
    config = store.read_entry_config(store.read_queue().entry(1))
    assert (config.method.rank, config.train.learning_rate) == (32, 1e-3)
    store.change(lambda queue: queue.with_entry(replace(queue.entry(2), state="running")))
    for entry, change in ((1, "rank = many"), (1, "rank"), (1, "nonsense = 1"), (2, "rank = 8")):
        with pytest.raises(UserError):
            store.edit(entry, [change])
    assert store.read_entry_config(store.read_queue().entry(1)) == config
