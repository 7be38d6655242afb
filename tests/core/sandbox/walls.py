"""Skips for kernels and containers that refuse a wall, and facts that tests need about them."""

from __future__ import annotations

import os

import pytest

from core.sandbox import landlock


def landlock_version() -> int:
    """Version of Landlock in this kernel; 0 without it."""
    try:
        return landlock.version()
    except OSError:
        return 0


def require_landlock() -> None:
    """Skip the test where the kernel has no Landlock."""
    if not landlock_version():
        pytest.skip("this kernel has no Landlock, or a container refuses it")


def require_filter() -> None:
    """Skip the test where there is no filter of system calls."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip(f"no filter is written for {os.uname().machine}")
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            has_filters = "Seccomp_filters:" in file.read()
    except OSError:
        has_filters = False
    if not has_filters:
        pytest.skip("this kernel has no filters of system calls")
