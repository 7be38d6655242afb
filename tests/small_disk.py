"""A small disk, which becomes full, and a directory that becomes read-only."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for


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


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Inside, nothing can be opened for writing below a directory; files that are open stay so. The test is skipped
    where that cannot be done."""
    place = str(directory)
    if shutil.which("mount") is None or subprocess.run(["mount", "--bind", place, place], check=False).returncode:
        pytest.skip("not run: a directory can be made read-only by root only, and not everywhere")

    def turned() -> bool:
        # It is refused while a file is open for writing there, as one is for a moment now and then.
        return not subprocess.run(
            ["mount", "-o", "remount,ro,bind", place], capture_output=True, check=False
        ).returncode

    try:
        wait_for(turned, 60, f"{place} to become read-only")
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
