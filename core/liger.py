"""Liger's kernels, an optional package: its version, found without importing it."""

from __future__ import annotations

import re
from importlib import metadata

PACKAGE = "liger-kernel"
#: The oldest version whose results have been compared with ours.
OLDEST = "0.8.5"
INSTALL = "pip install 'localtune-tui[liger]'"


def installed_version() -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def is_too_old(version: str) -> bool:
    """Whether a version is older than :data:`OLDEST`, by its first three numbers."""

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)[:3]]

    return numbers(version) < numbers(OLDEST)
