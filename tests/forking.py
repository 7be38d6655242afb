"""Processes forked from one that has imported what a worker imports, which takes four seconds for each otherwise.

What :mod:`core.helper` starts as ``python -m core.worker…`` is forked: workers of runs, and the processes that measure,
answer, export. A test has a command forked by :meth:`Forks.run`, and with it what the command starts. A forked process
is as one that was started: its session, streams, descriptors, environment and directory are those that were asked for,
and it is a child of the test's process. It runs the ``sitecustomize`` of a directory that is asked for as a source of
modules, with the worker's own modules still to be imported, and takes libraries from the directories of
``LD_LIBRARY_PATH`` first. Where other modules are asked for, or a test is marked ``anew``, because it is about how a
process starts or what it holds, a real one is started.

``python -m tests.forking SOCKET`` is the process that they are forked from.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest

from core.commands import COMMANDS
from tests.measured_here import share_measurements

#: The environment variable of a forked worker with the fault that it is to meet, for :mod:`tests.faults.injections`.
FAULT_VARIABLE = "LOCALTUNE_TEST_FAULT"
#: Of ``prctl``: whether this process becomes the parent of descendants that have lost theirs.
_SUBREAPER = 36
#: Largest request: a command and an environment.
_LIMIT = 1 << 20
#: Most descriptors that a process is given.
_DESCRIPTORS = 16
#: Limits that a process has from the one that starts it.
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
#: The Python of the tests; one that a test has put in its place is started.
_PYTHON = sys.executable
#: Where modules come from, and variables that are read as a process begins, both as this process has them.
_PATHS = {str(Path(__file__).resolve().parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))}
#: How a command begins that is forked, where it has a network.
_PYTHON_MODULE = [_PYTHON, "-m"]
_BEGUN_WITH = os.environ.get("LD_PRELOAD")
#: Modules that are forked, and those below them.
_MODULES = ("core.worker", "core.queue", "core.serve", "tui", "tests.core")
#: Asks the self-test's worker to meet a shortage of memory.
_STARVED = "starved"
#: A command whose rest has no network.
_CUT = ["unshare", "-rn"]
#: Of ``unshare``: a network and users of its own.
_NEW_NETWORK, _NEW_USERS = 0x40000000, 0x10000000
#: What a directory holds whose ``sitecustomize`` a forked process runs.
_HOOK = {"sitecustomize.py", "__pycache__"}


class ForkedProcess:
    """A child of this process, as :class:`subprocess.Popen` has it.

    Args:
        pid: Of the child.
        stdin: Its standard input's other end, if it is a pipe.
        stdout: The same of its standard output.
        stderr: The same of its standard error.
    """

    def __init__(self, pid: int, stdin: IO[Any] | None, stdout: IO[Any] | None, stderr: IO[Any] | None = None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._turn = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it lives."""
        with self._turn:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code.

        Raises:
            subprocess.TimeoutExpired: If it lives longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """Forks processes; the one that it forks them from is started with the first."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Of the threads that start processes at once.
        self._turn = threading.Lock()
        #: Whether all are started, and none is forked.
        self.anew = False
        #: Programs that run another worker than the real one, and are this Python for all other modules.
        self.stand_ins: set[str] = set()

    @classmethod
    def beside(cls, above: int) -> Forks:
        """In a forked process, before it does anything: what its own helpers are forked from.

        Args:
            above: The descriptor of its socket is larger.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            _close_all_but({0, 1, 2, theirs.fileno()})
            _serve(theirs)
        theirs.close()
        made = cls()
        made._socket = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above + 1))
        ours.close()
        return made

    def fileno(self) -> int:
        """The descriptor of the socket; -1 before anything has been forked."""
        return -1 if self._socket is None else self._socket.fileno()

    def popen(self, command: Sequence[str], **options: Any) -> ForkedProcess | subprocess.Popen[bytes]:
        """As :class:`subprocess.Popen`, with the options that :mod:`core.helper` uses."""
        begins = self._of_python(command)
        if self.anew or begins is None or not _has_only_hooks(options.get("env") or os.environ):
            return subprocess.Popen(command, **options)
        with contextlib.ExitStack() as theirs:
            text = bool(options.get("text"))
            reading, *ours_in = _stream(options.get("stdin"), 0, theirs, text=text)
            writing, *ours_out = _stream(options.get("stdout"), 1, theirs, text=text)
            stderr = options.get("stderr")
            errors, *ours_err = (
                (writing, None) if stderr == subprocess.STDOUT else _stream(stderr, 2, theirs, text=text)
            )
            ours: list[IO[Any] | None] = [*ours_in, *ours_out, *ours_err]
            if text:
                ours = [stream and io.TextIOWrapper(stream, line_buffering=True) for stream in ours]
            passed = options.get("pass_fds", ())
            asked = {
                "words": command[begins:],
                "is_cut": begins > len(_PYTHON_MODULE),
                "cwd": str(options.get("cwd") or os.getcwd()),
                "environment": dict(options.get("env") or os.environ),
                "places": [0, 1, 2, *passed],
                "umask": options.get("umask", -1),
                "limits": {str(number): resource.getrlimit(number) for number in _LIMITS},
            }
            with self._turn, _adopting():
                connection = self._connected()
                socket.send_fds(connection, [json.dumps(asked).encode()], [reading, writing, errors, *passed])
                return ForkedProcess(int(connection.recv(32)), *ours)

    def run(
        self, command: Sequence[str], timeout: float = 200.0, standard_input: str = "", **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """As :func:`subprocess.run` that captures text.

        Args:
            command: The command line.
            timeout: Seconds.
            standard_input: What it reads.
            **options: ``cwd`` and ``env``.

        Raises:
            subprocess.TimeoutExpired: If it takes longer.
        """
        with tempfile.TemporaryFile() as read, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            read.write(standard_input.encode())
            read.seek(0)
            streams = {"stdin": read.fileno(), "stdout": out.fileno(), "stderr": errors.fileno()}
            process = self.popen(command, **streams, **options)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, errors)]
            return subprocess.CompletedProcess(command, code, *texts)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Inside, what :mod:`core.helper` starts is forked where it can be."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.helper.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": self.popen}))
            yield

    def close(self) -> None:
        """End the process."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()

    def _of_python(self, command: Sequence[str]) -> int | None:
        """Where the module that a command runs stands in it; None for one that is not forked."""
        begins = len(_PYTHON_MODULE)
        if [Path(word).name for word in command[:1]] + list(command[1:2]) == _CUT:
            begins += len(_CUT)
        python, option, module = (*command[begins - 2 : begins + 1], "", "", "")[:3]
        if option != _PYTHON_MODULE[1] or ".".join(module.split(".")[:2]) not in _MODULES:
            return None
        if python != _PYTHON and (python not in self.stand_ins or module == "core.worker"):
            return None
        # The one that watches over several processes imports none of the libraries. One whose memory runs out has its
        # limit put where its process is, and a forked one has more in store.
        is_started = module.startswith("core.worker.supervise") or _STARVED in command
        return None if is_started else begins

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [_PYTHON, "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).parents[1],
                    env=os.environ
                    | {"PYTHONPATH": os.pathsep.join(_PATHS), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                )
        return self._socket


def _hooks(environment: Mapping[str, str]) -> list[str]:
    """The directories of modules, beside those of this process, that an environment has."""
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    return [path for path in dict.fromkeys(paths) if path and path not in _PATHS]


def _has_only_hooks(environment: Mapping[str, str]) -> bool:
    """True if an environment names no modules or libraries that a process needs at its start."""
    return environment.get("LD_PRELOAD") == _BEGUN_WITH and all(map(_is_hook, _hooks(environment)))


def _is_hook(directory: str) -> bool:
    """True if a directory holds a ``sitecustomize`` and nothing else."""
    try:
        return "sitecustomize.py" in (held := os.listdir(directory)) and _HOOK.issuperset(held)
    except OSError:
        return False


def _stream(
    asked: int | None, number: int, theirs: contextlib.ExitStack, *, text: bool
) -> tuple[int, IO[bytes] | None]:
    """The child's descriptor of a standard stream, and this process's end where it is a pipe."""
    if asked == subprocess.PIPE:
        reading, writing = os.pipe()
        child, own = (reading, writing) if number == 0 else (writing, reading)
        theirs.callback(os.close, child)
        return child, os.fdopen(own, "wb" if number == 0 else "rb", buffering=-1 if text else 0)
    if asked == subprocess.DEVNULL:
        descriptor = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, descriptor)
        return descriptor, None
    return (number if asked is None else asked), None


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Inside, orphans among the descendants of this process become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SUBREAPER, 0, 0, 0, 0)


# In the process that others are forked from.


def _serve(connection: socket.socket) -> NoReturn:
    import tests.families.warm  # noqa: F401

    for module, _ in COMMANDS.values():
        importlib.import_module(f"core.commands.{module}")
    gc.collect()
    gc.freeze()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, _DESCRIPTORS)
        if not asked:
            os._exit(0)
        child, told = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                _become(json.loads(asked), descriptors)
            os.write(told, str(pid).encode())
            os._exit(0)
        # When the process in between has ended, its child is an orphan, and is adopted.
        os.waitpid(between, 0)
        connection.send(os.read(child, 32))
        for descriptor in (*descriptors, child, told):
            os.close(descriptor)


def _become(asked: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    if asked["is_cut"]:
        _cut_network()
    helpers = Forks.beside(max(asked["places"]))
    os.setsid()
    os.chdir(asked["cwd"])
    if asked["umask"] >= 0:
        os.umask(asked["umask"])
    for number, limit in asked["limits"].items():
        resource.setrlimit(int(number), limit)
    _place(descriptors, asked["places"], {helpers.fileno()})
    _open_streams()
    os.environ.clear()
    os.environ.update(asked["environment"])
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable(2)
    _load_libraries(asked["environment"].get("LD_LIBRARY_PATH", ""))
    _run_hooks(_hooks(asked["environment"]))
    share_measurements()
    module, *words = asked["words"]
    sys.argv = [module, *words]
    if module == "core.worker" and (fault := os.environ.get(FAULT_VARIABLE)):
        importlib.import_module("tests.faults.injections").inject(fault)
    code = 0
    with helpers.replacing():
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = _exit_code(end.code)
        except Exception:
            traceback.print_exc()
            code = 1
        _leave(code)


def _open_streams() -> None:
    """Streams that know what their descriptors are now: those of this process were a file, maybe, or a terminal."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _writing(1, "strict")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writing(2, "backslashreplace")  # type: ignore[misc]


