"""System call filter (seccomp) for processes that read untrusted files.

It refuses calls that no reader needs with EPERM, an error that libraries can handle: connections, other programs, the
memory of other processes, and the parts of the kernel with the most holes. See ``seccomp(2)``; call numbers come from
the kernel's ``unistd.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import tomli

from core.sandbox.landlock import system_call
from core.sandbox.rights import Rights

# Numbers of system calls on x86_64 and aarch64; None if an architecture lacks the call.
_Calls = dict[str, tuple[int | None, int | None]]


def _tables(file: Path) -> Iterator[_Calls]:
    for table in tomli.loads(file.read_text(encoding="utf-8")).values():
        yield {name: (*numbers, None)[:2] for name, numbers in table.items()}


#: Calls by the right that allows them; those that no reader may make; those allowed by their arguments.
NETWORK, PROGRAMS, ATTRIBUTES, ALWAYS, BY_ARGUMENTS = _tables(Path(__file__).with_suffix(".toml"))

#: Column of the tables, and ``AUDIT_ARCH``, by the name of an architecture in ``uname``.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
#: First number of x32, a second set of calls on x86_64.
_X32 = 0x40000000
# Classic BPF: load a word of the call, combine, return, jump.
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
# Offsets in ``struct seccomp_data``; for an argument, of its lower half.
_NUMBER, _ARCH, _FIRST, _SECOND = 0, 4, 16, 24
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_MOST_BITS = 0xFFFFFFFF
#: ``CLONE_NEW*``: another namespace for the child.
_NAMESPACES = 0x7E020000
_AF_UNIX, _SOCK_STREAM = 1, 1
_SOCK_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
#: Requests that insert characters into the input of a terminal: TIOCSTI and TIOCLINUX.
_TYPED = (0x5412, 0x541C)
_SET_FILTER, _ALL_THREADS = 1, 1

_Instruction = tuple[int, int, int, int]


def restrict(rights: Rights) -> None:
    """Filter the system calls of this process, all its threads, and its children.

    ``PR_SET_NO_NEW_PRIVS`` must have been set.

    Raises:
        OSError: If the kernel refuses, or there is no filter for this architecture (ENOTSUP).
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES or struct.calcsize("P") != 8:
        raise OSError(errno.ENOTSUP, f"no filter for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    code = b"".join(struct.pack("=HBBI", *line) for line in _program(rights, column, architecture))
    instructions = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a length, and a pointer.
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    number = BY_ARGUMENTS["seccomp"][column] or 0
    if system_call(number, _SET_FILTER, _ALL_THREADS, program) != 0:  # a thread has another filter
        system_call(number, _SET_FILTER, 0, program)


def _program(rights: Rights, column: int, architecture: int) -> list[_Instruction]:
    """Instructions of the filter: the architecture first, then call by call."""
    refused = dict(ALWAYS)
    if not rights.uses_network:
        refused |= NETWORK
    if not rights.starts_helpers:
        refused |= PROGRAMS
    if not rights.writes:
        refused |= ATTRIBUTES
    lines = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, architecture), _refuse(), (_LOAD, 0, 0, _NUMBER)]
    if column == 0:
        lines += [(_AT_LEAST, 0, 1, _X32), _refuse()]
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), _refuse()]
    blocks: dict[str, list[_Instruction]] = {
        # A filter cannot read its flags behind a pointer. Without it, glibc uses clone.
        "clone3": [_refuse(errno.ENOSYS)],
        "clone": [(_LOAD, 0, 0, _FIRST), (_ANY_BIT, 0, 1, _NAMESPACES), _refuse(), _allow()],
        "ioctl": [(_LOAD, 0, 0, _SECOND), (_EQUAL, 1, 0, _TYPED[0]), (_EQUAL, 0, 1, _TYPED[1]), _refuse(), _allow()],
        # Only for this process.
        "prlimit64": [(_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, 0), _refuse(), _allow()],
    }
    if not rights.uses_network:
        # A pair of streams reaches nobody else; a datagram socket can send to any address.
        blocks["socketpair"] = [
            (_LOAD, 0, 0, _FIRST),
            (_EQUAL, 1, 0, _AF_UNIX),
            _refuse(),
            (_LOAD, 0, 0, _SECOND),
            (_AND, 0, 0, _MOST_BITS ^ _SOCK_FLAGS),
            (_EQUAL, 1, 0, _SOCK_STREAM),
            _refuse(),
            _allow(),
        ]
    for name, block in blocks.items():
        lines += [(_EQUAL, 0, len(block), BY_ARGUMENTS[name][column] or 0), *block]
    return [*lines, _allow()]


def _refuse(error: int = errno.EPERM) -> _Instruction:
    return (_RETURN, 0, 0, _ERROR | error)


def _allow() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)
