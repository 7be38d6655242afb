from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from core.commands import doctor
from core.commands.checks import Finding, gpu, security, software, system, terminal
from core.hardware.drivers import Build
from core.hardware.snapshot import Device, GpuProcess
from core.runs.record import store as sockets
from tests.cases import cases, tables
from tests.core.hardware.conftest import Ask, ask_driver, fake_driver
from tests.forking import Forks

TABLES = tables(__file__)

__all__ = ["ask_driver", "fake_driver"]

Examine = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[3]
HEALTHY: dict[str, Any] = TABLES["healthy"]
V100 = {"name": "V100", "capability": "7.0", "memory": 1, "bf16": False}


@pytest.fixture
def examine(forks: Forks) -> Examine:
    """Runs the command in a process of its own."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tui", "doctor", *words]
        return forks.run(command, cwd=ROOT, env={**os.environ, **environment})

    return run


def test_the_report_is_one_object_with_everything_in_it(examine: Examine, tmp_path: Path) -> None:
    done = examine("--json", LOCALTUNE_HOME=str(tmp_path))
    report = json.loads(done.stdout)
    names = {finding["name"] for finding in report["findings"]}
    assert {"python", "libraries", "memory", "home", "control", "logout", "locale", "terminal", "torch"} <= names
    assert {"security", "hub"} <= names
    assert any(name.startswith("gpu") for name in names)
    for finding in report["findings"]:
        assert set(finding) == {"name", "status", "what", "hint"}
        assert finding["what"]
        assert finding["hint"] or finding["status"] == "ok"
    failed = any(finding["status"] == "fail" for finding in report["findings"])
    assert report["ok"] is not failed
    assert done.returncode == (1 if failed else 0)
    by_name = {finding["name"]: finding for finding in report["findings"]}
    assert by_name["python"]["status"] == by_name["libraries"]["status"] == "ok"
    # torch was really imported, and has really quantized something.
    assert by_name["quantization"]["status"] == "ok"


def test_a_home_that_cannot_be_written_fails_and_nothing_is_left_behind(examine: Examine, tmp_path: Path) -> None:
    examine("--quick", LOCALTUNE_HOME=str(tmp_path / "new"))
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    done = examine("--quick", LOCALTUNE_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    assert "FAIL  home" in done.stdout
    assert "Set LOCALTUNE_HOME" in done.stdout
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["file"]


def test_the_report_is_aligned_and_fits() -> None:
    findings = [
        Finding("memory", "ok", "24 GB free"),
        Finding("a longer name", "warn", "word " * 40, "do " * 40),
        Finding("gpu", "fail", "broken", "Reboot."),
    ]
    lines = doctor.render(findings, 80)
    assert lines[0] == "ok    memory         24 GB free"
    assert lines[-2:] == ["FAIL  gpu            broken", " " * 21 + "-> Reboot."]
    assert all(len(line) <= 80 for line in lines)
    heads = {"ok    memory         ", "warn  a longer name  ", "FAIL  gpu            ", " " * 21}
    assert {line[:21] for line in lines} == heads
    assert doctor.render([], 80) == []


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.status for finding in findings}


@cases(("change", "expected"), TABLES["a_probe_has_findings_for_torch_and_quantization"])
def test_a_probe_has_findings_for_torch_and_quantization(change: dict[str, Any], expected: str) -> None:
    findings = software.describe_probe({**HEALTHY, **change})
    assert ", ".join(f"{finding.name} {finding.status}" for finding in findings) == expected
    assert not any("\x1b" in finding.what for finding in findings)


@cases(("change", "cuda", "variables", "words"), TABLES["a_card_that_torch_does_not_use_is_explained"])
def test_a_card_that_torch_does_not_use_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    cuda: tuple[int, int] | None,
    variables: dict[str, str],
    words: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    facts = {**HEALTHY, "devices": [], **change}
    finding = software.describe_probe(facts, gpu.DriverReport([], 1, cuda))[0]
    assert (finding.name, finding.status) == ("torch", "fail")
    assert words in finding.what
    assert finding.hint
    assert "\x1b" not in finding.what
    # Without a card there is nothing to explain.
    assert software.describe_probe(facts, gpu.DriverReport([]))[0].status == "warn"
    what = software.describe_probe({**HEALTHY, "bnb_library": "libbitsandbytes_cuda130.so"})[1].what
    assert what == "bitsandbytes 0.50.2 (libbitsandbytes_cuda130.so) quantizes to 4 bits on cuda"


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed packages with their versions."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    return installed


def test_versions_with_known_holes_fail(versions: dict[str, str]) -> None:
    versions.update({name: fixed for name, fixed, _, _ in security.HOLES})
    assert security.check_holes().status == "ok"
    versions["transformers"] = "5.2.9"
    versions["torch"] = "2.9.1+cu128"
    finding = security.check_holes()
    assert finding.status == "fail"
    assert "transformers 5.2.9: a model's config.json can run code (CVE-2026-4372, closed in 5.3.0)" in finding.what
    assert "torch 2.9.1+cu128" in finding.what
    assert "jinja2" not in finding.what
    assert finding.hint
    del versions["transformers"]
    assert "transformers" not in security.check_holes().what


def test_a_package_that_fetches_code_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert security.check_hub({}).status == "ok"
    assert "HF_HUB_OFFLINE is not set" in security.check_hub({"HF_HUB_OFFLINE": "0"}).what
    assert "HF_HUB_OFFLINE set" in security.check_hub({"HF_HUB_OFFLINE": "1"}).what
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = security.check_hub({"HF_HUB_OFFLINE": "1"})
    assert finding.status == "warn"
    assert "pip uninstall kernels" in finding.hint


def under_windows(root: Path, kernel: str, *, cuda: bool = True) -> Path:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/version").write_text(kernel)
    if cuda:
        (root / "usr/lib/wsl/lib").mkdir(parents=True, exist_ok=True)
        (root / "usr/lib/wsl/lib/libcuda.so.1").touch()
    return root


def test_linux_under_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = "Linux version 6.6.87.2-microsoft-standard-WSL2 (root@x)"
    assert system.check_wsl(under_windows(tmp_path, "Linux version 6.8.0-45-generic")) == []
    assert statuses(system.check_wsl(under_windows(tmp_path, "Linux version 4.4.0-19041-Microsoft"))) == {"wsl": "fail"}
    assert statuses(system.check_wsl(under_windows(tmp_path, new))) == {"wsl": "ok"}
    (tmp_path / "bare").mkdir()
    (finding,) = system.check_wsl(under_windows(tmp_path / "bare", new, cuda=False))
    assert (finding.status, "driver in Windows" in finding.hint) == ("warn", True)
    monkeypatch.setenv("LOCALTUNE_HOME", "/mnt/c/Users/anna/localtune")
    (finding,) = system.check_wsl(under_windows(tmp_path, new))
    assert (finding.status, "Windows disk" in finding.what) == ("warn", True)
    monkeypatch.setenv("LOCALTUNE_HOME", "/mnt/data/localtune")
    assert statuses(system.check_wsl(under_windows(tmp_path, new))) == {"wsl": "ok"}


@cases(("features", "delay", "colors", "words"), TABLES["tmux"])
def test_tmux(features: str, delay: str, colors: str, words: list[str]) -> None:
    answers = {"display-message": features, "show-options": delay}
    found = terminal.check_tmux({"COLORTERM": colors}, lambda command: answers[command[1]])
    text = " ".join(f"{finding.status} {finding.what} {finding.hint}" for finding in found)
    assert bool(found) == bool(words)
    assert all(word in text for word in words)


def test_a_probe_that_dies_is_reported_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    for script, words in (
        ("echo noise; echo 'Illegal instruction' >&2; exit 132", "code 132; its log ends with: Illegal instruction"),
        ("exit 1", "The import of torch failed: its process ended with code 1."),
        ("sleep 60", "The import of torch was not done after 0.3s, and was ended."),
    ):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))
        (finding,) = software.check_torch(timeout=0.3 if "sleep" in script else 120.0)
        assert finding.status == "fail"
        assert words in finding.what


def test_versions_are_compared_as_numbers(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions.update({"torch": "2.10.0+cu130", "peft": "0.9", "textual": "8.2.8"})
    wanted = ["torch<2.16,>=2.9", "peft>=0.21", "textual==8.2.8", "gguf>=0.17", 'ruff>=9; extra == "test"']
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    finding = software.check_libraries()
    assert finding.status == "fail"
    assert finding.what == "peft is 0.9, needed is >=0.21; gguf is missing."
    versions.update(peft="0.21.1", gguf="1.0rc1")
    assert software.check_libraries().what == "all 4 are present, each in a version that is supported"
    versions["torch"] = "2.16.1+cu130"
    assert software.check_libraries().what == "torch is 2.16.1+cu130, needed is <2.16,>=2.9."
    assert not software.satisfies("built by hand", ">=1")


def test_the_floors_of_a_checkout_come_from_its_project_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    names = set(software.requirements_of_project())
    assert {"torch", "textual", "tomlkit", "bitsandbytes"} <= names
    assert "pytest" not in names


GPU_PROGRAM = (
    "import json\nfrom core.commands.checks.gpu import check_gpu\n"
    "print(json.dumps([finding.to_dict() for finding in check_gpu(TIMEOUT).findings]))\n"
)


def test_cards_are_described_with_who_holds_their_memory(ask_driver: Ask) -> None:
    found = {item["name"]: item for item in ask_driver(GPU_PROGRAM.replace("TIMEOUT", "20"))}
    assert found["driver"]["what"] == "driver 580.95.05, CUDA up to 13.0"
    card = "NVIDIA GeForce RTX 4090, compute 8.9, with bf16, limit 450 W, 71 °C (slows down at 87)"
    assert found["gpu 0"]["what"] == card
    assert found["gpu 0 clock"]["status"] == "warn"
    assert "thermal slowdown" in found["gpu 0 clock"]["what"]
    memory = found["gpu 0 memory"]
    assert memory["status"] == "warn"
    assert memory["what"].startswith("18.0 GB of 24.0 GB free; held by pid 4194300 (a process that is gone")
    assert "python" in memory["what"]
    assert "No process admits" in found["gpu 1 memory"]["hint"]
    assert found["gpu 0 meters"]["what"].startswith("all can be read")
    assert "all but memory temperature, utilization, power" in found["gpu 1 meters"]["what"]
    assert "the power limit, from 150 to 480 W" in found["gpu 0 power"]["what"]


@cases(("mode", "seconds", "words"), TABLES["broken_drivers_fail_with_advice"])
def test_broken_drivers_fail_with_advice(ask_driver: Ask, mode: str, seconds: str, words: str) -> None:
    found = ask_driver(GPU_PROGRAM.replace("TIMEOUT", seconds), mode)
    failed = [item for item in found if item["status"] == "fail"]
    assert [words in item["what"] for item in failed] == [True]
    assert failed[0]["hint"]


def test_a_free_card_is_well() -> None:
    device = Device(index=0, kind="cuda", name="RTX", memory_used=10**9, memory_total=24 * 10**9)
    assert statuses(gpu.describe_device(device, None, [])) == {"gpu 0": "ok", "gpu 0 memory": "ok"}
    told = gpu.describe_process(GpuProcess(os.getpid(), None))
    assert re.fullmatch(rf"pid {os.getpid()} \(.+ of .+, for [0-9dhms. ]+\)", told), told
    # Under Windows no process is blamed.
    device = Device(index=0, kind="cuda", name="RTX", memory_free=5 * 10**9, memory_total=24 * 10**9)
    assert "a reboot frees it" in gpu.describe_device(device, (8, 9), [])[-1].hint
    assert "Windows does not tell" in gpu.describe_device(device, (8, 9), [], wsl=True)[-1].hint


def test_a_card_without_a_driver_is_seen_on_the_bus(tmp_path: Path) -> None:
    assert not gpu._pci_card(tmp_path / "missing")
    for name, vendor, kind in (("a", "0x8086", "0x030000"), ("b", "0x10de", "0x040300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert not gpu._pci_card(tmp_path)
    (tmp_path / "b" / "class").write_text("0x030200\n")
    assert gpu._pci_card(tmp_path)


ETC, DROP_IN = "etc/systemd/logind.conf", "systemd/logind.conf.d/50.conf"
KILLS, KEEPS = (f"[Login]\nKillUserProcesses={answer}\n" for answer in ("yes", "no"))


def logind(root: Path, files: dict[str, str]) -> Path:
    (root / "run/systemd/system").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@cases(("files", "kills"), TABLES["logind_is_read_as_systemd_reads_it"])
def test_logind_is_read_as_systemd_reads_it(tmp_path: Path, files: dict[str, str], kills: bool) -> None:
    assert system.kill_user_processes(logind(tmp_path, files)) is kills


def test_a_logout_that_ends_runs_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert system.check_logout(tmp_path).status == "ok"
    root = logind(tmp_path, {})
    finding = system.check_logout(root)
    assert finding.status == "warn"
    assert "enable-linger" in finding.hint
    logind(root, {ETC: KEEPS})
    assert system.check_logout(root).status == "ok"


@cases(("environment", "status", "words"), TABLES["terminals"])
def test_terminals(environment: dict[str, str], status: str, words: str) -> None:
    finding = terminal.check_terminal(environment)[1]
    assert (finding.name, finding.status) == ("terminal", status)
    assert words in finding.what


@pytest.mark.anew
def test_a_locale_without_utf_8_is_a_warning(examine: Examine) -> None:
    done = examine("--quick", "--json", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    found = {item["name"]: item for item in json.loads(done.stdout)["findings"]}
    assert found["locale"]["status"] == "warn"
    assert "LANG" in found["locale"]["hint"]


def test_sockets_are_tried_where_they_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lt-") as directory:
        monkeypatch.setenv("LOCALTUNE_HOME", directory)
        finding = system.check_socket()
        assert (finding.status, directory in finding.what) == ("ok", True)
        monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path / ("deep" * 20)))
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        finding = system.check_socket()
        assert finding.status == "ok"
        assert "too long" in finding.what
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("deep" * 20)))
        (tmp_path / ("deep" * 20)).mkdir(mode=0o777)
        # Too long, and others may look into it: a run makes a directory of its own.
        finding = system.check_socket()
        assert (finding.status, f"a run makes a directory in {tempfile.gettempdir()}" in finding.what) == ("warn", True)
        monkeypatch.setattr(sockets, "_socket_places", lambda: [tmp_path / "none"])
        assert system.check_socket().status == "fail"
        assert os.listdir(directory) == []


@cases(("free", "status"), [(10**9, "fail"), (8 * 10**9, "warn"), (90 * 10**9, "ok")])
def test_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(system, "memory", lambda: (10**9, 10**9 + free))
    assert system.check_memory().status == status
    tmp_path.chmod(0o700)
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type(usage)(usage.total, usage.used, free))
    assert system.check_home().status == status
    tmp_path.chmod(0o755)
    if status == "ok":
        assert system.check_home().hint == f"chmod 700 {tmp_path}"


@cases(("build", "cuda", "status", "words"), TABLES["builds_of_torch"])
def test_the_driver_is_compared_with_torch(build: list[str], cuda: list[int], status: str, words: str) -> None:
    torch, report = Build(*build), gpu.DriverReport([], 1, (cuda[0], cuda[1]), "550.54.14", (8, 9))
    (finding,) = gpu.check_cuda(report, torch)
    assert finding.status == status
    assert words in finding.what
    assert ("pip" in finding.hint) is (status == "fail")
    assert gpu.check_cuda(gpu.DriverReport([]), torch) == gpu.check_cuda(report, None) == []
