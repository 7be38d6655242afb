"""A card that torch cannot use: the cause in a sentence, and the remedy in another."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.hardware import obstacle as module
from core.hardware import torch_check
from core.hardware.drivers import Build, install_command, installed_build, is_wsl
from core.hardware.obstacle import Sight, find_card_not_given, find_obstacle, look, only_card, process_cards
from core.hardware.proof import TRYING_VARIABLE, Proof, settle
from core.hardware.visible import Identity
from tests.cases import cases
from tests.core.runs.helpers import there

from .amd_tree import CARD, make_card, make_processes
from .conftest import Ask

UUIDS = ("GPU-00000010-1111", "GPU-00000011-1111")
CARDS = tuple(Identity(index, uuid) for index, uuid in enumerate(UUIDS))
SIGHT = Sight(CARDS, ((8, 6), (8, 9)), "580.95.05", (13, 0), nodes=True)
OLD = replace(SIGHT, driver="550.54.14", cuda=(12, 4))
MISMATCH = Sight(
    failure="The NVIDIA kernel module and its library are of different versions: the driver was updated while running.",
    remedy="Reboot, or reload the nvidia kernel modules.",
    nodes=True,
)
NO_LIBRARY = Sight(failure="There is no NVIDIA driver library here.", absent=True)
CUDA, CPU = Build("2.15.0+cu132", "13.2"), Build("2.13.0+cpu")
ROCM = Build("2.13.0+rocm7.1", None, "7.1")
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"


@cases(
    ("sight", "build", "variables", "error", "cause", "remedy"),
    [
        (OLD, CUDA, {}, "", "built for CUDA 13.2, and driver 550.54.14 runs CUDA 12.4 at most", "580.65.06 or newer"),
        (OLD, CUDA, {}, "", "The NVIDIA card (GPU 0) cannot", "'torch>=2.10,<2.15' --index-url https://download"),
        (OLD, CUDA, {}, "", "cannot be used", "whl/cu126; to train on the CPU anyway, set"),
        (replace(OLD, wsl=True), CUDA, {}, "", "550.54.14 runs", "Update the NVIDIA driver in Windows"),
        (SIGHT, CPU, {}, "", "torch 2.13.0+cpu is built for the CPU only", "whl/cu130"),
        (SIGHT, CPU, {"CUDA_VISIBLE_DEVICES": "1"}, "", "The NVIDIA card (GPU 1)", "whl/cu130"),
        (SIGHT, ROCM, {}, "", "built for ROCm, which computes on AMD's cards only", "whl/cu130"),
        (MISMATCH, CUDA, {}, NO_DRIVER, "the driver was updated while running", "Reboot, or reload"),
        (replace(MISMATCH, container=True), CUDA, {}, "", "This container has an NVIDIA card", "docker run --gpus all"),
        (replace(NO_LIBRARY, nodes=True, container=True), CUDA, {}, "", "library is missing", "docker run --gpus all"),
        (replace(NO_LIBRARY, nodes=True), CUDA, {}, "", "its driver's library is missing", "Install the driver again"),
        (SIGHT, CUDA, {}, NO_DRIVER, "(libcuda.so.1) is missing", "Install the driver"),
        (replace(SIGHT, container=True), CUDA, {}, NO_DRIVER, "(libcuda.so.1)", "NVIDIA_DRIVER_CAPABILITIES=compute"),
        (SIGHT, CUDA, {}, "CUDA unknown error - this may be due to", "CUDA unknown error", "modprobe nvidia_uvm"),
        (SIGHT, CUDA, {}, "no kernel image is available", "no kernel image is available", "whl/cu130"),
        (SIGHT, CUDA, {"CUDA_VISIBLE_DEVICES": "7"}, "", "'7', and no card is called so", "one of the 2"),
        (SIGHT, CUDA, {"CUDA_VISIBLE_DEVICES": "GPU-ff"}, "", "'GPU-ff', and no card", "nvidia-smi -L"),
        (Sight(failure="The driver has not answered.", nodes=True), None, {}, "", "not answered", "nvidia-smi"),
    ],
)  # fmt: skip
def test_cause_and_remedy_are_reported(
    sight: Sight, build: Build | None, variables: dict[str, str], error: str, cause: str, remedy: str
) -> None:
    found = there(find_obstacle(sight, build, environment=variables, torch_error=error))
    assert cause in found.message
    assert remedy in found.hint
    assert found.message.endswith(".")
    assert "hardware.device = cpu" in found.hint
    assert "\n" not in str(found)


@cases(
    ("sight", "build", "variables"),
    [
        (Sight(), CUDA, {}),
        (NO_LIBRARY, CPU, {}),
        # A driver that is not loaded, as where a laptop saves power.
        (replace(MISMATCH, nodes=False), CUDA, {}),
        (SIGHT, CUDA, {}),
        (SIGHT, Build("2.10.0+cu126", "12.6"), {}),
        # With the card hidden on purpose the run is on the CPU.
        (SIGHT, CPU, {"CUDA_VISIBLE_DEVICES": ""}),
        (OLD, CUDA, {"CUDA_VISIBLE_DEVICES": "-1"}),
        (OLD, CUDA, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}),
    ],
)
def test_without_a_card_there_is_no_obstacle(sight: Sight, build: Build, variables: dict[str, str]) -> None:
    assert find_obstacle(sight, build, environment=variables) is None


@cases(
    ("gpu", "variables", "words"),
    [
        ("2", {}, "hardware.gpu is 2, and no card is called so"),
        ("GPU-0000001", {}, "or more than one"),
        ("0", {"CUDA_VISIBLE_DEVICES": "1"}, "CUDA_VISIBLE_DEVICES is '1', which hides that card"),
        ("1", {}, ""),
        (UUIDS[1], {"CUDA_VISIBLE_DEVICES": "1"}, ""),
    ],
)
def test_a_card_that_is_asked_for_is_there_and_visible(gpu: str, variables: dict[str, str], words: str) -> None:
    found = find_obstacle(SIGHT, CUDA, gpu=gpu, environment=variables)
    assert words in str(found)
    assert (found is None) is (not words)
    assert "no NVIDIA card here" in str(find_obstacle(NO_LIBRARY, CUDA, gpu=gpu, environment=variables))


def test_a_container_that_was_not_given_the_card_is_recognized() -> None:
    assert "docker run --gpus all" in find_card_not_given(replace(NO_LIBRARY, driven=True, container=True))
    assert find_card_not_given(replace(NO_LIBRARY, driven=True)) == ""
    assert find_card_not_given(SIGHT) == ""


def test_the_system_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert look(root=tmp_path).nodes is False
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / ".dockerenv").touch()
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    found = look(root=tmp_path)
    assert (found.nodes, found.container, found.driven, found.wsl) == (True, True, True, False)


@cases(
    ("driver_cuda", "capability", "words"),
    [
        ((13, 1), (8, 9), "'torch>=2.10' --index-url https://download.pytorch.org/whl/cu130"),
        ((14, 0), None, "whl/cu130"),
        ((12, 2), (8, 6), "whl/cu126"),
        ((12, 8), (12, 0), "'torch>=2.10,<2.12' --index-url https://download.pytorch.org/whl/cu128"),
        ((11, 8), (8, 6), ""),
    ],
)
def test_the_command_suits_driver(driver_cuda: tuple[int, int], capability: tuple[int, int] | None, words: str) -> None:
    found = install_command(driver_cuda, capability)
    assert words in found
    assert bool(words) is bool(found)


def test_the_build_is_read_without_an_import() -> None:
    import torch

    assert installed_build() == Build(str(torch.__version__), torch.version.cuda, torch.version.hip)


def test_a_driver_is_asked_by_nvml(ask_driver: Ask) -> None:
    program = (
        "import json\nfrom core.hardware.obstacle import find_obstacle, look\nfrom core.hardware.drivers import Build\n"
        "sight = look(20)\nfound = find_obstacle(sight, Build('2.15.0', '13.2'), environment={})\n"
        "print(json.dumps([len(sight.cards), sight.driver, sight.cuda, found and found.message]))\n"
    )
    assert ask_driver(program) == [2, "580.95.05", [13, 0], None]
    count, driver, cuda, message = ask_driver(program, "12.4")
    assert (count, driver, cuda) == (2, "550.54.14", [12, 4])
    assert "built for CUDA 13.2" in message


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    monkeypatch.setattr(torch_check, "_obstacles", {})
    monkeypatch.setattr(torch_check, "_failures", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch_check, "installed_build", lambda: CUDA)
    monkeypatch.setattr(torch_check, "look", lambda: SIGHT)
    monkeypatch.setattr(torch_check, "_FRESH_SECONDS", 0.0)
    return monkeypatch


def test_torch_is_asked_once_about_a_card_that_it_uses(fresh: Any) -> None:
    ask = Mock(return_value="")
    assert [torch_check.obstacle_here(None, ask) for _ in range(3)] == [None] * 3
    # Another process finds the answer in the home; another card or driver has none.
    fresh.setattr(torch_check, "_failures", {})
    assert torch_check.obstacle_here(None, ask) is None
    assert ask.mock_calls == [call(UUIDS[0])]
    torch_check.obstacle_here("1", ask)
    fresh.setattr(torch_check, "look", lambda: replace(SIGHT, driver="590.1"))
    torch_check.obstacle_here(None, ask)
    assert ask.mock_calls == [call(UUIDS[0]), call(UUIDS[1]), call(UUIDS[0])]


def test_a_failure_of_torch_is_reported_and_not_written_down(fresh: Any, tmp_path: Path) -> None:
    ask = Mock(return_value="CUDA unknown error")
    found = [torch_check.obstacle_here(None, ask) for _ in range(2)]
    assert all("CUDA unknown error" in str(error) for error in found)
    assert ask.call_count == 1
    assert list(tmp_path.iterdir()) == []
    # Without a usable card, there is nothing to ask about.
    fresh.setattr(torch_check, "look", lambda: NO_LIBRARY)
    assert torch_check.obstacle_here(None, ask) is None
    fresh.setattr(torch_check, "look", lambda: OLD)
    assert "550.54.14" in str(torch_check.obstacle_here(None, ask))
    assert ask.call_count == 1


@pytest.mark.anew
def test_the_process_says_what_torch_says() -> None:
    import torch

    said = torch_check._ask_torch(None)
    if torch.version.cuda is None or torch.cuda.is_available():
        assert said == ""  # a build for the CPU is known by its version
    else:
        assert "driver" in said


THREE = Sight(cards=(Identity(0, "GPU-a"), Identity(1, "GPU-b"), Identity(2)), capabilities=((8, 9),) * 3)


def cards(sight: Sight = THREE, hardware: dict[str, Any] | None = None, **distributed: Any) -> list[str | None]:
    """The cards that a configuration comes to, all of them visible."""
    values = {"data": {"train": "rows.jsonl"}, "hardware": hardware or {}, "distributed": distributed}
    return process_cards(Config.model_validate(values), sight, {})


@cases(
    ("distributed", "found"),
    [
        ({}, [None]),
        ({"processes": 1}, [None]),
        ({"processes": 2}, ["GPU-a", "GPU-b"]),
        ({"gpus": "all"}, ["GPU-a", "GPU-b", "2"]),
        ({"gpus": "all", "processes": 2}, ["GPU-a", "GPU-b"]),
        ({"gpus": ["2", "GPU-a"]}, ["2", "GPU-a"]),
        ({"gpus": "1"}, ["GPU-b"]),
    ],
)
def test_each_process_has_a_card(distributed: dict[str, Any], found: list[str | None]) -> None:
    assert cards(**distributed) == found
    assert cards(hardware={"gpu": "1"}) == ["GPU-b"]
    for device in ("cpu", "auto"):
        assert cards(Sight(), {"device": device}, processes=3) == [None] * 3


@cases(
    ("sight", "distributed", "words"),
    [
        (THREE, {"processes": 4}, "There are 3 cards for 4 processes."),
        (THREE, {"gpus": ["0", "5"]}, "distributed.gpus is 5, and no card is called so"),
        (Sight(), {"gpus": "0"}, "distributed.gpus is 0, and there is no NVIDIA card here."),
    ],
)
def test_too_few_cards_are_a_sentence(sight: Sight, distributed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        cards(sight, **distributed)
    assert words in caught.value.message


def test_wsl_is_recognized_by_its_kernel(tmp_path: Path) -> None:
    assert not is_wsl(tmp_path)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    for release in ("6.6.87.2-microsoft-standard-WSL2", "4.4.0-19041-Microsoft", "6.8.0-45-generic"):
        (tmp_path / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
        assert is_wsl(tmp_path) is ("icrosoft" in release)


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sight:
    """Two AMD cards as the system shows them to torch for ROCm: one that KFD does not list, and a gfx1100."""
    make_card(tmp_path, CARD)
    make_card(
        tmp_path, {**CARD, "unique_id": "2", "drm/renderD128/dev": "", "drm/renderD129/dev": ""}, 1, "0000:09:00.0"
    )
    make_processes(tmp_path, {}, minor=129)
    (tmp_path / "sys/devices/0000:09:00.0/drm/renderD128/dev").unlink()
    (tmp_path / "sys/devices/0000:09:00.0/drm/renderD128").rmdir()
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / "home"))
    assert not look(root=tmp_path).cards
    monkeypatch.setattr(module, "is_rocm", lambda: True)
    return look(root=tmp_path)


def test_an_amd_card_is_used_once_its_self_test_has_passed(amd: Sight) -> None:
    assert (amd.is_amd, [card.architecture for card in amd.cards]) == (True, ["", "gfx1100"])
    visible = {"HIP_VISIBLE_DEVICES": "1"}
    refused = there(find_obstacle(amd, ROCM, environment=visible))
    assert refused.message == (
        "The AMD card (GPU 1, gfx1100) has not passed the self-test with torch 2.13.0+rocm7.1 and this driver, and "
        "AMD's cards train only after that."
    )
    assert refused.hint == (
        "Run 'localtune-tui selftest' once, which decides it; to train on the CPU anyway, set hardware.device = cpu."
    )
    proof = Proof.here("gfx1100", ROCM.version, amd.driver)
    settle(proof, passed=True)
    assert find_obstacle(amd, ROCM, environment=visible) is None
    assert find_obstacle(amd, ROCM, gpu="1", environment={}) is None
    # Another torch, driver or architecture has proven nothing, nor has a later self-test that failed.
    for sight, build in ((amd, replace(ROCM, version="2.14.0+rocm7.1")), (replace(amd, driver="6.17"), ROCM)):
        assert "has not passed" in str(find_obstacle(sight, build, environment=visible))
    assert "HIP out of memory" in str(find_obstacle(amd, ROCM, environment=visible, torch_error="HIP out of memory"))
    settle(proof, passed=False)
    assert "has not passed" in str(find_obstacle(amd, ROCM, environment=visible))


def test_the_self_test_itself_is_let_through(amd: Sight, monkeypatch: pytest.MonkeyPatch) -> None:
    visible = {"HIP_VISIBLE_DEVICES": "1"}
    assert find_obstacle(amd, ROCM, environment=visible) is not None
    monkeypatch.setenv(TRYING_VARIABLE, "1")
    assert find_obstacle(amd, ROCM, environment=visible) is None


@cases(
    ("variables", "gpu", "words"),
    [
        ({}, None, "The AMD card (GPU 0) cannot be used: the driver for computing (KFD) does not list it."),
        ({"HIP_VISIBLE_DEVICES": "7"}, None, "HIP_VISIBLE_DEVICES is '7', and no card is called so."),
        ({"HIP_VISIBLE_DEVICES": "0"}, "1", "HIP_VISIBLE_DEVICES is '0', which hides that card."),
        ({}, "5", "hardware.gpu is 5, and no card is called so, or more than one."),
        ({"HIP_VISIBLE_DEVICES": "-1"}, None, ""),
    ],
)
def test_an_amd_card_that_cannot_be_used_has_a_reason(
    amd: Sight, variables: dict[str, str], gpu: str | None, words: str
) -> None:
    found = find_obstacle(amd, ROCM, gpu=gpu, environment=variables)
    assert (str(found) if found else "").startswith(words) if gpu is None else words in str(found)
    assert "nvidia-smi" not in str(found)


def test_hip_is_given_a_card_by_its_number(amd: Sight) -> None:
    assert only_card("AMD-2", amd, {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert only_card("AMD-2", amd, {"HIP_VISIBLE_DEVICES": "0,1"}) == {"HIP_VISIBLE_DEVICES": "1"}
    assert only_card(UUIDS[0], SIGHT, {}) == {"CUDA_VISIBLE_DEVICES": UUIDS[0]}


def test_a_mac_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    found = there(find_obstacle(look(), CPU))
    assert "no 8-bit optimizers, PyTorch has no 64-bit numbers, and 4-bit weights are too slow" in found.message
    assert "SSH" in found.hint
