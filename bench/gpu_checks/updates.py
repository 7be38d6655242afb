"""Checks of the update: waits for the device, stochastic rounding, the 8-bit optimizer, and the first margin."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu_checks.models import EIGHT, ONE, WIDE
from bench.gpu_checks.subjects import Found
from bench.gpu_checks.trainer import Stand, trainer
from core.config.schema import TrainSection
from core.worker.oom.retry import Retry
from core.worker.optim.optim import is_blockwise, make_optimizer
from core.worker.optim.rounding import add_update, choose_kernels
from core.worker.optim.update import RetryableStep
from core.worker.process.determinism import restore_rng, rng_state
from core.worker.selftest.speed import best_seconds

#: Waits of a step that are known: for the masks, the loss and the norm. Updates inside backward have one more.
WAITS = 3
IN_BACKWARD = "full, in backward"
#: Bias of rounding, as a share of the value.
BIAS = 1e-3
RANK = 16


def _wait(stand: Stand) -> Callable[[], Any]:
    return torch.cuda.synchronize if stand.is_cuda else lambda: None


def check_9(stand: Stand) -> Found:
    """Count the waits of a step, for each kind of update."""
    cases: dict[str, dict[str, Any]] = {
        "adamw": {},
        "adamw_8bit": {"train.optimizer": "adamw_8bit"},
        IN_BACKWARD: {"method.name": "full", "train.optimizer": "adamw_8bit"},
    }
    figures: dict[str, Any] = {}
    rows = stand.rows([min(stand.length, 512)] * 2)
    for name, options in cases.items():
        with trainer(stand, stand.config(WIDE, rows, {"train.batch_size": 2, **options})) as made:
            made.steps(2)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    made.step()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        waits = [
            f"{told.filename.rpartition('/')[2]}:{told.lineno}"
            for told in caught
            if "synchronizing" in str(told.message)
        ]
        figures[name] = {"waits": len(waits), "places": sorted(set(waits))}
    counts = {name: case["waits"] for name, case in figures.items()}
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    known = {name: WAITS + (name == IN_BACKWARD) for name in cases}
    fine = all(count <= known[name] for name, count in counts.items())
    return Found(
        "pass" if fine else "fail",
        f"Waits of a step: {said}; {WAITS} are known, and {known[IN_BACKWARD]} where weights are updated in backward.",
        figures,
    )


def check_13(stand: Stand) -> Found:
    """Round many weights, one value a million times, and the same again, as a run on this device does."""
    device = torch.device("cuda" if stand.is_cuda else "cpu")
    told: list[str] = []
    kernels = choose_kernels(device, lambda _code, message, _hint: told.append(message))

    def add(weights: torch.Tensor, update: torch.Tensor) -> None:
        if kernels is None:
            add_update(weights, update)
        else:
            kernels.add_update(weights, update, keep=1.0, seed=int(torch.randint(1 << 31, ())))

    count = 200_000 if stand.tiny else 200_000_000
    weights = torch.full((count,), 1.0, dtype=torch.bfloat16, device=device)
    update = torch.full((count,), 1e-4, dtype=torch.bfloat16, device=device)
    seconds = best_seconds(lambda: add(weights, update), _wait(stand))
    value = 1.0 + 0.3 * 2**-7
    torch.manual_seed(1)

    def rounded() -> torch.Tensor:
        ones = torch.ones(1_000_000, dtype=torch.bfloat16, device=device)
        add(ones, torch.full((1_000_000,), value - 1.0, device=device))
        return ones

    before = rng_state()
    first = rounded()
    restore_rng(before)
    again = torch.equal(first, rounded())
    bias = abs(float(first.double().mean()) - value) / value
    figures = {
        "seconds_per_1e9": seconds / count * 1e9,
        "seconds_8b": seconds / count * 8e9,
        "bias": bias,
        "again": again,
        "kernel": kernels is not None,
    }
    fine = bias <= BIAS and again and not told
    repeat = "it can be repeated" if again else "it is another one after the random state was put back"
    return Found(
        "pass" if fine else "fail",
        f"{figures['seconds_per_1e9']:.3f} s for 1e9 weights; off by {bias:.1g} in the mean; {repeat}."
        + "".join(f" {message}" for message in told),
        figures,
    )


def check_16(stand: Stand) -> Found:
    """Step the adapters of 8B, by bitsandbytes' own step and by the one of runs."""
    device = torch.device("cuda" if stand.is_cuda else "cpu")
    train = TrainSection(optimizer="adamw_8bit")
    seconds = {}
    for name in ("raw", "ours"):
        parameters = _adapters(stand, device)
        optimizer = make_optimizer(parameters, train)
        if not is_blockwise(optimizer):
            raise ValueError("adamw_8bit is not bitsandbytes' optimizer.")
        step = optimizer.step if name == "raw" else RetryableStep(optimizer, Retry())
        seconds[name] = best_seconds(step, _wait(stand))
    figures = {"raw_seconds": seconds["raw"], "ours_seconds": seconds["ours"], "tensors": len(parameters)}
    return Found(
        "measured",
        f"{len(parameters)} adapters: {1000 * seconds['ours']:.1f} ms a step as runs do it, "
        f"{1000 * seconds['raw']:.1f} by bitsandbytes' own.",
        figures,
    )


def _adapters(stand: Stand, device: torch.device) -> list[torch.nn.Parameter]:
    """Adapters of all linear layers, with gradients."""
    made = []
    for outputs, inputs in stand.shape(EIGHT).adapted:
        for shape in ((RANK, inputs), (outputs, RANK)):
            parameter = torch.nn.Parameter(torch.zeros(shape, device=device))
            parameter.grad = torch.full_like(parameter, 1e-3)
            made.append(parameter)
    return made


def check_18(stand: Stand) -> Found:
    """Train on preferences, and look at the margins before the first update."""
    margins = {}
    cases = {"2 of 12": (2, 12), "4 of 24": (4, 24)} if stand.tiny else {"2 of 40": (2, 40), "8 of 200": (8, 200)}
    began = time.monotonic()
    for name, (count, words) in cases.items():
        rows = [
            {
                "prompt": _words(3 * number, words // 4),
                "chosen": _words(5 + 7 * number, words),
                "rejected": _words(11 + 13 * number, words),
            }
            for number in range(count)
        ]
        options = {
            "train.objective": "dpo",
            "train.batch_size": count,
            "template.name": "vicuna",
            "data.format": "preference",
        }
        with trainer(stand, stand.config(ONE, stand.jsonl(rows), options)) as made:
            margins[name] = made.step().reward_margin
    figures = {"margins": margins, "seconds": time.monotonic() - began}
    said = ", ".join(f"{name}: {margin}" for name, margin in margins.items())
    fine = all(margin == 0 for margin in margins.values())
    return Found("pass" if fine else "fail", f"Margins of pairs by tokens before the first update: {said}.", figures)


def _words(first: int, count: int) -> str:
    return " ".join(f"w{3 + (first + 17 * place) % 390}" for place in range(count))
