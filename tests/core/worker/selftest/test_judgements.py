"""Judgements of the self-test's checks, without a card or a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.hardware.card import Card
from core.hardware.snapshot import Device
from core.memory.calibration import Calibration, read_calibration, write_calibration
from core.models.architecture.load import load_architecture
from core.runs.record.events import NoticeEvent
from core.selftest.sizes import Shape
from core.worker.fused.trial import Trial
from core.worker.selftest import driver, fast_paths, memory, speed, training
from core.worker.selftest.driver import PowerRight, TorchCard
from core.worker.selftest.memory import Peak, constants
from core.worker.selftest.wrapped import Footprint
from tests.cases import cases

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
RIGHT = PowerRight((150.0, 600.0), False)


def judged(
    seen: TorchCard = SEEN, planned: Card = PLANNED, device: Device | None = DEVICE, right: PowerRight = RIGHT
) -> tuple[str, str]:
    outcome = driver.judge(seen, planned, device, right, {"kind": "cuda"})
    assert outcome.device == {"kind": "cuda"}
    return outcome.result, outcome.detail


def test_the_same_card_passes_and_its_limits_are_told() -> None:
    result, detail = judged()
    assert result == "pass"
    assert detail.startswith("The same card by its UUID, 23.0 GB of 25.0 GB free by torch and 23.1 GB by NVML")
    assert "41 °C, slows down at 83" in detail
    assert detail.endswith("power limit 450 W, which root alone may set from 150 to 600 W.")


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
def test_readings_of_another_card_or_none_fail(changed: dict[str, object], said: str) -> None:
    result, detail = judged(**changed)  # type: ignore[arg-type]
    assert result == "fail"
    assert said in detail


def test_power_in_words() -> None:
    assert driver.describe_power(None, RIGHT) == "its power limit cannot be read"
    assert driver.describe_power(450, PowerRight(None, True)) == "power limit 450 W, which cannot be set"
    assert "which this user may set" in driver.describe_power(450, PowerRight((1, 2), True))


def test_a_card_that_torch_does_not_use_fails() -> None:
    assert driver.judge_cpu(None, {}).result == "not applicable"
    found = driver.judge_cpu(PLANNED, {})
    assert found.result == "fail"
    assert "RTX 4090" in found.detail


def test_the_dtypes_of_a_device() -> None:
    assert torch.bfloat16 in fast_paths.dtypes("cuda", 8)
    assert torch.bfloat16 not in fast_paths.dtypes("cuda", 7)
    assert torch.float16 not in fast_paths.dtypes("cpu", 0)


def test_trials_are_told_by_the_worst() -> None:
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


def test_a_prediction_may_be_a_little_wrong() -> None:
    assert peak(10.0, 11.0).is_right
    assert peak(10.0, 9.0).is_right
    assert not peak(10.0, 12.0).is_right
    assert peak(0.5, 0.6).is_right


def test_the_constants_of_a_card() -> None:
    peaks = [peak(5, 5, 400 << 20, 0.02), peak(9, 9, 450 << 20, 0.05), peak(5, 5, None, 0.03)]
    card = {"kind": "cuda", "name": "RTX 4090"}
    found = constants(peaks, card, "2.13.0", "2026-01-02")
    assert found is not None
    assert (found.device, found.runtime_bytes, found.torch) == ("RTX 4090", 450 << 20, "2.13.0")
    assert found.fragmentation == pytest.approx(0.03, abs=1e-6)
    assert found.measured == "2026-01-02"
    # Memory taken or freed by another program is not a constant.
    assert constants([peak(5, 5, -1, 0.1), peak(5, 5, 9 << 30, 0.1)], card, "2", "today") is None
    assert constants(peaks, {"kind": "cuda"}, "2", "today") is None
    assert constants([], card, "2", "today") is None


def test_the_rates_that_were_measured_before_stay() -> None:
    write_calibration(
        Calibration("RTX 4090", 1 << 29, 0.04, "2.12", "2025-01-01", matrix_rate=1.5e14, memory_rate=9e11)
    )
    found = constants([peak(5, 5, 400 << 20, 0.02)], {"kind": "cuda", "name": "RTX 4090"}, "2.13.0", "2026-01-02")
    assert found is not None
    assert (found.matrix_rate, found.memory_rate) == (1.5e14, 9e11)
    memory.keep(found)
    assert read_calibration("RTX 4090") == found


def test_the_constants_of_a_cpu_are_its_interpreter() -> None:
    found = constants(
        [peak(1, 1, 430 << 20), peak(1, 1, 450 << 20), peak(1, 1, 440 << 20)], {"name": "EPYC"}, "2", "now"
    )
    assert found is not None
    assert (found.runtime_bytes, found.fragmentation) == (440 << 20, 0.0)


def test_the_allocators_peak_leaves_out_what_is_no_tensor() -> None:
    parts = {"weights": 5, "runtime": 3, "fragmentation": 2}
    assert memory.predicted_total(parts, cuda=True) == 5
    assert memory.predicted_total(parts, cuda=False) == 10


TAKEN = [{"where": "forward", "bytes": 5 * GB}, {"where": "backward", "bytes": 4 * GB}]


def notices(*codes: str) -> list[NoticeEvent]:
    return [NoticeEvent(level="warning", code=code, message="") for code in codes]


def shortages(
    taken: Sequence[dict[str, object]] = TAKEN,
    codes: Sequence[str] = ("memory_weights", "memory_cut"),
    losses: Sequence[float] = (4.0, 3.0),
) -> tuple[str, str]:
    found = training.judge_shortage([dict(item) for item in taken], notices(*codes), losses, (4.0, 3.01))
    return found.result, found.detail


def test_a_survived_shortage() -> None:
    result, detail = shortages()
    assert result == "pass"
    assert "Up to 5.0 GB taken away" in detail
    assert "gave way 2 times" in detail


@cases(
    ("changed", "said"),
    [
        ({"taken": TAKEN[:1]}, "1 times instead of twice"),
        ({"codes": ("memory_cut", "device")}, "noticed 1 shortages"),
        ({"losses": (4.0,)}, "did 1 of 2 steps"),
        ({"losses": (4.0, 2.0)}, "is allowed"),
        ({"losses": (4.0, float("nan"))}, "is allowed"),
    ],
)
def test_a_shortage_that_was_none_or_was_not_survived(changed: dict[str, object], said: str) -> None:
    result, detail = shortages(**changed)  # type: ignore[arg-type]
    assert result == "fail"
    assert said in detail


def test_the_work_of_a_token(tiny_model_dir: Path) -> None:
    model = load_architecture(tiny_model_dir)
    assert speed.operations_per_token(model) == 4 * (model.linear_weights + model.vocabulary * model.hidden)


def test_the_best_of_some_tries() -> None:
    calls: list[int] = []
    assert speed.best_seconds(lambda: calls.append(1), lambda: None) > 0
    assert len(calls) == 8


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.25e12, "25% of what its bf16 matrix products could do (1.00 TFLOPS; 9 GB/s of memory)"),
        (1.2e12, "something else used the device"),
    ],
)
def test_no_share_is_more_than_the_whole(rate: float, said: str) -> None:
    told = speed.describe_share(rate, speed.Rates(1e12, 9e9, "bf16"))
    assert said in told
    assert "120%" not in told


def test_disturbed_rates_are_not_kept() -> None:
    write_calibration(Calibration("Card 9000", 1 << 28, 0.05, "2.12", "2026-01-01"))
    speed.keep_rates("Card 9000", 1.2e12, speed.Rates(1e12, 9e9, "bf16"))
    found = read_calibration("Card 9000")
    assert found is not None
    assert found.matrix_rate is None
    speed.keep_rates("Card 9000", 0.2e12, speed.Rates(1e12, 9e9, "bf16"))
    found = read_calibration("Card 9000")
    assert found is not None
    assert (found.matrix_rate, found.memory_rate) == (1e12, 9e9)
