"""DeepSpeed, an optional package: whether it is installed, found without importing it."""

from __future__ import annotations

from importlib.util import find_spec

PACKAGE = "deepspeed"
INSTALL = "pip install 'localtune-tui[deepspeed]'"
#: The error and the hint if it is missing.
MISSING = (
    "distributed.strategy is deepspeed, and DeepSpeed is not installed.",
    f"{INSTALL}, or set distributed.strategy = fsdp2.",
)


def is_installed() -> bool:
    """True if DeepSpeed is installed."""
    return find_spec(PACKAGE) is not None
