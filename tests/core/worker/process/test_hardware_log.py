from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.hardware.sampler import Sampler
from core.hardware.snapshot import Device, Host, Xid
from core.runs.record.events import HardwareEvent, encode_event
from core.worker.process.hardware_log import MOVING_SECONDS, STEADY_SECONDS, HardwareLog
from tests.cases import cases
from tests.core.hardware.conftest import Ask, ask_driver, fake_driver

__all__ = ["ask_driver", "fake_driver"]

CARD = Device(
    index=0,
    kind="cuda",
    name="RTX 4090",
    temperature_c=71.0,
    memory_used=18_000_000_000,
    memory_total=24_000_000_000,
    utilization=98.0,
    power_w=312.0,
    power_limit_w=450.0,
)


class Shown(Sampler):
    """A sampler with readings set by a test."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.machine: Host | None = Host(ram_used=5, ram_total=9)
        self.watt_hours: float | None = 1.5

    @property
    def energy_wh(self) -> float | None:
        return self.watt_hours

    def latest(self) -> list[Device]:
        return self.devices

    def host(self) -> Host | None:
        return self.machine


class Night:
    """A log that is ticked every two seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.shown = Shown()
        self.events: list[HardwareEvent] = []
        self.notices: list[tuple[str, str, str, str]] = []
        self.log = HardwareLog(self.shown, self.events.append, self._note, lambda: self.now)

    def _note(self, level: str, code: str, message: str, hint: str) -> None:
        self.notices.append((level, code, message, hint))

    def look(self, *devices: Device, times: int = 1) -> int:
        """Look at devices so many times; how many samples that has recorded."""
        before, self.shown.devices = len(self.events), list(devices)
        for _ in range(times):
            self.log.tick()
            self.now += 2.0
        return len(self.events) - before


@pytest.fixture
def night() -> Night:
    return Night()


def test_a_steady_hour_is_recorded_every_ten_seconds_and_stays_small(night: Night) -> None:
    recorded = night.look(CARD, times=1800)
    assert recorded == 3600 / STEADY_SECONDS
    assert sum(len(encode_event(event)) for event in night.events) < 600_000
    event = night.events[-1]
    assert Device.all_from(event.devices) == [CARD]
    assert (event.energy_wh, event.host_memory_used, event.host_memory_total) == (1.5, 5, 9)
    assert event.host == Host(ram_used=5, ram_total=9).to_dict()


@cases(
    "moved",
    [
        replace(CARD, temperature_c=73.0),
        replace(CARD, memory_used=18_300_000_000),
        replace(CARD, power_w=260.0),
        replace(CARD, utilization=60.0),
        replace(CARD, throttle_reasons=["power cap"]),
        replace(CARD, temperature_c=None),
    ],
)
def test_changing_values_are_recorded_sooner(moved: Device) -> None:
    night = Night()
    assert night.look(CARD) == 1
    assert night.look(replace(CARD, temperature_c=72.0, power_w=320.0, utilization=90.0)) == 0
    # At two seconds not yet, at six it is.
    assert night.look(moved) == 0
    assert night.look(moved) == 1
    assert night.now - 2.0 >= MOVING_SECONDS
    assert night.look(moved, times=4) == 0


@cases(
    "changed",
    [
        replace(CARD, problem="the GPU must be reset"),
        replace(CARD, xid=[Xid(13, 1.0)]),
        replace(CARD, age_s=3.0),
        replace(CARD, power_limit_w=300.0),
        replace(CARD, uuid="GPU-1"),
    ],
)
def test_important_changes_are_recorded_at_once(changed: Device) -> None:
    night = Night()
    night.look(CARD)
    assert night.look(changed) == 1
    assert night.look(changed) == 0
    assert night.look(changed, CARD) == 1


def test_memory_that_fills_up_is_recorded_at_once(night: Night) -> None:
    night.shown.machine = Host(ram_used=10_000, ram_total=64_000)
    night.look(CARD)
    night.shown.machine = Host(ram_used=11_000, ram_total=64_000)
    assert night.look(CARD) == 0
    night.shown.machine = Host(ram_used=11_300, ram_total=64_000)
    assert night.look(CARD) == 1
    assert night.events[-1].host_memory_used == 11_300
    assert night.look(CARD) == 0


