"""Landlock: limits on files, connections and signals that a process sets for itself, permanently.

See ``Documentation/userspace-api/landlock.rst`` in the kernel (since 5.13). It needs no privileges, and neither the
process nor its children can lift it. It applies to the calling thread and its children.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from core.sandbox.rights import Rights, program_files, with_targets

#: System calls ``landlock_create_ruleset``, ``_add_rule``, ``_restrict_self``; the same on all architectures.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_REG, _MAKE_SYM, _REFER, _TRUNCATE, _IOCTL = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14, 1 << 15
#: Rights to files by the first version of the interface with them.
_HANDLED = ((1, (1 << 13) - 1), (2, _REFER), (3, _TRUNCATE), (5, _IOCTL))
#: First versions that limit TCP connections; abstract sockets and signals; all threads of a process at once.
_NET_SINCE, _SCOPE_SINCE, _THREADS_SINCE = 4, 6, 8
_BIND_AND_CONNECT, _SCOPES, _ALL_THREADS = 0b11, 0b11, 1 << 3
_READ = _READ_FILE | _READ_DIR
_WRITE = (
    _READ | _WRITE_FILE | _TRUNCATE | _REMOVE_FILE | _REMOVE_DIR | _MAKE_REG | _MAKE_DIR | _MAKE_SYM | _REFER
)  # fmt: skip
#: Rights that apply to files other than directories.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_RULE = struct.Struct("=Qi")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def version() -> int:
    """Version of Landlock in this kernel.

    Raises:
        OSError: If the kernel lacks it (ENOSYS), it is switched off (EOPNOTSUPP), or a container refuses it (EPERM).
    """
    return system_call(_CREATE, None, 0, _VERSION)


def restrict(rights: Rights) -> None:
    """Restrict this thread and its children to the program's own files and the given rights.

    ``PR_SET_NO_NEW_PRIVS`` must have been set.

    Raises:
        OSError: If the kernel refuses; then nothing is restricted.
    """
    known = version()
    handled = sum(bits for since, bits in _HANDLED if known >= since)
    net = _BIND_AND_CONNECT if known >= _NET_SINCE and not rights.uses_network else 0
    scopes = _SCOPES if known >= _SCOPE_SINCE else 0
    attributes = struct.pack("=QQQ", handled, net, scopes)[: 24 if scopes else 16 if known >= _NET_SINCE else 8]
    ruleset = system_call(_CREATE, attributes, len(attributes), 0)
    try:
        own = _READ | (_EXECUTE if rights.starts_helpers else 0)
        for paths, bits in (
            (program_files(), own),
            (_name_servers() if rights.uses_network else (), _READ),
            (with_targets(rights.reads), _READ),
            (_DEVICES, _READ | _WRITE_FILE),
            (rights.writes, _WRITE),
        ):
            for path in paths:
                _allow(ruleset, path, bits & handled)
        system_call(_RESTRICT, ruleset, _ALL_THREADS if known >= _THREADS_SINCE else 0)
    finally:
        os.close(ruleset)


def _name_servers() -> tuple[str, ...]:
    """Real directory of the resolver's configuration, often in ``/run``, or on the Windows disk under WSL."""
    return (os.path.dirname(os.path.realpath("/etc/resolv.conf")),)


def _allow(ruleset: int, path: str, bits: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return  # a missing file needs no right
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            bits &= _OF_FILES
        system_call(_ADD, ruleset, _PATH_BENEATH, _RULE.pack(bits, place), 0)
    finally:
        os.close(place)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call; bytes are passed as pointers.

    Raises:
        OSError: If it fails.
    """
    passed = [
        ctypes.c_void_p(argument) if argument is None
        else ctypes.c_char_p(argument) if isinstance(argument, bytes)
        else ctypes.c_long(argument)
        for argument in arguments
    ]  # fmt: skip
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
