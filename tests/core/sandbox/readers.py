"""Functions that are called in the sandbox by its tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError


@dataclass(frozen=True)
class Found:
    """A result with fields of every supported type."""

    name: str
    share: float
    path: Path
    parts: tuple[int, ...] = ()
    inner: Found | None = None


def echo(found: Found) -> Found:
    return found


def wrong_kind() -> int:
    return "text"  # type: ignore[return-value]


def no_json() -> int:
    return object()  # type: ignore[return-value]


def process() -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def match_for_ever() -> bool:
    """A library's work that never comes back to Python and cannot be interrupted by it."""
    import re

    return re.match("(a+)+$", "a" * 60 + "b") is not None


def directory() -> str:
    return os.getcwd()


def numbers(count: int) -> list[int]:
    return list(array("q", range(count)))


def text(size: int) -> str:
    return "x" * size


def refuse() -> int:
    raise UserError("There is nothing in it.", "Put something in.")


def fail() -> int:
    raise ZeroDivisionError("by nothing\x1b[31m")


class PanicError(BaseException):
    """As the library raises it that is written in Rust."""


def panic() -> int:
    raise PanicError("called `Option::unwrap()` on a `None` value")


def recurse() -> int:
    return recurse()


def fill() -> int:
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def fill_below() -> int:
    """Memory that a library takes, which ends the process where it gets none."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    while libc.malloc(64 << 20):
        pass
    os.abort()


def spin() -> int:
    while True:
        pass


def spin_below() -> int:
    """A library's loop, which never comes back to Python."""
    return sum(range(10**14))


def wait_for_nothing() -> int:
    reading, _ = os.pipe()
    os.read(reading, 1)
    return 0


def die(number: int) -> int:
    os.kill(os.getpid(), number)
    signal.pause()
    return 0


def leave() -> int:
    os._exit(7)


def say() -> int:
    sys.stdout.write("not an answer\n")
    sys.stdout.flush()
    os.write(1, b"nor this\n")
    return 1


def start_child(pid_file: Path) -> int:
    """A process that would go on for ever, then work that would too."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    pid_file.write_text(f"{os.getpid()} {child.pid}\n")
    return spin_below()
