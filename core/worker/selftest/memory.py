"""Check of memory: measured peaks of three shapes against the plan; and calibration of the plan's constants."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import UserError
from core.memory.calibration import Calibration, read_calibration, write_calibration
from core.runs.record.events import MemoryEvent
from core.selftest.sizes import Shape
from core.units import format_bytes
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.worker_run import WorkerRun, shape_config
from core.worker.selftest.wrapped import CARD_VARIABLE, Footprint

#: Allowed difference of the measured peak from the predicted one: as a share, and in bytes in any case.
SHARE, LEAST = 0.15, 128 << 20
#: The second step has gradients, optimizer states and activations at once.
_STEPS = 2
#: Parts of a prediction for a card that the allocator's peak leaves out.
_OUTSIDE = ("fragmentation", "runtime")
#: Readings of the runtime on a card outside this range were disturbed by another program.
_RUNTIME_RANGE = (64 << 20, 4 << 30)


@dataclass(frozen=True)
class Peak:
    """The peak of a run: predicted and measured bytes, and its process's memory besides."""

    shape: Shape
    predicted: int
    measured: int
    footprint: Footprint | None

    @property
    def is_right(self) -> bool:
        """True if the prediction is within the allowed difference."""
        return abs(self.predicted - self.measured) <= max(SHARE * self.measured, LEAST)


def check(bench: Bench) -> Outcome:
    """Train two steps of each shape, compare the peaks, and keep the constants."""
    if "index" in bench.device:
        os.environ[CARD_VARIABLE] = str(bench.device["index"])
    peaks = [_measure(bench, number, shape) for number, shape in enumerate(bench.sizes.shapes, start=1)]
    said = "; ".join(_describe(peak) for peak in peaks)
    if not all(peak.is_right for peak in peaks):
        return Outcome("fail", f"{said}; {SHARE:.0%} or {format_bytes(LEAST)} is allowed.")
    torch_version = next((peak.footprint.torch for peak in peaks if peak.footprint is not None), "unknown")
    found = constants(peaks, bench.device, torch_version, datetime.date.today().isoformat())
    if found is None and "architecture" in bench.device:
        return Outcome(
            "fail", f"{said}. The constants of the plan could not be told apart, and none are assumed for AMD."
        )
    if found is None:
        return Outcome("pass", f"{said}. The constants of the plan could not be told apart, and stay as they are.")
    keep(found)
    shares = f" and {found.fragmentation:.1%} of fragmentation" if bench.is_cuda else ""
    return Outcome(
        "pass",
        f"{said}. The plan uses from now on what was measured here: {format_bytes(found.runtime_bytes)} for the "
        f"process without tensors{shares}.",
    )


def keep(found: Calibration) -> None:
    """Write constants over earlier ones.

    Raises:
        UserError: If they cannot be written.
    """
    try:
        write_calibration(found)
    except OSError as error:
        raise UserError(f"What was measured cannot be written: {error.strerror}.", "Make room.") from error


def _measure(bench: Bench, number: int, shape: Shape) -> Peak:
    config = shape_config(bench, shape, _STEPS)
    run = WorkerRun(bench, f"shape {number}", config, "measured")
    run.train()
    events = [event for event in run.events if isinstance(event, MemoryEvent)]
    predicted = next((event for event in events if event.predicted_bytes), None)
    if predicted is None or predicted.predicted_bytes is None:
        raise UserError("The run has no prediction of its memory.")
    measured = max(event.peak_bytes or 0 for event in events if event.device == predicted.device)
    total = predicted_total(predicted.predicted_bytes, cuda=bench.is_cuda)
    return Peak(shape, total, measured, Footprint.read(run.run.path))


def predicted_total(parts: Mapping[str, int], *, cuda: bool) -> int:
    """The predicted bytes to compare the measured peak with."""
    return sum(size for name, size in parts.items() if not (cuda and name in _OUTSIDE))


def _describe(peak: Peak) -> str:
    shape = peak.shape
    how = ", recomputed" if shape.recompute else ""
    return (
        f"{shape.rows} x {shape.length} {shape.method}{how}: {format_bytes(peak.measured)}, predicted "
        f"{format_bytes(peak.predicted)} ({peak.predicted / peak.measured - 1:+.0%})"
    )


def constants(peaks: Sequence[Peak], device: Mapping[str, object], torch: str, today: str) -> Calibration | None:
    """The plan's constants from the measurements; None where they are not determined.

    Args:
        peaks: Peaks of the runs.
        device: Facts about the device.
        torch: Version of torch.
        today: The date.
    """
    name, cuda = device.get("name"), device.get("kind") == "cuda"
    prints = [peak.footprint for peak in peaks if peak.footprint is not None]
    runtimes = [item.runtime_bytes for item in prints if item.runtime_bytes is not None]
    if cuda:
        low, high = _RUNTIME_RANGE
        runtimes = [item for item in runtimes if low <= item <= high]
    if not runtimes or not isinstance(name, str):
        return None
    # The runs repeat the same shapes, so the reserve beyond the tensors is fragmentation.
    shares = [
        item.reserved_bytes / item.allocated_bytes - 1
        for item in prints
        if item.reserved_bytes is not None and item.allocated_bytes
    ]
    fragmentation = min(max(statistics.median(shares), 0.0), 0.5) if shares else 0.0
    if cuda and not shares:
        return None
    before = read_calibration(name)
    return Calibration(
        device=name,
        # The maximum: kernels are loaded at their first use, and other configurations use others.
        runtime_bytes=max(runtimes) if cuda else int(statistics.median(runtimes)),
        fragmentation=fragmentation,
        torch=torch,
        measured=today,
        matrix_rate=before.matrix_rate if before is not None else None,
        memory_rate=before.memory_rate if before is not None else None,
        host_rate=before.host_rate if before is not None else None,
    )
