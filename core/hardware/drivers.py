"""Drivers, CUDA and torch: which driver a build of torch needs, which build suits a driver, and torch's allocator; and
Linux under Windows (WSL 2), which uses the driver of Windows.

Sources: NVIDIA, CUDA Compatibility, "Minor Version Compatibility" and the CUDA Toolkit release notes
(docs.nvidia.com/deploy/cuda-compatibility, docs.nvidia.com/cuda/cuda-toolkit-release-notes); the builds of each torch
from its CUDA support matrices (github.com/pytorch/pytorch/issues/172663, 178665, 190355, 190385).
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.version import Version

#: Oldest driver on Linux for any release of a CUDA major version, by that version. Within a major version an older
#: driver runs a newer CUDA.
OLDEST_DRIVERS: dict[int, str] = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
#: The wheels that suit a driver for a CUDA major version: index at download.pytorch.org, and versions of torch there.
_WHEELS: dict[int, tuple[str, str]] = {12: ("cu126", "torch>=2.10,<2.15"), 13: ("cu130", "torch>=2.10")}
#: The last wheels for CUDA 12 with kernels for Blackwell, and the first capability that needs them.
_BLACKWELL, _BLACKWELL_WHEELS = (10, 0), ("cu128", "torch>=2.10,<2.12")


@dataclass(frozen=True)
class Build:
    """The installed torch, as its files describe it.

    Args:
        version: ``2.13.0+cpu``.
        cuda: The CUDA that it was built with, ``13.0``; None without.
        hip: The ROCm that it was built with; None without.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None

    @property
    def major(self) -> int | None:
        """The major version of its CUDA."""
        first = (self.cuda or "").partition(".")[0]
        return int(first) if first.isdecimal() else None


def installed_build() -> Build | None:
    """The installed torch, from its ``version.py``, without importing it; None if there is none."""
    try:
        found = importlib.util.find_spec("torch")
        version = metadata.version("torch")
    except (ImportError, ValueError, metadata.PackageNotFoundError):
        return None
    if found is None or found.origin is None:
        return None
    try:
        text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The package version lacks the local part of the build: 2.10.0 for 2.10.0+cu128.
    return Build(_assigned(text, "__version__") or version, _assigned(text, "cuda"), _assigned(text, "hip"))


def is_rocm() -> bool:
    """True if the installed torch is built for ROCm, and so computes on AMD's cards."""
    build = installed_build()
    return build is not None and build.hip is not None


def _assigned(text: str, name: str) -> str | None:
    """The string assigned to a name in Python source; None if there is no string."""
    match = re.search(rf"""^{name}\s*(?::[^=\n]*)?=\s*['"]([^'"\n]+)['"]""", text, re.MULTILINE)
    return match[1] if match else None


def driver_suffices(build: Build, driver_cuda: tuple[int, int]) -> bool:
    """True if a driver runs a build.

    Args:
        build: With CUDA.
        driver_cuda: The newest CUDA that the driver supports.
    """
    return build.major is None or build.major <= driver_cuda[0]


def install_command(driver_cuda: tuple[int, int], capability: tuple[int, int] | None) -> str:
    """The commands to install a torch that suits a driver and a card; empty if no supported version does.

    Args:
        driver_cuda: The newest CUDA that the driver supports.
        capability: Of the card; None if unknown.
    """
    wheels = _WHEELS.get(min(driver_cuda[0], max(_WHEELS)))
    if wheels is None:
        return ""
    if driver_cuda[0] == 12 and capability is not None and capability >= _BLACKWELL:
        wheels = _BLACKWELL_WHEELS
    index, versions = wheels
    # pip considers another build of the same version as installed, so the present one goes first.
    source = f"--index-url https://download.pytorch.org/whl/{index}"
    if importlib.util.find_spec("pip") is None:
        # A tool's environment of uv or pipx has no pip of its own.
        at = f"--python {sys.executable}"
        return f"uv pip uninstall {at} torch && uv pip install {at} '{versions}' {source}"
    pip = f"{sys.executable} -m pip"
    return f"{pip} uninstall -y torch && {pip} install '{versions}' {source}"


