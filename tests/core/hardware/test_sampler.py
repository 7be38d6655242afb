from __future__ import annotations

import time

import pytest

from core.hardware.sampler import EnergyMeter, Reading, Sampler, read_device, snapshot
from core.hardware.snapshot import Device
from tests.core.hardware.conftest import Ask
from tests.core.runs.helpers import there
from tests.waiting import wait_for


def gpu(power: float | None, index: int = 0, joules: float | None = None, age: float | None = None) -> Device:
    return Device(index=index, kind="cuda", name="GPU", power_w=power, energy_j=joules, age_s=age)


def test_energy_is_counted_by_the_card_where_it_counts() -> None:
    meter = EnergyMeter()
    meter.add(Reading(0.0, [gpu(100, joules=5000.0)]))
    assert meter.watt_hours == 0
    meter.add(Reading(1.0, [gpu(100, joules=5000.0 + 7200)]))
    assert meter.watt_hours == pytest.approx(2)
    # The driver was loaded again.
    meter.add(Reading(2.0, [gpu(100, joules=10.0)]))
    # Old values are not counted twice, and energy used meanwhile is not lost.
    meter.add(Reading(3.0, [gpu(100, joules=10.0, age=1.0)], is_complete=False))
    meter.add(Reading(4.0, [gpu(100, joules=3610.0)]))
    assert meter.watt_hours == pytest.approx(3)


def test_energy_is_integrated_from_power_where_it_does_not() -> None:
    meter = EnergyMeter()
    for moment, first, second in ((0.0, 100, 0), (10.0, 300, 0), (20.0, 300, 360)):
        meter.add(Reading(moment, [gpu(first), gpu(second, 1)]))
    assert meter.watt_hours == pytest.approx((2000 + 3000 + 1800) / 3600)
    # A gap of an hour is unknown, not an hour at full power.
    meter.add(Reading(3620.0, [gpu(300), gpu(360, 1)]))
    assert meter.watt_hours == pytest.approx(6800 / 3600)
    meter = EnergyMeter()
    for moment in (0.0, 1.0):
        meter.add(Reading(moment, [gpu(None)]))
    assert meter.watt_hours is None, "nothing reports it"


def test_a_sampler_goes_on_by_itself_until_closed() -> None:
    sampler = Sampler(0.01)
    assert sampler.latest() == [] or sampler.age() is not None
    wait_for(lambda: sampler.latest())
    first = sampler._reading
    wait_for(lambda: sampler._reading is not first)
    assert 0 <= (sampler.age() or 0) < 20
    sampler.close()
    assert sampler.latest()
    sampler = Sampler(1000.0)
    for _ in range(5):
        asked = time.monotonic()
        assert sampler.refresh(20.0)
        assert sampler._reading.moment >= asked, "a refresh is newer than its call"
    sampler.close()
    assert all(0 < (device.memory_used or 0) <= (device.memory_total or 0) for device in snapshot(timeout=20.0))


def test_a_sensor_that_fails_leaves_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(0.01)
    wait_for(lambda: sampler.latest())

    def fail(_: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("core.hardware.cpu.Cpu.device", fail)
    wait_for(lambda: "Input/output error" in sampler.reason and sampler.latest()[0].age_s is not None)
    assert sampler.latest()[0].memory_total
    monkeypatch.undo()
    wait_for(lambda: sampler.latest()[0].age_s is None)
    assert not sampler.reason.startswith("The devices")
    sampler.close()


def test_a_machine_that_cannot_be_read_makes_no_cards_values_old(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware import sampler as module\n"
        "def fail(self): raise OSError(5, 'broken')\nmodule.HostReader.read = fail\n"
        "sampler = module.Sampler(1000.0)\ndevices = sampler.refresh(20.0)\n"
        "print(json.dumps([[device.age_s for device in devices], sampler.age() < 20, sampler.host(), sampler.reason]))"
    )
    ages, is_fresh, host, reason = ask_driver(program)
    assert (ages, is_fresh, host) == ([None, None], True, None)
    assert "broken" in reason


def test_a_driver_that_hangs_holds_nobody_up(ask_driver: Ask) -> None:
    program = (
        "import json, time\nfrom core.hardware.sampler import Sampler, snapshot\n"
        "started = time.monotonic()\nfound = [snapshot(0.2), snapshot(0.2)]\nsampler = Sampler(0.01)\n"
        "found.append(sampler.latest())\n"
        "wait = time.monotonic() + 20\n"
        "while sampler.host() is None and time.monotonic() < wait: time.sleep(0.01)\n"
        "print(json.dumps([found, time.monotonic() - started, sampler.age(), sampler.host().to_dict()]))\n"
    )
    found, seconds, age, host = ask_driver(program, "hang")
    assert found == [[], [], []]
    assert seconds < 15
    assert age is None
    # The machine is read all the same.
    assert host["ram_total"] > 0


def test_gpus_come_before_the_cpu_and_their_energy_is_counted(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.sampler import Sampler\nsampler = Sampler(1000.0)\n"
        "kinds = [device.kind for device in sampler.refresh(20.0)]\n"
        "first = sampler.energy_wh\nsampler.refresh(20.0)\n"
        "print(json.dumps([kinds, sampler.energy_wh - first, sampler.reason]))\n"
    )
    assert ask_driver(program) == [["cuda", "cuda"], 1.0, ""]
    kinds = ask_driver(program.replace("sampler.energy_wh - first", "sampler.energy_wh"), "mismatch")
    assert kinds[0] == ["cpu"]
    assert kinds[1] is None
    assert "different versions" in kinds[2]


def test_the_device_of_a_run_is_the_one_that_it_is_given() -> None:
    for wanted in ("cpu", "auto"):
        device = there(read_device(wanted))
        assert device.kind == "cpu"
    assert read_device("cuda") is None, "nothing trains on the CPU in the place of a card that is not there"
    assert read_device("auto", gpu="7") is None
