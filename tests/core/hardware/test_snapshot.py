from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.hardware.snapshot import Device, GpuProcess, Host, Xid
from core.runs.record.events import HardwareEvent, decode_event, encode_event
from tests.core.runs.event_strategies import JSON
from tests.examples import examples

FULL = Device(
    index=1,
    kind="cuda",
    name="RTX",
    power_w=5.5,
    temperature_margin_c=-3.0,
    throttle_reasons=["power cap"],
    problem="hot",
    fans=[30.0, 40.0],
    pcie_width=16,
    pcie_tx=31e9,
    energy_j=4e10,
    processes=[GpuProcess(7, 5, "ollama", "anna"), GpuProcess(8, None)],
    xid=[Xid(79, 1795530960.5)],
    age_s=4.0,
)
MACHINE = Host(load=1.5, cores=[3.0, 100.0], ram_used=5, ram_total=9, swap_used=0, swap_total=0, cpu_power_w=65.5)


def test_devices_and_machine_survive_their_event() -> None:
    line = encode_event(HardwareEvent(devices=[FULL.to_dict()], host=MACHINE.to_dict()))
    event = decode_event(line)
    assert isinstance(event, HardwareEvent)
    assert Device.all_from(event.devices) == [FULL]
    assert Host.from_dict(event.host) == MACHINE
    earlier = decode_event('{"t": 1.0, "type": "hardware", "devices": []}')
    assert isinstance(earlier, HardwareEvent)
    assert Host.from_dict(earlier.host) is None


def test_damage_counts_as_not_reported() -> None:
    damaged: dict[str, Any] = {
        **FULL.to_dict(),
        "power_w": math.nan,
        "throttle_reasons": [1, "x"],
        "memory_used": -1,
        "problem": 1,
        "fans": ["30", 40.0],
        "pcie_width": 1.5,
        "pcie_tx": None,
        "energy_j": 1e300,
        "processes": [{"pid": "7"}, 5, {"pid": 9, "memory": "x", "name": 5}],
        "xid": [{"code": -1, "t": 0}, {"code": 79, "t": math.nan}, {"code": 79}],
        "age_s": "old",
        "temperature_margin_c": [],
    }
    assert Device.from_dict(damaged) == Device(
        index=1, kind="cuda", name="RTX", throttle_reasons=["x"], fans=[40.0], processes=[GpuProcess(9, None)]
    )
    broken: object
    for broken in ({}, {**damaged, "name": 5}, {**damaged, "index": "0"}, {**damaged, "index": -1}, [], None):
        with pytest.raises(TypeError):
            Device.from_dict(broken)


@settings(max_examples=examples(40))
@given(st.dictionaries(st.sampled_from([item.name for item in dataclasses.fields(Device)]), JSON))
def test_no_event_breaks_a_reader(values: dict[str, Any]) -> None:
    known = {"index": 0, "kind": "cuda", "name": "RTX", **values}
    line = json.dumps({"t": 1, "type": "hardware", "devices": [known], "host": {"load": values.get("fans")}})
    event = decode_event(line)
    assert isinstance(event, HardwareEvent)
    for device in Device.all_from(event.devices):
        assert Device.from_dict(device.to_dict()) == device
    assert Host.from_dict(event.host) is not None
