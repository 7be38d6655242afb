"""Check of speed: tokens per second, and their share of the device's matrix rate."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from core.memory.calibration import read_calibration
from core.models.architecture.measuring import load_architecture
from core.models.find import locate_model
from core.units import format_rate
from core.worker.selftest.check import Bench, Outcome
from core.worker.selftest.memory import keep
from core.worker.selftest.worker_run import WorkerRun, shape_config

#: Steps before the measured ones: kernels are chosen and memory is allocated.
_WARM_UP = 2
#: Products and copies per measured rate; the fastest count, since other work only takes time away.
_TRIES = 7
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
    shape, steps = bench.sizes.speed, bench.sizes.speed_steps
    run = WorkerRun(bench, "speed", shape_config(bench, shape, _WARM_UP + steps))
    run.train()
    measured = run.steps[_WARM_UP:]
    speed = sum(event.tokens for event in measured) / sum(event.seconds for event in measured)
    bench.tell("multiplying matrices", None, None)
    rates = measure(bench)
    model = load_architecture(locate_model(bench.sizes.model))
    # Matrix products for a learned token, where only adapters are trained: forward, and backward to the inputs.
    # Attention and adapters are left out.
    rate = speed * 4.0 * (model.linear_weights + model.vocabulary * model.hidden)
    keep_rates(str(bench.device.get("name") or ""), rate, rates)
    return Outcome(
        "pass",
        f"{format_rate(speed)} in {shape.rows} x {shape.length} tokens, {describe_share(rate, rates)}.",
    )


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
    """The rates of the device, in the dtype of a run."""
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
    product = best_seconds(lambda: torch.mm(left, right, out=out), wait)
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
