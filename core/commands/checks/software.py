"""Checks of Python, the libraries, and torch on this machine."""

from __future__ import annotations

import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

import core
from core.commands.checks import Finding
from core.commands.checks.gpu import DriverReport
from core.errors import UserError
from core.hardware.drivers import OLDEST_DRIVERS, install_command
from core.hardware.torch_check import PROBE
from core.jobs.job import call
from core.launch.launcher import worker_environment
from core.text import one_line
from core.units import counted, format_bytes

DISTRIBUTION = "localtune-tui"
_OLDEST_PYTHON = (3, 11)
#: Seconds allowed for importing torch and its family; a cold disk is slow.
PROBE_SECONDS = 180.0


def check_python() -> Finding:
    """Check the Python version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return Finding("python", "fail", f"Python {version} is too old.", "Install Python 3.11 or newer.")
    return Finding("python", "ok", f"Python {version} at {sys.executable}")


def check_libraries() -> Finding:
    """Check the installed versions against the project's requirements."""
    requirements = requirements_of_project()
    if not requirements:
        return Finding("libraries", "warn", "The project's requirements cannot be found.", reinstall())
    problems = []
    for name, wanted in requirements.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is missing")
            continue
        if not satisfies(found, wanted):
            problems.append(f"{name} is {found}, needed is {wanted}")
    if problems:
        return Finding("libraries", "fail", f"{'; '.join(problems)}.", reinstall())
    return Finding("libraries", "ok", f"all {len(requirements)} are present, each in a version that is supported")


def check_torch(driver: DriverReport | None = None, timeout: float = PROBE_SECONDS) -> list[Finding]:
    """Import torch and its family in a process of their own, and try a 4-bit quantization.

    Args:
        driver: The driver's report, to explain a card that torch does not use.
        timeout: Seconds allowed.
    """
    environment, asked = worker_environment(), {"device_only": False}
    try:
        facts = call("the import of torch", PROBE, asked, hint=reinstall(), seconds=timeout, environment=environment)
    except UserError as error:
        hint = error.hint or "Look at the load of the machine and of its disk, and try again."
        return [Finding("torch", "fail", error.message, hint)]
    return describe_probe(facts, driver)


def describe_probe(facts: dict[str, Any], driver: DriverReport | None = None) -> list[Finding]:
    """The findings from a probe's facts together with the driver's report."""
    errors = {str(key): one_line(str(value), 300) for key, value in dict(facts.get("errors") or {}).items()}
    found = [
        Finding(library, "fail", f"{library} cannot be used: {reason}", reinstall())
        for library, reason in errors.items()
    ]
    if "torch" in errors:
        return found
    return [_torch(facts, driver), *([_quantization(facts)] if "bitsandbytes" not in errors else []), *found]


def _torch(facts: dict[str, Any], driver: DriverReport | None) -> Finding:
    build = "CUDA " + str(facts["cuda_build"]) if facts.get("cuda_build") else "no CUDA"
    if facts.get("hip_build"):
        build = f"ROCm {facts['hip_build']}"
    what = f"torch {facts.get('torch')} ({build})"
    devices = facts.get("devices") or []
    if (unused := _unused_card(facts, devices, driver)) is not None:
        reason, hint = unused
        return Finding("torch", "fail", f"{what} cannot use the card: {reason}", hint)
    if not devices:
        vector, threads = facts.get("cpu_capability"), facts.get("threads", 0)
        on = f"{counted(threads, 'thread')}{f', {vector}' if vector else ''}"
        hint = "Small models train well there; for 7B and more, use a machine with a 24 GB card."
        return Finding("torch", "warn", f"{what} sees no GPU; training runs on the CPU, {on}", hint)
    names = ", ".join(f"{item['name']} ({item['capability']}, {format_bytes(item['memory'])})" for item in devices)
    slow = [item["name"] for item in devices if not item["bf16"]]
    if slow:
        hint = "It works; fp16 is used there instead, with loss scaling."
        return Finding("torch", "warn", f"{what} uses {names}; {', '.join(slow)} has no bfloat16", hint)
    return Finding("torch", "ok", f"{what} uses {names}, bfloat16")


