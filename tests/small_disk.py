"""A small disk, which becomes full."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(mount: Path, size: str) -> Iterator[Path]:
    """A disk in memory; the test is skipped where none can be mounted.

    Args:
        mount: The directory to make for it.
        size: Its size, as ``mount`` takes it: ``64k``.
    """
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("not run: a small disk can be mounted by root only, and not everywhere")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