def describe_table() -> str:
    """The table in one line: ``CUDA 11 from driver 450.80.02, …``."""
    return ", ".join(f"CUDA {major} from driver {driver}" for major, driver in OLDEST_DRIVERS.items())


def driver_sentence(driver: str, driver_cuda: tuple[int, int], build: Build) -> str:
    """The driver's consequence for the installed torch, in a sentence.

    Args:
        driver: Version of the driver; empty if unknown.
        driver_cuda: The newest CUDA that it supports.
        build: The installed torch, with CUDA.
    """
    have = f"driver {driver} runs CUDA up to {driver_cuda[0]}.{driver_cuda[1]}" if driver else "the driver is unknown"
    oldest = OLDEST_DRIVERS.get(build.major or 0)
    since = f", which runs from driver {oldest} on" if oldest else ""
    return f"{have}; torch {build.version} is built for CUDA {build.cuda}{since}"


#: Half a sentence on expandable segments under WSL 2.
_NOT_ON_WSL = "expandable segments are off under WSL 2, where the driver fails with them"
#: The first torch and ROCm with expandable segments (github.com/pytorch/pytorch/pull/177974 and 179930).
_ROCM_TORCH, _ROCM = (2, 12), 7
#: Half a sentence on pinned memory under WSL 2.
NO_PINNED_MEMORY = "pinned memory is short under WSL 2, and memory.activation_offload = on uses it anyway"
#: Share of a card's free memory that a run may take under WSL 2; the driver silently takes more from the host's.
MEMORY_SHARE = 0.95
#: The allocator's variable under its present and its former name; releases of torch differ in which they prefer.
ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_EXPANDABLE, _FIXED = "expandable_segments:True", "expandable_segments:False"


def is_wsl(root: Path = Path("/")) -> bool:
    """True if this is a kernel of WSL, version 1 or 2."""
    try:
        release = (root / "proc/sys/kernel/osrelease").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "microsoft" in release.lower()


def fixed_segments_reason(build: Build | None, *, wsl: bool) -> str:
    """The reason why the allocator's segments cannot expand, as half a sentence; empty if they can.

    Args:
        build: The torch that runs; None if unknown.
        wsl: Whether this is Linux under Windows.
    """
    if wsl:
        return _NOT_ON_WSL
    if build is None or not build.hip:
        return ""
    if Version(build.version).release >= _ROCM_TORCH and int(build.hip.partition(".")[0]) >= _ROCM:
        return ""
    return f"expandable segments are off in torch {build.version}: on ROCm they begin with 2.12 and ROCm 7"


def allocator_defaults(variables: Mapping[str, str], fixed: str) -> dict[str, str]:
    """Variables of the CUDA allocator, which reads them at its first call; none if the user has set either name, since
    the other one could override it.

    Growing segments keep fragmentation from ending a run that fits. Where they do not work, the driver's calls for them
    fail at the first allocation.

    Args:
        variables: The environment.
        fixed: Result of :func:`fixed_segments_reason`.
    """
    if any(name in variables for name in ALLOCATOR_NAMES):
        return {}
    return dict.fromkeys(ALLOCATOR_NAMES, _FIXED if fixed else _EXPANDABLE)


def describe_allocator(variables: Mapping[str, str], fixed: str) -> str:
    """The allocator's segments as half a sentence, once a worker has set them.

    Args:
        variables: The environment.
        fixed: Result of :func:`fixed_segments_reason`.
    """
    said = {name: variables[name] for name in ALLOCATOR_NAMES if name in variables}
    if said == dict.fromkeys(ALLOCATOR_NAMES, _EXPANDABLE):
        return "expandable segments"
    if fixed and said == dict.fromkeys(ALLOCATOR_NAMES, _FIXED):
        return fixed
    return f"the allocator as you set it ({', '.join(f'{name}={value}' for name, value in said.items())})"