def _unused_card(
    facts: dict[str, Any], devices: list[dict[str, Any]], driver: DriverReport | None
) -> tuple[str, str] | None:
    """The reason why torch does not use an existing card, and the remedy; None where it does, or there is none."""
    for item in devices:
        if not _has_kernels(str(item["capability"]), facts.get("architectures") or []):
            kind = str(item["capability"])
            return (
                f"it has no kernels for {item['name']} ({kind if kind.startswith('gfx') else f'compute {kind}'}).",
                "Install a build of torch that has them: pytorch.org/get-started/locally names the command.",
            )
    reason = one_line(str(facts.get("cuda_error") or ""), 200).rstrip(".")
    if devices and reason:
        return f"{reason}.", "Look at the driver with 'nvidia-smi', and install torch again."
    if devices or driver is None or not driver.cards:
        return None
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        value = one_line(os.environ["CUDA_VISIBLE_DEVICES"], 40)
        return f"CUDA_VISIBLE_DEVICES is '{value}', which hides it.", "Unset it to train on the card."
    build = str(facts.get("cuda_build") or "")
    if not build:
        command = install_command(driver.cuda, driver.capability) if driver.cuda else ""
        elsewhere = "Install the CUDA build of torch: pytorch.org/get-started/locally names the command."
        return "it was built without CUDA.", f"Run: {command}" if command else elsewhere
    major = build.partition(".")[0]
    if driver.cuda is not None and major.isdecimal() and int(major) > driver.cuda[0]:
        command = install_command(driver.cuda, driver.capability)
        return (
            f"it was built for CUDA {build}, and the driver serves CUDA {driver.cuda[0]}.{driver.cuda[1]} at most.",
            f"Update the NVIDIA driver to {OLDEST_DRIVERS.get(int(major), 'the newest')} or newer"
            f"{f', or run: {command}' if command else '.'}",
        )
    return f"{reason or 'no reason is given'}.", "Look at the driver with 'nvidia-smi', and reboot."


def _has_kernels(capability: str, architectures: list[str]) -> bool:
    """True if a build has kernels for a card: compiled for its major version (``sm_86``) or its very architecture
    (``gfx1100``), or PTX of any older version (``compute_80``), which the driver compiles."""
    if capability.startswith("gfx"):
        return capability in [name.partition(":")[0] for name in architectures]
    parts = re.fullmatch(r"(\d+)\.(\d+)", capability)
    if parts is None or not architectures:
        return True
    have = (int(parts[1]), int(parts[2]))
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        if built <= have and (match[1] == "compute" or built[0] == have[0]):
            return True
    return False


def _quantization(facts: dict[str, Any]) -> Finding:
    library = f" ({facts['bnb_library']})" if facts.get("bnb_library") else ""
    what = f"bitsandbytes {facts.get('bitsandbytes')}{library} quantizes to 4 bits on {facts.get('nf4_device')}"
    error = facts.get("nf4_error")
    if not isinstance(error, (int, float)) or not error < 0.2:
        return Finding("quantization", "fail", f"{what}, but the values come back wrong.", reinstall())
    return Finding("quantization", "ok", what)


def requirements_of_project() -> dict[str, SpecifierSet]:
    """The versions that the project supports, by the name of the package; extras are left out."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = _checkout_requirements()
    found = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[requirement.name] = requirement.specifier
    return found


def _checkout_requirements() -> list[str]:
    """The requirements from the project file, when the app runs from a checkout that is not installed."""
    import tomli

    path = Path(core.__file__).resolve().parent.parent / "pyproject.toml"
    try:
        project = tomli.loads(path.read_text(encoding="utf-8"))["project"]
        return [str(line) for line in project["dependencies"]]
    except (OSError, KeyError, tomli.TOMLDecodeError):
        return []


def satisfies(found: str, wanted: SpecifierSet | str) -> bool:
    """True if an installed version matches a specifier such as ``>=2.10,<2.16``; ``2.10.0+cu130`` counts as 2.10.0.

    A version that is not valid by PEP 440 matches nothing.
    """
    try:
        return SpecifierSet(str(wanted)).contains(Version(found).public, prereleases=True)
    except InvalidVersion:
        return False


def reinstall() -> str:
    """Advice on installing the program again."""
    return f"Install again: 'pipx reinstall {DISTRIBUTION}', 'uv tool upgrade {DISTRIBUTION}', or 'make demo'."
