"""Linux under Windows (WSL 2), which uses the driver of Windows."""

from __future__ import annotations

from pathlib import Path

#: The sentence on expandable segments there.
NO_EXPANDABLE_SEGMENTS = "expandable segments are off under WSL 2, where the driver fails with them"

#: The sentence on pinned memory there.
NO_PINNED_MEMORY = "pinned memory is short under WSL 2, and memory.activation_offload = on takes it all the same"

#: Share of a card's free memory that a run may take there; the driver silently takes more from the host's.
MEMORY_SHARE = 0.95


def is_wsl(root: Path = Path("/")) -> bool:
    """True if this is a kernel of WSL, version 1 or 2."""
    try:
        release = (root / "proc/sys/kernel/osrelease").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "microsoft" in release.lower()
