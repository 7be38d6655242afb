"""Linux under Windows (WSL 2), which uses the driver of Windows, and the settings of torch's CUDA allocator there and
elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: The sentence on expandable segments there.
NO_EXPANDABLE_SEGMENTS = "expandable segments are off under WSL 2, where the driver fails with them"

#: The sentence on pinned memory there.
NO_PINNED_MEMORY = "pinned memory is short under WSL 2, and memory.activation_offload = on takes it all the same"

#: Share of a card's free memory that a run may take there; the driver silently takes more from the host's.
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


def allocator_defaults(variables: Mapping[str, str], *, wsl: bool) -> dict[str, str]:
    """Variables of the CUDA allocator, which reads them at its first call; none if the user has set either name, since
    the other one could override it.

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
    """The allocator's segments as half a sentence, once a worker has set them.

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
