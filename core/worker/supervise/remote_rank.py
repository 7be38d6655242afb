"""A rank on another machine than the run's: ``python -m core.worker.supervise.remote_rank``, started there over ssh by
the head (:mod:`core.worker.supervise.ssh_rank`).

It reads a request as a line of JSON and the files that the rank needs, runs the rank as a process, and passes on in
lines of JSON what the rank prints and reports. The rank lives as long as the connection: when that is closed, or no
sign of life comes from the head for a while because a cable was pulled, it is killed. When this process is killed, the
kernel ends the rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from core import paths
from core.config.document import dump_config
from core.config.schema import Config
from core.errors import UserError
from core.hardware.run_cards import process_cards
from core.hardware.visible import VISIBLE
from core.helper import private_output
from core.launch.launcher import worker_command, worker_environment
from core.launch.nodes.agent import REQUEST_LIMIT, configurations
from core.launch.nodes.network import SILENCE_SECONDS, interface_of, interface_variables, own_address_towards
from core.paths import make_private_dir
from core.runs.control.devices import CPU, take_beside
from core.runs.record.state import host_folder
from core.runs.record.store import Run
from core.text import one_line
from core.worker.distributed.rendezvous import LOCAL_RANK, RANK
from core.worker.process.devices import shared_device
from core.worker.process.reports import REPORTS, SUPERVISOR

#: Longest line that is passed on, and how much is read at once, in bytes.
_LINE_LIMIT, _BLOCK = 16 << 10, 1 << 16
#: Milliseconds between two looks when nothing happens.
_LOOK_MS = 1000


def main() -> int:
    """Run the rank; returns 0 once it has ended by itself."""
    os.umask(0o077)
    output = private_output()
    try:
        request = json.loads(sys.stdin.buffer.readline(REQUEST_LIMIT))
        _, config = configurations(request)
        variables = {str(name): str(value) for name, value in request["variables"].items()}
        with rank_directory(request["run"], variables[RANK], config) as run:
            receive(sys.stdin.buffer, request["files"], run.path)
            environment = {**variables, **surroundings(request, config, int(variables[LOCAL_RANK]))}
            # Its queue on this machine waits; the run itself cannot, as the other machines would wait with it.
            held = take_beside([environment.get(VISIBLE) or CPU], str(request["run"]))
            if held.beside:
                notice = shared_device(held.beside)
                say(output, report={"notice": [notice.level, notice.code, notice.message, notice.hint]})
            with Rank(run, environment, resume=bool(request["resume"])) as rank:
                return 0 if pass_on(rank, sys.stdin.buffer, output) else 1
    except UserError as error:
        say(output, error=error.message, hint=error.hint)
    except (ValueError, KeyError, TypeError, AttributeError):
        say(output, error="This request is not understood.", hint="Install the same version on all machines.")
    except OSError as error:
        say(output, error=f"{error.filename or 'The rank'} cannot be used: {error.strerror}.", hint="Look at its disk.")
    return 1


def surroundings(request: Mapping[str, Any], config: Config, number: int) -> dict[str, str]:
    """What of a rank's environment is this machine's own: its card, cores and network interface.

    Args:
        request: The request.
        config: The configuration with the paths of this machine.
        number: The rank's number among those of this machine.

    Raises:
        UserError: If it has too few cards, or no way to the head.
    """
    cards, siblings = process_cards(config), int(request["siblings"])
    if len(cards) < siblings:
        raise UserError(
            f"It has {len(cards)} cards, and {siblings} processes are to run there.",
            "Set distributed.processes to what every machine has.",
        )
    interface = interface_of(own_address_towards(request["address"], request["port"]))
    found = {} if interface is None else interface_variables(interface)
    if (card := cards[number]) is not None:
        found[VISIBLE] = card
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // siblings))
    return found


@contextlib.contextmanager
def rank_directory(name: str, number: str, config: Config) -> Iterator[Run]:
    """The directory that a rank uses as that of its run; gone when it has ended. The record is on the head's machine.

    Args:
        name: The run's id.
        number: The rank.
        config: The configuration with the paths of this machine.

    Raises:
        UserError: If it cannot be made.
    """
    if Path(name).name != name or name.startswith(".") or not number.isdecimal():
        raise UserError(f"{one_line(name, 80)} is no id of a run.", "Install the same version on all machines.")
    # Machines may share a home, and an earlier start of the same rank may still be ending.
    parent = make_private_dir(paths.ranks_dir() / host_folder() / f"{name}-rank{number}")
    for former in parent.iterdir():
        if not Path(f"/proc/{former.name}").exists():
            shutil.rmtree(former, ignore_errors=True)
    directory = make_private_dir(parent / str(os.getpid()))
    try:
        (directory / "run.toml").write_text(dump_config(config), encoding="utf-8")
        yield Run(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for empty in (parent, parent.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def receive(stream: IO[bytes], files: list[list[Any]], directory: Path) -> None:
    """Write files that follow one another in a stream.

    Args:
        stream: Where they come from.
        files: The path of each, relative to the directory, and its size in bytes.
        directory: Where they go.

    Raises:
        OSError: If one cannot be written.
        ValueError: If a path leads out of the directory, or the stream ends.
    """
    for name, size in files:
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError("a path out of the directory")
        make_private_dir(path.parent)
        with path.open("xb") as file:
            left = int(size)
            while left:
                block = stream.read(min(left, _BLOCK))
                if not block:
                    raise ValueError("the stream has ended")
                file.write(block)
                left -= len(block)


class Rank:
    """The process of a rank, which ends with the block.

    Args:
        run: Its run directory on this machine.
        environment: What tells it its number, and what it uses.
        resume: Whether it goes on from a checkpoint.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, run: Run, environment: Mapping[str, str], *, resume: bool) -> None:
        self.reports, reporting = os.pipe()
        self.output, printing = os.pipe()
        try:
            own = {REPORTS: str(reporting), SUPERVISOR: str(os.getpid())}
            self.process = subprocess.Popen(
                worker_command(run, resume=resume),
                stdin=subprocess.DEVNULL,
                stdout=printing,
                stderr=printing,
                cwd=run.path,
                env={**worker_environment(), **environment, **own},
                start_new_session=True,
                pass_fds=(reporting,),
            )
        finally:
            os.close(reporting)
            os.close(printing)
        self.handle = os.pidfd_open(self.process.pid)
        """Becomes readable when it ends."""

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *exception: object) -> None:
        """Kill it and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for descriptor in (self.reports, self.output, self.handle):
            os.close(descriptor)


def pass_on(rank: Rank, stream: IO[bytes], output: IO[bytes]) -> bool:
    """Pass on what a rank prints (``output``), reports (``report``) and how it ends (``ended``).

    Args:
        rank: The rank.
        stream: The head's signs of life, a byte or more every few seconds.
        output: Where the lines of JSON go.

    Returns:
        Whether it has ended by itself; the head is gone otherwise.
    """
    printed, reported = _Lines(rank.output), _Lines(rank.reports)
    poll = select.poll()
    for descriptor in (stream.fileno(), rank.output, rank.reports, rank.handle):
        poll.register(descriptor, select.POLLIN)
    heard = time.monotonic()
    try:
        while time.monotonic() - heard < SILENCE_SECONDS:
            ready = {descriptor for descriptor, _ in poll.poll(_LOOK_MS)}
            for lines, kind in ((printed, "output"), (reported, "report")):
                if lines.descriptor in ready and not _tell_lines(output, lines, kind):
                    poll.unregister(lines.descriptor)
            if stream.fileno() in ready:
                if not os.read(stream.fileno(), _BLOCK):
                    return False
                heard = time.monotonic()
            if rank.handle in ready:
                for lines, kind in ((printed, "output"), (reported, "report")):
                    lines.finish()
                    _tell_lines(output, lines, kind)
                say(output, ended=rank.process.wait())
                return True
    except BrokenPipeError:
        return False
    return False


def _tell_lines(output: IO[bytes], lines: _Lines, kind: str) -> bool:
    """Pass on the lines that have come; whether there may be more."""
    for line in lines.read():
        if kind == "output":
            say(output, output=one_line(line.decode("utf-8", "replace"), _LINE_LIMIT))
        else:
            with contextlib.suppress(ValueError):
                say(output, report=json.loads(line))
    return not lines.is_over


class _Lines:
    """The lines that come through a pipe.

    Args:
        descriptor: Of the pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.is_over = False
        self._rest = b""
        os.set_blocking(descriptor, False)

    def read(self) -> list[bytes]:
        """Those that are there, without waiting; at the end also one that was cut short."""
        while not self.is_over:
            try:
                data = os.read(self.descriptor, _BLOCK)
            except BlockingIOError:
                break
            self._rest += data
            self.is_over = not data
        *lines, self._rest = self._rest.split(b"\n")
        if self.is_over or len(self._rest) > _LINE_LIMIT:
            lines, self._rest = [*lines, self._rest], b""
        return [line for line in lines if line.strip()]

    def finish(self) -> None:
        """There is nobody any more who may write."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, _BLOCK):
                self._rest += data
        self.is_over = True


def say(stream: IO[bytes], **fields: Any) -> None:
    """Write a line of JSON."""
    stream.write(json.dumps(fields).encode() + b"\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
