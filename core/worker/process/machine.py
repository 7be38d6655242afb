"""The machine and the software that a run is computed with, as far as its last bits depend on them."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core import __version__
from core.hardware.cpu import cpu_name

#: Packages whose code has a part in the numbers.
PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy"),
    *("triton", "mamba-ssm", "causal-conv1d"),
)


def software() -> dict[str, str]:
    """Versions by name of package; packages that are not installed are left out."""
    found = {"localtune-tui": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What computes: the processor with its instructions, the threads, and the card with its driver where there is one.

    Args:
        device: That of the training.
    """
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": cpu_name(),
        "instructions": _instructions(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _TOLD if name in os.environ},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["card"] = properties.name
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


#: Variables that change which code computes.
_TOLD = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "CUBLAS_WORKSPACE_CONFIG")


def _instructions() -> str:
    """A digest of the instructions that the processor has; empty where the kernel does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return hashlib.sha256(" ".join(sorted(value.split())).encode()).hexdigest()[:16]
    return ""
