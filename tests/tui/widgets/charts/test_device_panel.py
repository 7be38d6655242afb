"""Meters of devices in the room that there is, their planned memory, and small figures of blocks."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from core.analysis.result import Bucket
from core.hardware.snapshot import Device, GpuProcess, Host
from core.runs.record.events import MemoryEvent
from tests.cases import cases
from tests.examples import examples
from tests.tui.scripted_run import GPU, HOST
from tui.glyphs import ASCII, BRAILLE
from tui.widgets.charts.bars import draw_histogram, sparkline
from tui.widgets.charts.device_panel import (
    WIDE,
    Around,
    PlannedMemory,
    all_readings,
    device_lines,
    host_line,
    planned_memory,
)

FULL = replace(
    GPU,
    temperature_limit_c=87.0,
    memory_temperature_limit_c=95.0,
    temperature_slowdown_c=89.0,
    temperature_shutdown_c=94.0,
    pcie_width=8,
    pcie_tx=1e5,
    pcie_rx=2.5e9,
    processes=[GpuProcess(10, 17_000_000_000, "python", "me"), GpuProcess(77, 1_200_000_000, "ollama", "anna")],
    throttle_reasons=["power cap"],
)
AROUND = Around(lambda _: PlannedMemory(19_100_000_000, 20_300_000_000), HOST, 10, is_detailed=True)
#: Devices of all kinds of readings.
DEVICES = st.builds(
    Device,
    index=st.integers(0, 11),
    kind=st.sampled_from(["cuda", "rocm", "cpu"]),
    name=st.sampled_from(["RTX", "\x1b[31m" * 40]),
    temperature_c=st.none() | st.floats(-10, 130),
    temperature_limit_c=st.none() | st.floats(0, 255),
    memory_temperature_c=st.none() | st.floats(1, 130),
    memory_used=st.none() | st.integers(0, 200 * 10**9),
    memory_total=st.none() | st.integers(0, 200 * 10**9),
    utilization=st.none() | st.floats(0, 100),
    power_w=st.none() | st.floats(0, 1500),
    power_limit_w=st.none() | st.floats(0, 1500),
    fans=st.lists(st.floats(0, 100), max_size=3),
    clock=st.none() | st.floats(0, 9000),
    pcie_generation=st.none() | st.integers(1, 6),
    pcie_width=st.none() | st.integers(1, 16),
    processes=st.lists(st.builds(GpuProcess, st.integers(1, 9), st.none() | st.integers(0, 10**11)), max_size=3),
    throttle_reasons=st.lists(st.sampled_from(["power cap", "hardware thermal slowdown", "\x1b" * 90]), max_size=4),
    problem=st.sampled_from(["", "the GPU has fallen off the bus; " * 5]),
)


def text_of(device: Device, width: int, around: Around = AROUND) -> list[str]:
    return [line.plain for line in device_lines(device, width, BRAILLE, around=around)]


@settings(max_examples=examples(60))
@given(DEVICES, st.integers(58, 196), st.booleans())
def test_no_reading_is_wider_than_the_pane(device: Device, width: int, detailed: bool) -> None:
    around = replace(AROUND, is_detailed=detailed)
    if width < 76:
        # Below 76 columns, the least width of the pane, a line with every value may be longer.
        device = replace(device, memory_total=24 * 10**9, memory_used=None, kind="cuda")
    for line in device_lines(device, width, BRAILLE, several=True, around=around):
        assert line.cell_length <= width or width < WIDE, line.plain
    assert host_line(HOST, ASCII, width).cell_length <= width


def test_a_narrow_pane_has_a_word_for_each_state_and_a_room_for_the_word() -> None:
    states: dict[str, Device] = {
        "ok": FULL,
        "! near": replace(FULL, temperature_c=84.0),
        "! limit": replace(FULL, temperature_c=86.6),
        "mem  95 °C": replace(FULL, memory_temperature_c=95.0),
        "! held back": replace(FULL, throttle_reasons=["power cap", "hardware thermal slowdown"]),
    }
    for word, device in states.items():
        above, below = text_of(device, 56)
        assert word in above
        assert above.endswith(" 312/450 W  load  98%")
        assert below.rstrip() == "VRAM ━━━━━━┊─ 18.2/24.0 GB  76%"
        (line,) = text_of(device, 76)
        assert word in line
        assert line.index("VRAM ━━━━━┊ 18.2/24.0 GB  76% ") == 27
        assert line.endswith("312/450 W")
    assert text_of(replace(FULL, memory_used=19_104_000_000), 56)[1].endswith(" 80% ! near ")
    assert text_of(replace(FULL, memory_used=22_704_000_000), 76)[0].endswith(" 95% ! limit  312/450 W")
    assert "held back" not in text_of(FULL, 76)[0]
    assert "held back: power cap" in text_of(replace(FULL, power_w=None, utilization=None), 95)[0]


def test_limits_of_temperatures_have_their_unit_where_there_is_room() -> None:
    wide = text_of(replace(FULL, temperature_c=60.0, temperature_limit_c=83.0), 196)[0]
    assert "ok, limit 83 °C" in wide
    hot = text_of(replace(FULL, temperature_c=84.0), 196)[0]
    assert hot.index("VRAM") == wide.index("VRAM")
    limits = replace(FULL, temperature_slowdown_c=90.0, temperature_shutdown_c=93.0)
    readings = all_readings([limits], 120, BRAILLE, AROUND)
    assert any("slows down at 90 °C, off at 93 °C" in line.plain for line in readings)


@cases("width", [96, 116, 196])
def test_the_words_of_a_wide_pane_have_their_room(width: int) -> None:
    for share, word in ((0.794, ""), (0.796, "! near limit"), (0.944, "! near limit"), (0.946, "! at limit")):
        device = replace(FULL, memory_used=round(share * 24e9), memory_temperature_c=71.0 + 25 * (share > 0.8))
        first, second = text_of(device, width, replace(AROUND, is_detailed=False))
        assert len(first) <= width
        assert first.rstrip().endswith(f"{share:.0%}  plan 19.1 GB {word}".rstrip())
        assert f"memory  {71 + 25 * (share > 0.8)} °C{' ! at limit' * (share > 0.8)}  " in second


def test_a_large_pane_shows_a_narrow_bus_what_holds_it_back_and_other_programs() -> None:
    text = "\n".join(text_of(FULL, 196))
    for part in ("PCIe 4.0 ×8 of 4.0 ×16", "held back by: power cap", "also on it: ollama of anna 1.2 GB"):
        assert part in text, part
    assert "python" not in text, "the run's own process"
    two = text_of(replace(FULL, processes=[*FULL.processes, GpuProcess(5, None)]), 196)
    assert "ollama of anna 1.2 GB and 1 more" in "\n".join(two)


def test_the_line_of_the_machine_leaves_out_what_a_device_shows_and_what_is_unknown() -> None:
    assert "RAM" not in host_line(HOST, BRAILLE, 120, has_cpu=True).plain
    assert host_line(Host(), BRAILLE, 120).plain == "host  load –   RAM –   disk –   CPU –"
    assert host_line(replace(HOST, cores=[50.0] * 128), BRAILLE, 196).plain.count("▅") == 32


def test_what_is_not_reported_is_a_dash_and_never_nothing() -> None:
    bare = Device(index=0, kind="cuda", name="GRID")
    text = "\n".join(text_of(bare, 106))
    for part in ("temperature –", "VRAM –", "– W", "util    –", "fan    –", "PCIe –", "held back by: nothing"):
        assert part in text, part
    assert "0" not in text.replace("GPU 0", "")


def test_a_lost_card_says_why() -> None:
    lost = replace(FULL, problem="the GPU has fallen off the bus; reboot, and check its cooling")
    assert text_of(lost, 106) == [
        "GPU 0  NVIDIA GeForce RTX 4090: the GPU has fallen off the bus; reboot, and check its cooling"
    ]
    assert text_of(lost, 76) == ["GPU 0  the GPU has fallen off the bus; reboot, and check its cooling"]
    assert len(text_of(lost, 60)[0]) == 60


@cases(
    ("used", "planned", "bar"),
    [
        *((0, 13, "....:..."), (6, 13, "##..:..."), (13, 13, "####:..."), (24, 13, "####:###")),
        *((24, 0, "########"), (0, 0.02, ":......."), (0, 24, ".......:"), (0, 29, "........")),
    ],
)
def test_the_mark_of_the_plan_takes_a_cell_of_the_bar(used: int, planned: float, bar: str) -> None:
    device = replace(GPU, memory_used=used * 10**9)
    around = Around(lambda _: PlannedMemory(1, round(planned * 10**9)))
    assert f"VRAM {bar} " in device_lines(device, 56, ASCII, around=around)[1].plain


CARD = Device(index=0, kind="cuda", name="RTX", memory_used=9, memory_total=24_000)
CPU = Device(index=0, kind="cpu", name="CPU", memory_used=9, memory_total=64_000)
PARTS = {"weights": 5_000, "activations": 1_000, "weights_file": 700}


def test_of_a_card_other_programs_are_added() -> None:
    memory = {
        "cpu": MemoryEvent(device="cpu", peak_bytes=3),
        "cuda:0": MemoryEvent(device="cuda:0", predicted_bytes=PARTS),
    }
    # Without memory that the system can reclaim.
    assert planned_memory(memory, CARD, 7) == PlannedMemory(6_000, 6_000)
    shared = replace(CARD, processes=[GpuProcess(7, 5_000), GpuProcess(8, 400), GpuProcess(9, None)])
    assert planned_memory(memory, shared, 7) == PlannedMemory(6_000, 6_400)
    assert planned_memory(memory, CPU, 7) is None


def test_of_the_cpu_what_others_held_is_added() -> None:
    memory = {"cpu": MemoryEvent(device="cpu", predicted_bytes=PARTS, limit_bytes=60_000)}
    assert planned_memory(memory, CPU, 7) == PlannedMemory(6_000, 10_000)
    memory = {"cpu": MemoryEvent(device="cpu", predicted_bytes=PARTS)}
    assert planned_memory(memory, CPU, None) == PlannedMemory(6_000, 6_000)


def test_without_a_plan_or_a_meter_there_is_no_figure() -> None:
    assert planned_memory({}, CARD, 7) is None
    assert planned_memory({"cuda:0": MemoryEvent(device="cuda:0", peak_bytes=5)}, CARD, 7) is None
    memory = {"cuda:0": MemoryEvent(device="cuda:0", predicted_bytes=PARTS)}
    assert planned_memory(memory, replace(CARD, memory_total=None), 7) is None


def test_a_histogram_has_evenly_spaced_labels_and_every_bar() -> None:
    buckets = [Bucket(low, low + 80, 57 if not low else 0) for low in range(0, 1280, 80)]
    axis = draw_histogram(buckets, 76, 5)[-1]
    places = [match.start() for match in re.finditer(r"[\d,]+", axis)]
    assert len(places) > 4
    assert len({after - before for before, after in itertools.pairwise(places)}) == 1
    assert "1,120 tokens" in axis
    lines = draw_histogram([Bucket(0, 10, 1000), Bucket(10, 20, 0), Bucket(20, 30, 1)], 40, 4)
    assert lines[0].startswith("1,000┤███")
    assert "▁" in lines[3], "every bar that has rows is seen"
    assert all(len(line) <= 40 for line in lines[:5])
    assert draw_histogram([], 40, 4) == []


@cases(
    ("values", "width", "shown"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([3.0, 1.0, 1.0], 9, "█▁▁"),
        ([2.0, 2.0], 9, "▁▁"),
        ([1.0, math.nan, 2.0], 9, "▁ █"),
        (list(range(101)), 3, "▁▅█"),
        ([math.nan], 3, " "),
        ([], 3, ""),
        ([1.0], 0, ""),
    ],
)
def test_values_are_bars(values: list[float], width: int, shown: str) -> None:
    assert sparkline(values, width, BRAILLE) == shown


@given(st.lists(st.floats(), max_size=40), st.integers(0, 20))
def test_any_values_are_drawn(values: list[float], width: int) -> None:
    text = sparkline(values, width, ASCII)
    assert len(text) == min(len(values), width)
    assert text.isascii()


@cases("device", [GPU, CPU])
@cases("width", [56, 76, 96, 116, 190])
def test_a_stale_reading_keeps_its_values_and_has_its_age_in_place_of_the_word(device: Device, width: int) -> None:
    fresh = device_lines(device, width, BRAILLE)
    stale = device_lines(device, width, BRAILLE, around=Around(age="55s old"))
    assert len(stale) == len(fresh)
    words = {"ok", "ok,", "limit"}
    for now, before in zip(stale, fresh, strict=True):
        assert now.cell_length <= width
        assert {word for word in before.plain.split() if word not in words} <= {*now.plain.split(), "83"}
    assert "55s old" in "\n".join(line.plain for line in stale)