def _writing(descriptor: int, errors: str) -> io.TextIOWrapper:
    binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - until the process ends
    return io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=True, write_through=True)


def _exit_code(code: object) -> int:
    if code is None or isinstance(code, int):
        return code or 0
    sys.stderr.write(f"{code}\n")
    return 1


def _leave(code: int) -> NoReturn:
    """End as Python does, without freeing all that was imported: that alone is a tenth of the time of a short run."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code & 0xFF)


def _cut_network() -> None:
    """Do the same as ``unshare --map-root-user --net``."""
    user, group = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK | _NEW_USERS):
        raise OSError(ctypes.get_errno(), "no network of its own")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)


def _load_libraries(path: str) -> None:
    """Load what the loader would look for in these directories, as it has read its variable already."""
    for directory in filter(None, path.split(os.pathsep)):
        for library in Path(directory).glob("lib*.so*"):
            ctypes.CDLL(str(library))


def _run_hooks(directories: Sequence[str]) -> None:
    """Run the ``sitecustomize`` of directories, which may wait for the worker's modules to be imported."""
    for directory in directories:
        for name in [name for name in sys.modules if name == "core.worker" or name.startswith("core.worker.")]:
            del sys.modules[name]
        sys.modules.pop("sitecustomize", None)
        sys.path.insert(0, directory)
        importlib.import_module("sitecustomize")


def _place(descriptors: Sequence[int], places: Sequence[int], kept: set[int]) -> None:
    """Give descriptors their numbers, and close all others but those to be kept."""
    free = max((*descriptors, *places, *kept)) + 1
    os.dup2(descriptors[0], free)
    moved = [free]
    for descriptor in descriptors[1:]:
        moved.append(moved[-1] + 1)
        os.dup2(descriptor, moved[-1])
    for descriptor, place in zip(moved, places, strict=True):
        os.dup2(descriptor, place)
    _close_all_but({*places, *kept})


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(name))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
