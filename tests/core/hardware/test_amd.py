from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.hardware import card as card_module
from core.hardware import sampler
from core.hardware.amd import AmdSource, driver_version, find_cards, has_bf16, identities, uuid_at, uuid_of
from core.hardware.card import Card, find_card
from core.hardware.nvml import NvmlSource
from core.hardware.sampler import GpuReader
from core.hardware.snapshot import Device, GpuProcess
from core.hardware.visible import Identity
from tests.cases import cases
from tests.core.hardware.amd_tree import CARD, PLACE, make_card, make_processes, metrics

CHIP = "hwmon/hwmon4/"


def read(root: Path) -> Device:
    (device,) = AmdSource(root).read()
    return device


def test_a_card_that_reports_everything(tmp_path: Path) -> None:
    make_card(tmp_path, {**CARD, "gpu_metrics": metrics(1 << 36 | 1)})
    make_processes(tmp_path, {os.getpid(): 17 * 2**30, 4194300: 5})
    names = tmp_path / "usr/share/hwdata/pci.ids"
    names.parent.mkdir(parents=True)
    names.write_text("1001  Other\n\t744c  Wrong\n1002  AMD\n\t744b  Another\n\t744c  Navi 31 [Radeon RX 7900 XTX]\n")
    device = read(tmp_path)
    mine, gone = device.processes
    assert (mine.pid, mine.memory) == (os.getpid(), 17 * 2**30)
    assert mine.name
    assert mine.owner
    assert gone == GpuProcess(4194300, 5)
    # The hottest spot, which throttles the card, is its temperature.
    wanted = json.loads(Path(__file__).with_name("amd_card.json").read_text())
    assert device == Device(**wanted, processes=[mine, gone])


def test_what_a_card_does_not_report_is_none(tmp_path: Path) -> None:
    kept = {"vendor", "device", "mem_info_vram_total"}
    make_card(tmp_path, {key: value for key, value in CARD.items() if key in kept})
    assert read(tmp_path) == Device(
        index=0, kind="rocm", name="AMD GPU 744c", uuid=f"AMD-{PLACE}", memory_total=24 * 2**30
    )


def test_older_and_newer_cards(tmp_path: Path) -> None:
    older = {key: value for key, value in CARD.items() if not key.startswith(CHIP) and key != "unique_id"}
    older |= {
        f"{CHIP}temp1_input": "70000",
        f"{CHIP}temp1_crit": "94000",
        f"{CHIP}power1_input": "120500000",
        f"{CHIP}fan1_input": "1500",
        f"{CHIP}fan1_max": "3000",
        f"{CHIP}freq1_input": "1340000000",
        "product_name": "Radeon \x1b[31mVII",
    }
    make_card(tmp_path, older)
    device = read(tmp_path)
    assert (device.temperature_c, device.temperature_limit_c) == (70.0, 94.0)
    assert (device.power_w, device.fan, device.clock) == (120.5, 50.0, 1340.0)
    assert device.name == "AMD Radeon \ufffd[31mVII"


@cases(
    ("table", "reasons"),
    [
        (metrics(1 << 34), ["memory temperature"]),
        (metrics(1 << 46 | 1 << 16), ["current limit", "hardware thermal slowdown"]),
        (metrics((1 << 64) - 1), []),
        (metrics(1, (1, 4)), []),
        (metrics(1)[:100], []),
    ],
)
def test_reasons_for_throttling(tmp_path: Path, table: bytes, reasons: list[str]) -> None:
    make_card(tmp_path, {**CARD, "gpu_metrics": table})
    assert read(tmp_path).throttle_reasons == reasons