def test_the_last_reading_is_recorded_at_the_end_and_nothing_before_the_first(night: Night) -> None:
    night.shown.machine = None
    assert night.look(times=3) == 0
    night.log.close()
    assert night.events == []
    night.shown.machine = Host(ram_used=7)
    # A driver that has not answered yet: the machine's memory is recorded all the same.
    assert night.look() == 1
    assert night.events[0].devices == []
    night.look(CARD)
    night.shown.watt_hours = 9.0
    night.log.close()
    assert night.events[-1].energy_wh == 9.0


def test_an_error_of_a_card_is_explained_once_a_minute(night: Night) -> None:
    first = replace(CARD, xid=[Xid(31, 100.0)])
    night.look(first, times=3)
    level, code, message, hint = night.notices[0]
    assert (level, code, len(night.notices)) == ("warning", "xid_31", 1)
    assert message == "GPU 0 reports Xid 31: a program reached for memory of the card that is not its own."
    assert hint
    night.look(replace(first, xid=[*first.xid, Xid(31, 101.0), Xid(79, 101.0)]), times=3)
    assert [notice[:2] for notice in night.notices[1:]] == [("error", "xid_79")]
    night.look(replace(first, xid=[Xid(31, 161.0)]), times=3)
    assert [notice[1] for notice in night.notices[2:]] == ["xid_31"]


def test_a_driver_that_is_silent_is_reported_after_a_while(night: Night) -> None:
    night.look(replace(CARD, age_s=14.0))
    assert night.notices == []
    night.look(replace(CARD, age_s=16.0))
    night.look(replace(CARD, age_s=60.0))
    assert [notice[1] for notice in night.notices] == ["driver_silent"]
    assert "has not answered for 16 s" in night.notices[0][2]
    night.look(CARD, times=2)
    assert [notice[1] for notice in night.notices] == ["driver_silent", "driver_answers"]


WORKER = """
import json, os, time
from pathlib import Path
from core.config.schema import Config, DataSection
from core.hardware import nvml, sampler
from core.runs.record.events import StoppedEvent
from core.runs.record.store import create_run
from core.worker.process import recorder as module
nvml.REOPEN_SECONDS = 0.0
sampler.DEADLINE_SECONDS = module.HEARTBEAT_SECONDS = 0.05
run = create_run(Config(data=DataSection(train="rows.jsonl")), "test")
recorder = module.Recorder(run)
state = Path(os.environ["FAKE_NVML_FILE"])
def until(text):
    deadline = time.monotonic() + 20
    while text not in run.events_path.read_text():
        assert time.monotonic() < deadline, run.events_path.read_text()
        time.sleep(0.01)
until('"temperature_c": 71.0')
state.write_text("lost=1\\nxid=1:79\\n")
until("gpu_lost")
state.write_text("temperature=55\\n")
until("gpu_back")
recorder.close("stopped", "", StoppedEvent(reason="", step=0))
lines = [json.loads(line) for line in run.events_path.read_text().splitlines()]
print(json.dumps([[line["code"], line["message"]] for line in lines if line["type"] == "notice"]))
"""


def test_a_worker_shows_a_card_that_is_lost_and_comes_back(ask_driver: Ask, tmp_path: Path, private_home: Path) -> None:
    scenario = tmp_path / "driver.txt"
    scenario.write_text("")
    told = dict(ask_driver(WORKER, "", scenario))
    assert set(told) == {"xid_79", "gpu_lost", "gpu_back"}
    assert told["xid_79"].startswith("GPU 0 reports Xid 79: the card has fallen off the bus")
    assert told["gpu_lost"].startswith("GPU 0, NVIDIA GeForce RTX 4090, cannot be read: the GPU has fallen off the bus")
    assert told["gpu_back"] == "GPU 0, NVIDIA GeForce RTX 4090, can be read again."
