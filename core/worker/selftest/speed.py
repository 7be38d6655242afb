"""Check of speed: tokens per second, and their share of the device's matrix rate.

On a card both are what it keeps up: after half a minute of work it is warm, and as fast as its power limit allows.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.hardware.nvml import NvmlUnavailableError
from core.hardware.snapshot import Device
from core.memory.calibration import read_calibration
from core.models.architecture.measuring import load_architecture
from core.models.find import locate_model
from core.runs.record.events import StepEvent
from core.units import format_rate
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.driver import Meters
from core.worker.selftest.memory import keep
from core.worker.selftest.worker_run import WorkerRun, shape_config

#: Steps before the measured ones: kernels are chosen and memory is allocated.
_WARM_UP = 2
#: Steps of a run that is stopped after some time.
_MOST_STEPS = 1_000_000
#: Products and copies per measured rate; the fastest count, since other work only takes time away.
_TRIES = 7
#: Products between two looks at the clock, where a rate is measured for some time.
_BATCH = 16
#: Share of a measured time that counts, at its end.
LAST_PART = 1 / 3
#: Seconds between two readings of the power, and share of its limit from which it is reached.
_READING_SECONDS, _REACHED = 1.0, 0.95
#: Bytes of a copy.
_COPIED = 512 << 20


@dataclass(frozen=True)
class Rates:
    """Rates of a device: floating-point operations and bytes per second, and the dtype of the former.

    ``host`` is bytes per second from pinned host memory; None on a CPU, or where none can be pinned.
    """

    matrix: float
    memory: float
    dtype: str
    host: float | None = None


def check(bench: Bench) -> Outcome:
    """Train steps of one shape, and multiply matrices."""
    shape, steps, seconds = bench.sizes.speed, _WARM_UP + bench.sizes.speed_steps, bench.sizes.speed_seconds
    config = shape_config(bench, shape, steps)
    watch = PowerWatch(seconds, bench.device.get("index"))
    if seconds:
        # The same rows again and again, without an evaluation or a checkpoint in between.
        config = config.with_options(train={"max_steps": _MOST_STEPS}, checkpoint={"every_steps": _MOST_STEPS})
    run = WorkerRun(bench, "speed", config)
    run.train(stop_when=watch.is_over if seconds else None)
    speed = sustained(run.steps[_WARM_UP:], seconds)
    bench.tell("multiplying matrices", None, None)
    rates = measure(bench)
    model = load_architecture(locate_model(bench.sizes.model))
    # Matrix products for a learned token, where only adapters are trained: forward, and backward to the inputs.
    # Attention and adapters are left out.
    rate = speed * 4.0 * (model.linear_weights + model.vocabulary * model.hidden)
    keep_rates(str(bench.device.get("name") or ""), rate, rates)
    return Outcome(
        "pass",
        f"{format_rate(speed)} in {shape.rows} x {shape.length} tokens{watch.words}, {describe_share(rate, rates)}.",
    )


def sustained(steps: Sequence[StepEvent], seconds: float) -> float:
    """Tokens per second of the last part of a measured time.

    Args:
        steps: The steps, in order.
        seconds: The measured time; 0 to count all steps.
    """
    counted: list[StepEvent] = []
    for step in reversed(steps):
        counted.append(step)
        if seconds and sum(each.seconds for each in counted) >= LAST_PART * seconds:
            break
    return sum(step.tokens for step in counted) / sum(step.seconds for step in counted)


@dataclass
class PowerWatch:
    """The end of a run that is measured for some time, and the power of the card in the last part of it.

    Args:
        seconds: The time.
        index: The card's index at its driver; None where unknown.
        read: Reads its meters.
        clock: Monotonic clock in seconds.
    """

    seconds: float
    index: int | None
    read: Callable[[int], Meters] = Meters.read
    clock: Callable[[], float] = time.monotonic
    readings: list[Device] = field(default_factory=list)
    _next: float = 0.0

    def is_over(self, steps: Sequence[StepEvent]) -> bool:
        """True if the steps after the warm-up have taken the time."""
        taken = sum(step.seconds for step in steps[_WARM_UP:])
        if taken >= (1 - LAST_PART) * self.seconds and self.clock() >= self._next:
            self._next = self.clock() + _READING_SECONDS
            with contextlib.suppress(NvmlUnavailableError):
                device = self.read(self.index).device if self.index is not None else None
                self.readings += [device] if device is not None else []
        return taken >= self.seconds

    @property
    def words(self) -> str:
        """The power and whether it is at its limit, as the end of a clause; empty on a CPU."""
        if not self.seconds:
            return ""
        known = [(item.power_w, item.power_limit_w) for item in self.readings if item.power_w is not None]
        if not known:
            return f" over the last {LAST_PART * self.seconds:.0f} s, at a power that cannot be read"
        power, limit = statistics.median(power for power, _ in known), known[-1][1]
        capped = [item for item in self.readings if "power cap" in item.throttle_reasons]
        is_reached = len(capped) > len(self.readings) / 2 or (limit is not None and power >= _REACHED * limit)
        of = "" if limit is None else f" of {limit:.0f}"
        where = "at its power limit" if is_reached else "below its power limit"
        return f" over the last {LAST_PART * self.seconds:.0f} s, {where} ({power:.0f}{of} W)"


def keep_rates(name: str, rate: float, rates: Rates) -> None:
    """Keep the rates with the device's calibration, if it has one and they were undisturbed.

    Args:
        name: Name of the device.
        rate: Floating-point operations per second of training's matrix products.
        rates: The device's rates.

    Raises:
        UserError: If they cannot be written.
    """
    known = read_calibration(name)
    if known is None or rate > rates.matrix:
        return
    # The plan's estimates are of 16-bit products.
    matrix = known.matrix_rate if rates.dtype == "fp32" else rates.matrix
    keep(replace(known, matrix_rate=matrix, memory_rate=rates.memory, host_rate=rates.host or known.host_rate))


def describe_share(rate: float, rates: Rates) -> str:
    """The share of the device's matrix rate that training reaches, as a clause.

    Args:
        rate: Floating-point operations per second of its matrix products.
        rates: The device's rates, measured after it.
    """
    measured = f"{rates.matrix / 1e12:.2f} TFLOPS; {rates.memory / 1e9:.0f} GB/s of memory"
    if rate > rates.matrix:
        # A share above 1: the two were not measured under the same conditions.
        return (
            f"which is more than {rates.dtype} matrix products did by themselves right after it ({measured}): "
            "something else used the device"
        )
    return f"{rate / rates.matrix:.0%} of what its {rates.dtype} matrix products could do ({measured})"


def measure(bench: Bench) -> Rates:
    """The rates of the device, in the dtype of a run; on a card that of products is what it keeps up."""
    from core.worker.process import environment

    environment.prepare()
    import torch

    from core.worker.model.device import choose_device, choose_dtype

    device = choose_device(bench.sizes.device)
    dtype = choose_dtype("auto", device)
    edge = bench.sizes.matrix
    left, right = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = bench.sizes.speed_seconds
    multiply = lambda: torch.mm(left, right, out=out)  # noqa: E731
    product = sustained_seconds(multiply, wait, seconds) if seconds else best_seconds(multiply, wait)
    # Larger than any cache.
    source = torch.ones(_COPIED, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), wait)
    host = None
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            pinned = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
            host = _COPIED / best_seconds(lambda: target.copy_(pinned, non_blocking=True), wait)
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return Rates(2.0 * edge**3 / product, 2.0 * _COPIED / copy, names[dtype], host)


def sustained_seconds(
    work: Callable[[], Any], wait: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The mean duration of some work in the last part of a time of doing nothing else.

    Args:
        work: Starts it.
        wait: Waits until it is done.
        seconds: The time.
        clock: Monotonic clock in seconds.
    """
    began = clock()
    ends = [began]
    while ends[-1] - began < seconds:
        for _ in range(_BATCH):
            work()
        wait()
        ends.append(clock())
    first = next(place for place, end in enumerate(ends) if end >= ends[-1] - LAST_PART * seconds)
    first = min(first, len(ends) - 2)
    return (ends[-1] - ends[first]) / ((len(ends) - 1 - first) * _BATCH)


def best_seconds(work: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """The median of the faster half of some tries, after one warm-up."""
    work()
    wait()
    taken = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - began)
    return max(statistics.median(sorted(taken)[: _TRIES // 2 + 1]), 1e-9)
