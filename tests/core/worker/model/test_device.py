"""The device of a run: its choice, its description, and the limit of its free memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.errors import UserError
from core.hardware import amd
from core.hardware.cpu import is_bf16_measured
from core.hardware.drivers import Build
from core.hardware.obstacle import Sight
from core.hardware.proof import Proof, settle
from core.hardware.visible import Identity
from core.worker.model import device as module
from core.worker.model.device import (
    CardFacts,
    choose_device,
    choose_dtype,
    describe_device,
    differs_from_plan,
    memory_share,
    name_of,
    read_card,
    reason_for_cpu,
    uuid_of,
)
from tests.cases import cases
from tests.core.hardware.amd_tree import make_card

UUIDS = ("GPU-0010", "GPU-0011")
SIGHT = Sight(tuple(Identity(index, uuid) for index, uuid in enumerate(UUIDS)), (), "550.54.14", (12, 4), nodes=True)
CARD = CardFacts("NVIDIA GeForce RTX 4090", "compute 8.9", 24 << 30, UUIDS[1], 1, "580.95.05", "expandable segments")


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def without_cuda(monkeypatch: pytest.MonkeyPatch, sight: Sight, build: Build, error: str = "") -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "look", lambda: sight)
    monkeypatch.setattr(module, "torch_build", lambda: build)
    monkeypatch.setattr(module, "cuda_error", lambda: error or None)


@cases(
    ("build", "error", "words"),
    [
        (Build("2.15.0", "13.2"), "The NVIDIA driver on your system is too old", "built for CUDA 13.2"),
        (Build("2.13.0+cpu"), "", "built for the CPU only"),
        (Build("2.13.0", "12.6"), "CUDA unknown error", "CUDA unknown error"),
    ],
)
@cases("wanted", ["auto", "cuda"])
def test_a_card_that_torch_cannot_use_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, build: Build, error: str, words: str, wanted: str
) -> None:
    without_cuda(monkeypatch, SIGHT, build, error)
    with pytest.raises(UserError, match=words) as raised:
        choose_device(wanted)
    assert "hardware.device = cpu" in raised.value.hint
    assert choose_device("cpu") == torch.device("cpu")


def test_without_a_card_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch, Sight(absent=True), Build("2.13.0+cpu"))
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"hardware\.device is cuda, but this torch is a CPU build"):
        choose_device("cuda")
    without_cuda(monkeypatch, SIGHT, Build("2.13.0+cpu"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto") == torch.device("cpu")
    assert reason_for_cpu("auto", SIGHT) == "CUDA_VISIBLE_DEVICES hides the card"
    assert reason_for_cpu("cpu", SIGHT) == ""


ROCM = Build("2.13.0+rocm7.1", None, "7.1")
AMD = Sight((Identity(0, "AMD-1", vendor="AMD", architecture="gfx1100"),), driver="6.16.6")


def test_an_amd_card_is_chosen_after_its_self_test(monkeypatch: pytest.MonkeyPatch, private_home: Path) -> None:
    without_cuda(monkeypatch, Sight(absent=True), ROCM)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(UserError, match="amdgpu does not list"):
        choose_device("auto")
    monkeypatch.setattr(module, "look", lambda: AMD)
    for wanted in ("auto", "cuda"):
        with pytest.raises(UserError, match="has not passed the self-test") as raised:
            choose_device(wanted)
        assert "localtune-tui selftest" in raised.value.hint
    settle(Proof.here("gfx1100", ROCM.version, AMD.driver), passed=True)
    properties: Any = SimpleNamespace(gcnArchName="gfx1036")
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "the processor's own card")
    with pytest.raises(UserError, match="the processor's own card has not passed the self-test"):
        choose_device("auto")
    properties.gcnArchName = "gfx1100"
    assert choose_device("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(module, "cuda_error", lambda: "HIP error: invalid device function")
    with pytest.raises(UserError, match="invalid device function"):
        choose_device("auto")


def test_an_amd_card_is_known_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties: Any = SimpleNamespace(
        name="Navi 31", major=11, minor=0, total_memory=24 << 30, gcnArchName="gfx1100:xnack-",
        pci_domain_id=0, pci_bus_id=3, pci_device_id=0,
    )  # fmt: skip
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    place = make_card(tmp_path, {"unique_id": "1", "product_name": "Radeon RX 7900 XTX"})
    monkeypatch.setattr(amd, "find_cards", lambda _: [place])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Navi 31")
    device = torch.device("cuda", 0)
    card = read_card(device, AMD)
    # By the driver's name, as the plan and the calibration have it.
    assert (card.name, card.kind, card.uuid, card.index) == ("AMD Radeon RX 7900 XTX", "gfx1100", "AMD-1", 0)
    assert card.driver == "6.16.6"
    assert differs_from_plan(card, AMD) == ""
    assert choose_dtype("auto", device) == torch.bfloat16
    assert describe_device(ROCM, torch.bfloat16, card, threads=8).startswith(
        "Trains on GPU 0, AMD Radeon RX 7900 XTX (gfx1100, 25.8 GB) in bf16, by torch 2.13.0+rocm7.1 for ROCm 7.1, "
    )
    # A torch that does not report the place.
    del properties.pci_bus_id
    assert (uuid_of(device), name_of(device)) == ("", "Navi 31")
    # RDNA 2 has a higher number than the first NVIDIA card with bf16, and no matrix instructions for it.
    properties.gcnArchName = "gfx1030"
    assert choose_dtype("auto", device) == torch.float16


def test_a_card_without_kernels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch, SIGHT, Build("2.10.0", "12.8"), "no kernel image is available for execution")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="no kernel image"):
        choose_device("auto")
    monkeypatch.setattr(module, "cuda_error", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert choose_device("auto") == torch.device("cuda", 0)


def test_the_device_is_reported_in_a_sentence() -> None:
    found = describe_device(Build("2.13.0", "13.0"), torch.bfloat16, CARD, threads=8)
    assert found == (
        "Trains on GPU 1, NVIDIA GeForce RTX 4090 (compute 8.9, 25.8 GB) in bf16, by torch 2.13.0 for CUDA 13.0, "
        "driver 580.95.05; expandable segments."
    )


def test_the_card_is_found_in_nvml_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    properties: Any = SimpleNamespace(name="RTX", major=8, minor=9, total_memory=24 << 30, uuid="0011")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    card = read_card(torch.device("cuda", 0), SIGHT)
    assert (card.uuid, card.index, card.driver) == (UUIDS[1], 1, "550.54.14")
    # CUDA's first card is the second on the bus.
    assert "torch computes on GPU 1" in differs_from_plan(card, SIGHT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert differs_from_plan(card, SIGHT) == ""
    properties.uuid = None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert differs_from_plan(read_card(torch.device("cuda", 0), SIGHT), SIGHT) == ""


@cases(
    ("free", "total", "wsl", "share"),
    [(20, 24, False, None), (20, 24, True, 19 / 24), (24, 24, True, 0.95), (0, 24, True, 0.0), (0, 0, True, None)],
)
def test_under_windows_a_run_is_kept_to_what_is_free(free: int, total: int, wsl: bool, share: float | None) -> None:
    assert memory_share(free, total, wsl=wsl) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(("ratio", "dtype"), [(2.0, torch.bfloat16), (0.2, torch.float32)])
def test_auto_takes_what_was_measured_once(
    ratio: float, dtype: torch.dtype, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    assert module.speed_ratio() > 0
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(module, "speed_ratio", lambda: ratio)
    assert choose_dtype("auto", torch.device("cpu")) == dtype
    assert is_bf16_measured()
    monkeypatch.setattr(module, "speed_ratio", lambda: pytest.fail("measured again"))
    assert choose_dtype("auto", torch.device("cpu")) == dtype


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="flags of a processor are read on Linux")
def test_emulated_bf16_is_not_taken_whatever_the_flags_say(tmp_path: Path) -> None:
    code = "from core.worker.model.device import prefers_bf16; print(prefers_bf16())"
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **limits, "LOCALTUNE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False"
