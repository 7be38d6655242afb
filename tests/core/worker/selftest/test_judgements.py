"""Judgements of the self-test's checks, without a card or a training."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.hardware.amd import AmdSource, driver_version
from core.hardware.card import Card
from core.hardware.snapshot import Device
from core.memory.calibration import Calibration, read_calibration, write_calibration
from core.runs.record.events import NoticeEvent, StepEvent
from core.selftest.sizes import Shape, Sizes
from core.worker.fused.trial import Trial
from core.worker.selftest import driver, fast_paths, memory, speed, training, waits
from core.worker.selftest.check import Bench
from core.worker.selftest.driver import Meters, TorchCard
from core.worker.selftest.memory import Peak, constants
from core.worker.selftest.worker_run import WorkerRun
from core.worker.selftest.wrapped import Footprint
from core.worker.train import FinetuneRecipe
from tests.cases import cases
from tests.core.hardware.amd_tree import CARD, make_card
from tests.core.runs.helpers import there

GB = 10**9
UUID = "01234567-89ab-cdef-0123-456789abcdef"
SEEN = TorchCard("RTX 4090", UUID, 25 * GB, 23 * GB)
AMD_SEEN = TorchCard("RX 7900 XTX", "AMD-1", 25 * GB, 23 * GB, "gfx1100")
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
    power_limit_min_w=150.0,
    power_limit_max_w=600.0,
)


def judged(planned: Card = PLANNED, device: Device | None = DEVICE) -> tuple[str, str]:
    outcome = driver.judge(SEEN, planned, device, {"kind": "cuda"})
    assert outcome.device == {"kind": "cuda"}
    return outcome.result, outcome.detail


@cases(
    ("changed", "said"),
    [
        ({"planned": replace(PLANNED, uuid="GPU-ffffffff-0000", name="RTX 3060")}, "of another card, RTX 3060"),
        ({"device": replace(DEVICE, memory_free=20 * GB)}, "20.0 GB free and 23.0 GB"),
        ({"device": replace(DEVICE, memory_total=12 * GB)}, "12.0 GB in all and 25.0 GB"),
        ({"device": replace(DEVICE, memory_total=None)}, "the driver does not tell it"),
        ({"device": replace(DEVICE, temperature_limit_c=None)}, "GB by the driver; the temperature at which it slows"),
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
    assert passed.startswith("The same card by its UUID, 23.0 GB of 25.0 GB free by torch and 23.1 GB by the driver")
    assert passed.endswith("power limit 450 W, which root alone may set from 150 to 600 W.")
    result, detail = judged(**changed)
    assert result == "fail"
    assert said in detail


def test_the_architecture_of_an_amd_card_is_the_drivers() -> None:
    planned = replace(PLANNED, uuid="AMD-1", capability=None, architecture="gfx1100")
    found = driver.judge(AMD_SEEN, planned, DEVICE, {})
    assert (found.result, found.detail[:28]) == ("pass", "The same card by its UUID, 2")
    found = driver.judge(replace(AMD_SEEN, architecture="gfx1030"), planned, DEVICE, {})
    assert (found.result, found.detail) == (
        "fail",
        "torch computes on gfx1030, and the driver has gfx1100 for RX 7900 XTX.",
    )


def test_amds_meters_are_read_where_torch_is_built_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_card(tmp_path, CARD)
    monkeypatch.setattr(driver, "is_rocm", lambda: True)
    monkeypatch.setattr(driver, "AmdSource", lambda: AmdSource(tmp_path))
    meters = driver.Meters.read(0)
    assert (there(meters.device).name, meters.driver) == ("AMD GPU 744c", driver_version())
    assert driver.free_memory(0) == int(CARD["mem_info_vram_total"]) - int(CARD["mem_info_vram_used"])
    assert driver.free_memory(1) is None


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
    without = fast_paths.judge([good, near], [bad])
    assert without.result == "pass"
    assert without.detail.endswith("is allowed. Runs do without LoRA in bf16.")


def test_on_an_amd_card_a_kernel_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Trial("RMS norm", torch.float32, 1e-6, 1e-5)
    bad = Trial("flash attention", torch.float32, 0.1, 1e-5, "no kernel")
    monkeypatch.setattr(fast_paths, "dtypes", lambda _: [torch.float32])
    bench = Bench(Path(), Sizes(device="cpu"), {}, lambda *_: None)
    for rocm, kernel, function, result in (
        (True, bad, good, "pass"),
        (True, good, bad, "fail"),
        (False, bad, good, "fail"),
    ):
        monkeypatch.setattr(fast_paths, "is_rocm", lambda _, rocm=rocm: rocm)
        monkeypatch.setattr(fast_paths, "_kernels", lambda *_, kernel=kernel: [kernel])
        monkeypatch.setattr(fast_paths, "_functions", lambda *_, function=function: [function])
        assert fast_paths.check(bench).result == result


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


def test_for_an_amd_card_nothing_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_measure", lambda *_: peak(5, 5, -1, 0.1))
    for device, result in (({"kind": "cuda"}, "pass"), ({"kind": "cuda", "architecture": "gfx1100"}, "fail")):
        found = memory.check(Bench(Path(), Sizes.of("cuda"), {"name": "Card", **device}, lambda *_: None))
        assert found.result == result
        assert "could not be told apart" in found.detail


def steps_of(*seconds: float) -> list[StepEvent]:
    made: dict[str, Any] = dict.fromkeys(("epoch", "loss", "lr", "grad_norm", "tokens_per_second"), 1.0)
    return [
        StepEvent(step=step, tokens=1000, supervised_tokens=0, seconds=each, **made)
        for step, each in enumerate(seconds, start=1)
    ]


def test_the_speed_is_that_of_the_last_part() -> None:
    burst_and_then_capped = steps_of(*[0.5] * 20, *[1.0] * 20)
    assert speed.sustained(burst_and_then_capped, 30.0) == pytest.approx(1000.0)
    assert speed.sustained(burst_and_then_capped, 0.0) == pytest.approx(40_000 / 30)
    assert speed.sustained(steps_of(2.0), 30.0) == pytest.approx(500.0)


def test_products_are_measured_at_the_pace_that_they_keep_up() -> None:
    now = [0.0]

    def product() -> None:
        now[0] += 0.01 if now[0] < 15 else 0.02

    found = speed.sustained_seconds(product, lambda: None, 30.0, lambda: now[0])
    assert found == pytest.approx(0.02)
    assert speed.sustained_seconds(product, lambda: None, 1e-3, lambda: now[0]) == pytest.approx(0.02)


@cases(
    ("power", "reasons", "words"),
    [
        (449.0, [], " over the last 10 s, at its power limit (449 of 450 W)"),
        (300.0, ["power cap"], " over the last 10 s, at its power limit (300 of 450 W)"),
        (300.0, [], " over the last 10 s, below its power limit (300 of 450 W)"),
        (None, [], " over the last 10 s, at a power that cannot be read"),
    ],
)
def test_the_power_is_read_in_the_last_part(power: float | None, reasons: list[str], words: str) -> None:
    now, asked = [100.0], []

    def read(index: int) -> Meters:
        asked.append(index)
        return Meters(replace(DEVICE, power_w=power, throttle_reasons=reasons), "580")

    watch = speed.PowerWatch(30.0, 1, read, lambda: now[0])
    steps = steps_of(*[1.0] * 40)
    over = []
    for count in range(40):
        over.append(watch.is_over(steps[:count]))
        now[0] += 0.5
    # Two steps of warm-up; a reading a second, of which there are two looks.
    assert over.index(True) == 32
    assert len(asked) == 9
    assert watch.words == words
    assert speed.PowerWatch(0.0, None).words == ""


def test_waits_are_counted_by_torchs_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    done: list[object] = []

    def step(recipe: object) -> None:
        done.append(recipe)
        if modes and modes[-1] == "warn":
            for _ in range(2):
                warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(FinetuneRecipe, "step", step)
    recipe: Any = object()
    with waits.WaitCounter(tmp_path).installed():
        for _ in range(4):
            FinetuneRecipe.step(recipe)
    assert FinetuneRecipe.step is step
    assert (modes, done) == (["warn", "default"], [recipe] * 4)
    places = json.loads((tmp_path / waits.WAITS).read_text())
    line = places[0].partition(":")[2]
    assert places == [f"selftest/test_judgements.py:{number}" for number in (line, line, int(line) + 2)]
    described = waits.describe(places)
    assert (
        described
        == f"3 times (selftest/test_judgements.py:{line} 2 times, selftest/test_judgements.py:{int(line) + 2})"
    )


@cases(
    ("adapters", "weights", "result", "words"),
    [
        (3, 4, "pass", "3 times (x.py:1 3 times) in a step of adapters, of 3 allowed"),
        (4, 4, "fail", "4 times (x.py:1 4 times) in a step of adapters, of 3 allowed"),
        (1, 5, "fail", "once (x.py:1) in a step of adapters, of 3 allowed"),
        (0, 4, "not applicable", "torch reports no waits on this device."),
    ],
)
def test_more_waits_than_a_step_needs_fail(
    adapters: int, weights: int, result: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter((adapters, weights))

    def train(run: WorkerRun) -> str:
        (run.run.path / waits.WAITS).write_text(json.dumps(["x.py:1"] * next(counts)))
        return "finished"

    monkeypatch.setattr(WorkerRun, "train", train)
    bench = Bench(tmp_path, Sizes.of("cuda"), {"kind": "cuda"}, lambda *_: None)
    found = waits.check(bench)
    assert found.result == result
    assert words in found.detail
    assert waits.check(replace(bench, device={"kind": "cpu"})).result == "not applicable"


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
