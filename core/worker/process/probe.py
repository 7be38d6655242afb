"""Probe of torch and its libraries on this machine, as a job: importing them takes seconds, and a broken installation
may end the process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from core.hardware import amd
from core.hardware.card import BF16_CAPABILITY
from core.jobs.process import Answers

if TYPE_CHECKING:
    import torch


def probe(job: dict[str, Any], answers: Answers) -> dict[str, Any]:  # noqa: ARG001
    """Gather the facts.

    Args:
        job: ``device_only``: only torch and its cards, which takes a third of the time.
        answers: Unused.

    Returns:
        The facts, and ``errors`` by library.
    """
    facts: dict[str, Any] = {"errors": {}}
    for name, ask in (("torch", _torch), ("bitsandbytes", _bitsandbytes), ("transformers", _versions)):
        try:
            facts.update(ask())
        except Exception as error:  # any failure of a library is a finding
            facts["errors"][name] = f"{type(error).__name__}: {error}"
        if job["device_only"]:
            break
    return facts


def _torch() -> dict[str, Any]:
    import torch

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            devices.append(
                {
                    "name": properties.name,
                    "capability": architecture_of(index) or f"{properties.major}.{properties.minor}",
                    "memory": properties.total_memory,
                    # Older cards emulate bfloat16 at a fraction of the speed.
                    "bf16": has_bf16(index),
                    "uuid": f"GPU-{getattr(properties, 'uuid', '')}",
                }
            )
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: None)()
    return {
        "cuda_error": cuda_error(),
        "architectures": torch.cuda.get_arch_list(),
        "torch": torch.__version__,
        "cuda_build": torch.version.cuda,
        "hip_build": torch.version.hip,
        "cuda": bool(devices),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpu_capability": capability,
    }


def _bitsandbytes() -> dict[str, Any]:
    import torch
    from bitsandbytes import __version__
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
    packed, state = quantize_4bit(weights, quant_type="nf4")
    error = (dequantize_4bit(packed, state) - weights).abs().max().item()
    library = os.path.basename(str(getattr(getattr(lib, "_lib", None), "_name", "") or ""))
    return {"bitsandbytes": __version__, "bnb_library": library, "nf4_error": error, "nf4_device": device}


def _versions() -> dict[str, Any]:
    import peft
    import transformers

    return {"transformers": transformers.__version__, "peft": peft.__version__}


def architecture_of(device: torch.device | int) -> str:
    """The architecture of an AMD card, ``gfx1100``; empty for an NVIDIA card."""
    import torch

    if torch.version.hip is None:
        return ""
    # Features of the chip follow behind colons: gfx90a:sramecc+:xnack-.
    return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]


def has_bf16(device: torch.device | int) -> bool:
    """True if a card has matrix instructions for bf16: NVIDIA's from compute capability 8.0, AMD's from RDNA 3, and
    CDNA."""
    import torch

    architecture = architecture_of(device)
    return amd.has_bf16(architecture) if architecture else torch.cuda.get_device_capability(device) >= BF16_CAPABILITY


def cuda_error() -> str | None:
    """Reason why a build of torch for CUDA or ROCm cannot use a card; None if it can, or is a CPU build."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # An installation without kernels for this card imports well and fails at the first product.
        square = torch.ones(16, 16, device="cuda")
        torch.cuda.synchronize((square @ square).device)
    except Exception as error:  # any failure means that the card cannot be used
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None