def test_only_cards_of_amd_that_are_fit_to_train_on_count(tmp_path: Path) -> None:
    make_card(tmp_path, {**CARD, "vendor": "0x10de"}, 0, "0000:01:00.0")
    make_card(tmp_path, {**CARD, "mem_info_vram_total": str(512 << 20)}, 1, "0000:0a:00.0")
    make_card(tmp_path, {**CARD, "unique_id": "2"}, 2, "0000:09:00.0")
    make_card(tmp_path, {**CARD, "unique_id": "1"}, 3, "0000:03:00.0")
    assert [uuid_of(path) for path in find_cards(tmp_path)] == ["AMD-1", "AMD-2"]
    assert [device.index for device in AmdSource(tmp_path).read("AMD-2")] == [1]
    # A run on another card does not show these.
    assert AmdSource(tmp_path).read("GPU-1234") == []
    assert AmdSource(tmp_path / "nothing").read() == []


def test_nvidias_cards_come_first(tmp_path: Path) -> None:
    make_card(tmp_path, CARD)
    card = Device(index=0, kind="cuda", name="RTX")
    nvidia = SimpleNamespace(read=lambda _only: [card], reason="")
    assert GpuReader([nvidia, AmdSource(tmp_path)]).read() == [card]
    reader = GpuReader([SimpleNamespace(read=lambda _only: [], reason="There is no driver."), AmdSource(tmp_path)])
    assert [device.kind for device in reader.read()] == ["rocm"]
    assert reader.reason == "There is no driver."


@cases(
    ("version", "variables", "architecture", "bf16"),
    [
        (110000, {}, "gfx1100", True),
        (100301, {}, "gfx1031", False),
        (100301, {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"}, "gfx1030", False),
        (90010, {}, "gfx90a", True),
        (90006, {}, "gfx906", False),
        (120001, {"HSA_OVERRIDE_GFX_VERSION": "newest"}, "gfx1201", True),
        (0, {}, "", False),
    ],
)
def test_the_architecture_is_named_as_rocm_does(
    tmp_path: Path, version: int, variables: dict[str, str], architecture: str, bf16: bool
) -> None:
    make_card(tmp_path, CARD)
    make_processes(tmp_path, {}, version=version)
    uuid = f"AMD-{CARD['unique_id']}"
    assert identities(tmp_path, variables) == (Identity(0, uuid, vendor="AMD", architecture=architecture),)
    assert has_bf16(architecture) is bf16
    assert (uuid_at(PLACE, tmp_path), uuid_at("0000:04:00.0", tmp_path)) == (uuid, "")


def test_the_driver_has_a_version_of_its_own_or_the_kernels(tmp_path: Path) -> None:
    assert driver_version(tmp_path) == f"Linux {os.uname().release}"
    (tmp_path / "sys/module/amdgpu").mkdir(parents=True)
    (tmp_path / "sys/module/amdgpu/version").write_text("6.16.6\n")
    assert driver_version(tmp_path) == "6.16.6"


def test_with_torch_for_rocm_a_run_takes_the_card_that_hip_sees_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_card(tmp_path, {**CARD, "unique_id": "1"}, 0, "0000:03:00.0")
    make_card(tmp_path, {**CARD, "unique_id": "2", "drm/renderD129/dev": "226:129"}, 1, "0000:09:00.0")
    make_processes(tmp_path, {}, minor=129)
    monkeypatch.setattr(card_module, "is_rocm", lambda: True)
    found = find_card(environment={"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, root=tmp_path)
    free = int(CARD["mem_info_vram_total"]) - int(CARD["mem_info_vram_used"])
    assert found == Card("AMD GPU 744c", 24 << 30, None, 1, "AMD-2", free, "gfx1100")
    assert found.has_bf16
    assert find_card(environment={"HIP_VISIBLE_DEVICES": "-1"}, root=tmp_path) is None
    assert find_card(environment={}, gpu="AMD-1", root=tmp_path) == Card(
        "AMD GPU 744c", 24 << 30, None, 0, "AMD-1", free
    )
    monkeypatch.setattr(sampler, "is_rocm", lambda: True)
    assert [type(source) for source in GpuReader()._sources] == [AmdSource, NvmlSource]
