"""Waiting for conditions: tests never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

#: The shortest limit, in seconds: a condition that comes costs no wait, and a busy machine takes many times longer.
LEAST = 45.0


def wait_for(
    condition: Callable[[], T], timeout: float = LEAST, describe: str = "a condition", interval: float = 0.01
) -> T:
    """Wait until a condition holds, and fail when it does not in time.

    Args:
        condition: Polled; it holds when it returns something true.
        timeout: Seconds; at least :data:`LEAST`.
        describe: The condition in words, for the message of a failure.
        interval: Seconds between two polls.

    Returns:
        The value of the condition.
    """
    timeout = max(timeout, LEAST)
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s in vain for {describe}")
        time.sleep(interval)
    return value


def has_ended(pid: int) -> bool:
    """True if a process is gone, or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
