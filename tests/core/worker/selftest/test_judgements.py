"""Judgements of the self-test's checks, without a card or a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.hardware.card import Card
from core.hardware.snapshot import Device
from core.memory.calibration import Calibration, read_calibration, write_calibration
from core.runs.record.events import NoticeEvent
from core.selftest.sizes import Shape
from core.worker.fused.trial import Trial
from core.worker.selftest import driver, fast_paths, memory, speed, training
from core.worker.selftest.driver import TorchCard
from core.worker.selftest.memory import Peak, constants
from core.worker.selftest.wrapped import Footprint
from tests.cases import cases
from tests.core.runs.helpers import there

GB = 10**9
UUID = "01234567-89ab-cdef-0123-456789abcdef"
SEEN = TorchCard("RTX 4090", UUID, 25 * GB, 23 * GB)
PLANNED = Card("RTX 4090", 25_700_000_000, (8, 9), 1, f"GPU-{UUID}")
DEVICE = Device(
    index=1,
    kind="cuda",
    name="RTX 4090",
    temperature_c=41.0,
    temperature_limit_c=83.0,
    memory_used=1 * GB,
    memory_total=25_700_000_000,
    memory_free=int(23.1 * GB),
    power_limit_w=450.0,
)


def judged(planned: Card = PLANNED, device: Device | None = DEVICE) -> tuple[str, str]:
    outcome = driver.judge(SEEN, planned, device, (150.0, 600.0), {"kind": "cuda"})
    assert outcome.device == {"kind": "cuda"}
    return outcome.result, outcome.detail


@cases(
    ("changed", "said"),
    [
        ({"planned": replace(PLANNED, uuid="GPU-ffffffff-0000", name="RTX 3060")}, "of another card, RTX 3060"),
        ({"device": replace(DEVICE, memory_free=20 * GB)}, "20.0 GB free and 23.0 GB"),
        ({"device": replace(DEVICE, memory_total=12 * GB)}, "12.0 GB in all and 25.0 GB"),
        ({"device": replace(DEVICE, memory_total=None)}, "NVML does not tell it"),
        ({"device": replace(DEVICE, temperature_limit_c=None)}, "GB by NVML; the temperature at which it slows"),
        ({"device": replace(DEVICE, problem="it must be reset")}, "it must be reset"),
        ({"device": None}, "it is not listed"),
    ],
)
def test_readings_of_another_card_or_none_fail(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "may_set_power", lambda: False)
    result, passed = judged()
    assert result == "pass"
    assert passed.startswith("The same card by its UUID, 23.0 GB of 25.0 GB free by torch and 23.1 GB by NVML")
    assert passed.endswith("power limit 450 W, which root alone may set from 150 to 600 W.")
    result, detail = judged(**changed)
    assert result == "fail"
    assert said in detail


def test_a_card_that_torch_does_not_use_fails() -> None:
    assert driver.judge_cpu(None, {}).result == "not applicable"
    found = driver.judge_cpu(PLANNED, {})
    assert found.result == "fail"
    assert "RTX 4090" in found.detail


def test_trials_are_reported_by_the_worst() -> None:
    good = Trial("RMS norm", torch.float32, 1e-6, 1e-5)
    near = Trial("rotary embedding", torch.bfloat16, 0.01, 0.016)
    bad = Trial("LoRA", torch.bfloat16, 0.1, 0.016, "differs by 0.1, 0.016 allowed")
    assert fast_paths.judge([]).result == "not applicable"
    passed = fast_paths.judge([good, near])
    assert passed.result == "pass"
    assert "The worst is rotary embedding in bf16" in passed.detail
    failed = fast_paths.judge([good, bad, near, bad, bad, bad])
    assert failed.result == "fail"
    assert failed.detail.startswith("4 of 6 trials differ from the plain path: LoRA in bf16: differs by 0.1")
    assert failed.detail.endswith("; and 1 more.")


def peak(predicted: float, measured: float, runtime: int | None = 500 << 20, held: float | None = None) -> Peak:
    allocated = int(measured * GB)
    reserved = None if held is None else int(allocated * (1 + held))
    print_ = Footprint(runtime, None if held is None else allocated, reserved, "2.13.0")
    return Peak(Shape(2, 64), int(predicted * GB), int(measured * GB), print_)


def test_the_constants_of_a_card() -> None:
    assert [peak(*sizes).is_right for sizes in ((10, 11), (10, 9), (10, 12), (0.5, 0.6))] == [True, True, False, True]
    peaks = [peak(5, 5, 400 << 20, 0.02), peak(9, 9, 450 << 20, 0.05), peak(5, 5, None, 0.03)]
    card = {"kind": "cuda", "name": "RTX 4090"}
    found = there(constants(peaks, card, "2.13.0", "2026-01-02"))
    assert (found.device, found.runtime_bytes, found.torch) == ("RTX 4090", 450 << 20, "2.13.0")
    assert found.fragmentation == pytest.approx(0.03, abs=1e-6)
    assert found.measured == "2026-01-02"
    # Memory taken or freed by another program is not a constant.
    assert constants([peak(5, 5, -1, 0.1), peak(5, 5, 9 << 30, 0.1)], card, "2", "today") is None
    assert constants(peaks, {"kind": "cuda"}, "2", "today") is None
    assert constants([], card, "2", "today") is None
    # Rates that were measured before stay.
    write_calibration(
        Calibration("RTX 4090", 1 << 29, 0.04, "2.12", "2025-01-01", matrix_rate=1.5e14, memory_rate=9e11)
    )
    again = constants(peaks, card, "2.13.0", "2026-01-02")
    assert again == replace(found, matrix_rate=1.5e14, memory_rate=9e11)
    memory.keep(again)
    assert read_calibration("RTX 4090") == again


TAKEN = [{"where": "forward", "bytes": 5 * GB}, {"where": "backward", "bytes": 4 * GB}]


@cases(
    ("changed", "said"),
    [
        ({"taken": TAKEN[:1]}, "1 times instead of twice"),
        ({"codes": ("memory_cut", "device")}, "noticed 1 shortages"),
        ({"losses": (4.0,)}, "did 1 of 2 steps"),
        ({"losses": (4.0, 2.0)}, "is allowed"),
        ({"losses": (4.0, float("nan"))}, "is allowed"),
        ({}, "Up to 5.0 GB taken away"),
        ({}, "gave way 2 times"),
    ],
)
def test_a_shortage_is_survived_twice_or_the_check_fails(changed: dict[str, object], said: str) -> None:
    given: dict[str, Any] = {"taken": TAKEN, "codes": ("memory_weights", "memory_cut"), "losses": (4.0, 3.0), **changed}
    notices = [NoticeEvent(level="warning", code=code, message="") for code in given["codes"]]
    found = training.judge_shortage(given["taken"], notices, given["losses"], (4.0, 3.01))
    assert found.result == ("fail" if changed else "pass")
    assert said in found.detail


def test_a_share_of_more_than_the_whole_is_reported_and_not_kept() -> None:
    rates = speed.Rates(1e12, 9e9, "bf16")
    assert "25% of what its bf16 matrix products could do (1.00 TFLOPS; 9 GB/s of memory)" in speed.describe_share(
        0.25e12, rates
    )
    disturbed = speed.describe_share(1.2e12, rates)
    assert "something else used the device" in disturbed
    assert "120%" not in disturbed
    write_calibration(Calibration("Card 9000", 1 << 28, 0.05, "2.12", "2026-01-01"))
    speed.keep_rates("Card 9000", 1.2e12, rates)
    assert there(read_calibration("Card 9000")).matrix_rate is None
    speed.keep_rates("Card 9000", 0.2e12, rates)
    found = there(read_calibration("Card 9000"))
    assert (found.matrix_rate, found.memory_rate) == (1e12, 9e9)
