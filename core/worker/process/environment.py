"""Environment variables that torch and its family need before they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping

from core.hardware.visible import ORDER
from core.hardware.wsl import NO_EXPANDABLE_SEGMENTS, is_wsl

#: Offline and silent: no hub look-ups, no telemetry, no tracker that phones home.
_PRIVATE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "offline",
}
_DEFAULTS = {
    # The rows are tokenized before any fork could be a problem, and the library's warning about it is noise.
    "TOKENIZERS_PARALLELISM": "false",
    # Cards are numbered as nvidia-smi and NVML number them, so that the plan and the run speak of the same one.
    ORDER: "PCI_BUS_ID",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Progress is told by events; bars would fill the log.
    "TQDM_DISABLE": "1",
}
#: The allocator's variables: the present name and the former one, of which torch releases prefer one or the other.
ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_EXPANDABLE, _FIXED = "expandable_segments:True", "expandable_segments:False"
#: Where other processes keep the cores busy, OpenMP's spinning makes every small matrix product wait for a scheduler
#: tick; on a quiet machine sleeping instead costs 10 to 20 %.
_OVERSUBSCRIBED = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
#: Load per core, over the last minute, from which the machine counts as oversubscribed.
OVERSUBSCRIBED_LOAD = 0.75


def prepare() -> None:
    """Set the variables; the private ones always, the others where the user has not."""
    os.environ.update(_PRIVATE)
    defaults = _DEFAULTS | (_OVERSUBSCRIBED if is_oversubscribed() else {})
    defaults |= allocator_defaults(os.environ, wsl=is_wsl())
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # With the package "kernels", importing bitsandbytes fetches native code from a hub. Here it counts as not
    # installed, and bitsandbytes' advice to install it is not passed on.
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Notes of libraries to one another; in a user's log they read like something to act on.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|torch|peft)\b")


def allocator_defaults(variables: Mapping[str, str], *, wsl: bool) -> dict[str, str]:
    """Variables of the CUDA allocator, which reads them at its first call; none where the user has set either name,
    since the other one could overrule it.

    Growing segments keep fragmentation from ending a run that fits. Under WSL 2 the driver's calls for them fail at the
    first allocation.

    Args:
        variables: The environment.
        wsl: Whether this is Linux under Windows.
    """
    if any(name in variables for name in ALLOCATOR_NAMES):
        return {}
    return dict.fromkeys(ALLOCATOR_NAMES, _FIXED if wsl else _EXPANDABLE)


def describe_allocator(variables: Mapping[str, str], *, wsl: bool) -> str:
    """The allocator's segments in half a sentence, once :func:`prepare` has set them.

    Args:
        variables: The environment.
        wsl: Whether this is Linux under Windows.
    """
    said = {name: variables[name] for name in ALLOCATOR_NAMES if name in variables}
    if said == dict.fromkeys(ALLOCATOR_NAMES, _EXPANDABLE):
        return "expandable segments"
    if wsl and said == dict.fromkeys(ALLOCATOR_NAMES, _FIXED):
        return NO_EXPANDABLE_SEGMENTS
    return f"the allocator as you set it ({', '.join(f'{name}={value}' for name, value in said.items())})"


def is_oversubscribed() -> bool:
    """Whether other processes keep this machine's cores busy already."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) >= OVERSUBSCRIBED_LOAD
