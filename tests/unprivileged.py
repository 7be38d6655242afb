"""Root held to permissions, as the owner of any file is, so that what a file's mode forbids is tried by root as well.

Root passes permissions by its capabilities (capabilities(7)), which a thread may put down and take up again. It stays
the owner of its files and of the program, so that nothing need be copied to where others may read it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

#: Of ``linux/capability.h``: the layout with 64 bits of capabilities, in two halves.
_VERSION_3 = 0x20080522
#: Of ``linux/prctl.h`` and ``linux/securebits.h``.
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
#: Programs that root starts get no capabilities for being root's; access(2) goes by those that are up.
_NO_ROOT, _NO_SETUID_FIXUP = 1 << 0, 1 << 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Inside, this thread, and the threads and programs that it starts, pass no permissions; for others than root that
    is so anyway. The test is skipped where root may not put them down."""
    if os.geteuid():
        yield
        return
    before = _capabilities()
    bits = _libc().prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
    if _libc().prctl(_PR_SET_SECUREBITS, bits | _NO_ROOT | _NO_SETUID_FIXUP, 0, 0, 0):
        pytest.skip("not run: root may not put its capabilities down here")
    try:
        _set_capabilities([(0, permitted, inheritable) for _, permitted, inheritable in before])
        yield
    finally:
        _set_capabilities(before)
        _libc().prctl(_PR_SET_SECUREBITS, bits, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _capabilities() -> list[tuple[int, int, int]]:
    """Effective, permitted and inheritable ones of this thread, the lower half first."""
    halves = (_Half * 2)()
    _call("capget", halves)
    return [(half.effective, half.permitted, half.inheritable) for half in halves]


def _set_capabilities(values: list[tuple[int, int, int]]) -> None:
    _call("capset", (_Half * 2)(*(_Half(*value) for value in values)))


def _call(name: str, halves: ctypes.Array[_Half]) -> None:
    if getattr(_libc(), name)(ctypes.byref(_Header(_VERSION_3, 0)), halves):
        raise OSError(ctypes.get_errno(), name)
