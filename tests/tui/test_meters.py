"""Meters of idle devices: jitter is not shown, and changes are, within a few readings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from core.hardware.snapshot import Device, GpuProcess
from tests.cases import cases
from tests.tui.conftest import CPU
from tests.tui.scripted_run import GPU, HOST
from tui.meters import LASTING, MeterReading, SteadyMeters

IDLE = replace(GPU, temperature_c=41.0, utilization=0.0, power_w=21.0, memory_used=1_000_000_000, fan=30.0)


def shown(devices: Sequence[Device], *, rests: bool = True, is_watched: bool = True) -> list[Device]:
    """The readings of one device that are shown one after the other, each once."""
    meters = SteadyMeters()
    found = [meters.follow(MeterReading([device]), rests=rests, is_watched=is_watched).devices[0] for device in devices]
    return [device for device, _ in itertools.groupby(found)]


def test_a_card_that_jitters_is_not_shown_anew() -> None:
    choose = random.Random(3)
    jitter = [
        replace(
            IDLE,
            temperature_c=choose.choice((41.0, 41.0, 42.0)),
            power_w=21.0 + choose.uniform(-4, 4),
            utilization=choose.uniform(0, 6),
            memory_used=1_000_000_000 + choose.randrange(40_000_000),
            clock=choose.choice((210.0, 225.0)),
            pcie_rx=choose.uniform(0, 1e6),
        )
        for _ in range(200)
    ]
    # Two warm readings after each other are as likely as not; three, which would be shown, are left out.
    runs = [list(group) for _, group in itertools.groupby(jitter, key=lambda device: device.temperature_c)]
    assert len(shown([IDLE, *itertools.chain(*(run[: LASTING - 1] for run in runs))])) == 1


def test_a_processor_that_jitters_is_not_shown_anew() -> None:
    loads = [3.0, 12.0, 0.0, 60.0, 2.0, 19.0, 55.0, 7.0, 90.0, 1.0]
    used = [4.0, 4.2, 4.4, 4.1, 4.5, 4.0, 4.3, 4.6, 4.4, 4.2]
    devices = [
        replace(CPU, utilization=load, memory_used=round(size * 1e9), temperature_c=50.0 + load / 12)
        for load, size in zip(loads, used, strict=True)
    ]
    assert shown(devices) == devices[:1]


@cases(
    "changes",
    [
        *({"temperature_c": 43.0}, {"temperature_c": 84.0}, {"memory_used": 1_100_000_000}),
        *({"utilization": 40.0}, {"power_w": 60.0}, {"problem": "The card is lost."}),
        *({"memory_temperature_c": None}, {"throttle_reasons": ["thermal slowdown"]}),
        *({"processes": [GpuProcess(7, 500_000_000, "game")]}, {"age_s": 20.0}),
    ],
)
@cases("is_watched", [True, False])
def test_what_has_changed_on_a_card_is_shown_at_once(changes: dict[str, object], is_watched: bool) -> None:
    changed = replace(IDLE, **changes)  # type: ignore[arg-type]
    assert shown([IDLE, changed, changed], is_watched=is_watched) == [IDLE, changed]


def test_a_small_change_is_shown_once_it_has_lasted() -> None:
    warmer = replace(IDLE, temperature_c=42.0)
    assert shown([IDLE, *[warmer] * (LASTING - 1)]) == [IDLE]
    # The same reading, passed again, does not count.
    meters, again = SteadyMeters(), MeterReading([warmer])
    meters.follow(MeterReading([IDLE]), rests=True)
    assert [meters.follow(again, rests=True).devices for _ in range(9)] == [[IDLE]] * 9
    assert shown([IDLE, *[replace(warmer) for _ in range(LASTING)]]) == [IDLE, warmer]


def test_a_load_that_lasts_and_memory_of_the_machine_that_fills_are_shown() -> None:
    busy = [replace(CPU, utilization=100.0) for _ in range(LASTING)]
    assert shown([CPU, *busy]) == [CPU, busy[0]]
    fuller, full = replace(CPU, memory_used=10_000_000_000), replace(CPU, memory_used=31_000_000_000)
    assert shown([CPU, fuller]) == [CPU, fuller]
    assert shown([CPU, fuller, full], is_watched=False) == [CPU, full]


def test_a_disk_that_fills_swap_and_energy_are_shown_where_a_card_stands_still() -> None:
    meters = SteadyMeters()
    cards = [IDLE]
    first = MeterReading(cards, replace(HOST, disk_free=100_000_000_000, swap_used=0), 100.0)
    assert meters.follow(first, rests=True) is first
    little = MeterReading(cards, replace(HOST, disk_free=97_000_000_000, swap_used=1_000_000), 101.0)
    assert meters.follow(little, rests=True) is first
    for changed in (
        MeterReading(cards, replace(HOST, disk_free=90_000_000_000, swap_used=0), 101.0),
        MeterReading(cards, replace(HOST, disk_free=90_000_000_000, swap_used=2_000_000_000), 101.0),
        MeterReading(cards, replace(HOST, disk_free=90_000_000_000, swap_used=2_000_000_000), 110.0),
    ):
        assert meters.follow(changed, rests=True) is changed


def test_whoever_comes_back_sees_the_newest_reading() -> None:
    meters = SteadyMeters()
    meters.follow(MeterReading([CPU]), rests=True)
    newest = MeterReading([replace(CPU, utilization=70.0)], HOST, 2.0)
    assert meters.follow(newest, rests=True, is_watched=False).devices == [CPU]
    assert meters.catch_up() is newest


def test_a_run_that_trains_shows_every_reading() -> None:
    devices = [replace(GPU, power_w=312.0 + number) for number in range(5)]
    assert shown(devices, rests=False) == devices


@given(st.lists(st.floats(30, 90), min_size=LASTING + 1, max_size=40))
def test_what_is_shown_of_a_temperature_is_never_far_off(degrees: list[float]) -> None:
    meters = SteadyMeters()
    for value in degrees:
        reading = MeterReading([replace(IDLE, temperature_c=value)])
        found = meters.follow(reading, rests=True, is_watched=False).devices[0].temperature_c
        assert found is not None
        assert abs(found - value) < 2
