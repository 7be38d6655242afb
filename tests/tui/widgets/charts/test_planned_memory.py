from __future__ import annotations

from dataclasses import replace

from core.hardware.snapshot import Device, GpuProcess
from core.runs.record.events import MemoryEvent
from tui.widgets.charts.device_panel import PlannedMemory, planned_memory

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
