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

from core.sandbox.rights import Rights

# Numbers of system calls on x86_64 and aarch64; None if an architecture lacks the call.
_Calls = dict[str, tuple[int | None, int | None]]
NETWORK: _Calls = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
}  # fmt: skip
PROGRAMS: _Calls = {"execve": (59, 221), "execveat": (322, 281)}
#: Changes of file attributes, which Landlock does not cover.
ATTRIBUTES: _Calls = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
ALWAYS: _Calls = {
    # Other processes, and memory or queues shared with them.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272), "shmget": (29, 194),
    "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # Ways around other limits: no filter sees the calls of a ring, and a handle opens a file without a path.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "personality": (135, 92),
    # Parts of the kernel.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161),
    "setdomainname": (171, 162), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    # Mounts and namespaces.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "open_tree_attr": (467, 467), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "setns": (308, 268), "unshare": (272, 97),
}  # fmt: skip
#: Calls allowed by their arguments, and ``seccomp`` itself, which sets the filter.
BY_ARGUMENTS: _Calls = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
    "prlimit64": (302, 261),
    "seccomp": (317, 277),
}

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
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


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
    number = BY_ARGUMENTS["seccomp"][column]
    for flags in (_ALL_THREADS, 0):  # 0 in case a thread has another filter
        result = _libc.syscall(
            ctypes.c_long(number or 0), ctypes.c_long(_SET_FILTER), ctypes.c_long(flags), ctypes.c_char_p(program)
        )
        if result == 0:
            return
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error))


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
