"""Ranks of a run on this machine, for the head on another one: they live as long as the connection does.

The head gives a sign of life every few seconds. When the connection is closed, or the signs stay away because a cable
was pulled, every rank is killed. When the agent itself is killed, the kernel ends them by their lifelines.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import select
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from core import paths
from core.config.document import dump_config
from core.config.schema import Config
from core.errors import UserError
from core.helper import Helper
from core.launch import launcher
from core.launch.nodes.network import SILENCE_SECONDS
from core.paths import make_private_dir
from core.runs.process import hostname
from core.runs.store import Run
from core.text import one_line

#: Longest line of a rank's output that is passed on, in bytes.
_LINE_LIMIT = 16 << 10
#: Seconds that the ranks of an earlier start may take to be gone.
_GONE_SECONDS = 20.0
#: Seconds for their last words to be passed on.
_LAST_WORDS_SECONDS = 5.0


class RankProcess:
    """A rank as a process of the agent, its output line by line.

    Args:
        run: Its run directory on this machine.
        variables: What tells it which rank it is, and where all meet.
        resume: Whether it goes on from a checkpoint.

    Raises:
        UserError: If it cannot be started.
    """

    def __init__(self, run: Run, variables: Mapping[str, str], *, resume: bool) -> None:
        self.rank = int(variables["RANK"])
        reading, writing = os.pipe()
        try:
            self._helper = Helper(
                # Both streams are one, as in the log of a run.
                ["sh", "-c", 'exec "$@" >&2', "sh", *launcher.worker_command(run, resume=resume)],
                environment={**launcher.worker_environment(), **variables},
                cwd=run.path,
                log=writing,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._output = os.fdopen(reading, "rb")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._helper.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._helper.process.poll() is None

    def lines(self) -> Iterator[str]:
        """What it prints, until it has ended."""
        while line := self._output.readline(_LINE_LIMIT):
            yield line.decode("utf-8", "replace").rstrip("\r\n")

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._helper.process.wait()

    def end(self) -> None:
        """Kill it, and whatever it has started."""
        self._helper.end()


@contextlib.contextmanager
def rank_directory(name: str, config: Config) -> Iterator[Run]:
    """The directory that the ranks of this machine use as that of their run; gone with the last of them.

    The run's record is on the head's machine; here is only its configuration.

    Args:
        name: The run's id.
        config: The configuration with the paths of this machine.

    Raises:
        UserError: If it cannot be written, or ranks of an earlier start of the same run do not end.
    """
    if Path(name).name != name or name.startswith("."):
        raise UserError(f"{one_line(name, 80)} is no id of a run.", "Install the same version on all machines.")
    # Machines may share a home.
    parent = make_private_dir(paths.ranks_dir() / hostname())
    with _locked(parent / f"{name}.lock", name):
        directory = parent / name
        shutil.rmtree(directory, ignore_errors=True)
        make_private_dir(directory)
        try:
            (directory / "run.toml").write_text(dump_config(config), encoding="utf-8")
            yield Run(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, paths.FILE_MODE)
    try:
        deadline = time.monotonic() + _GONE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"Ranks of run {one_line(name, 80)} are still running on {hostname()}.", "End them there."
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def watch(processes: Sequence[RankProcess], stream: IO[bytes], output: IO[bytes]) -> int:
    """Pass on what the ranks print and how they end, until all have ended or the head is gone; then none is left.

    Args:
        processes: The ranks.
        stream: The head's signs of life, one byte or more every few seconds.
        output: Where lines of JSON go: ``started`` (with ``pid`` and ``host``), ``output`` and ``ended`` (with
            ``status``), each with its ``rank``.

    Returns:
        0 when all have ended by themselves, 1 when they were killed.
    """
    messages: queue.Queue[dict[str, Any]] = queue.Queue(maxsize=1000)
    for process in processes:
        messages.put({"started": process.rank, "pid": process.pid, "host": hostname()})
        threading.Thread(target=_follow, args=(process, messages), daemon=True).start()
    writer = threading.Thread(target=_pass_on, args=(messages, output, len(processes)), daemon=True)
    writer.start()
    try:
        alive = _all_ended(processes, stream)
    finally:
        for process in processes:
            process.end()
    # The last words of the ranks are on their way; a head that is gone does not hear them.
    writer.join(_LAST_WORDS_SECONDS)
    return 1 if alive else 0


def _follow(process: RankProcess, messages: queue.Queue[dict[str, Any]]) -> None:
    for line in process.lines():
        messages.put({"output": one_line(line, _LINE_LIMIT), "rank": process.rank})
    messages.put({"ended": process.rank, "status": process.wait()})


def _pass_on(messages: queue.Queue[dict[str, Any]], output: IO[bytes], count: int) -> None:
    """Write the messages of the ranks until all have ended; a head that is gone is noticed by its silence."""
    with contextlib.suppress(OSError, ValueError):
        while count:
            message = messages.get()
            output.write(json.dumps(message).encode() + b"\n")
            output.flush()
            count -= "ended" in message
        # The end of the stream tells the head that there is no more.
        output.close()


def _all_ended(processes: Sequence[RankProcess], stream: IO[bytes]) -> bool:
    """Wait for the end of the ranks; returns whether some live while the head is gone."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    heard = time.monotonic()
    while any(process.is_alive for process in processes):
        if poll.poll(200):
            if not os.read(stream.fileno(), 1 << 16):
                return True
            heard = time.monotonic()
        if time.monotonic() - heard > SILENCE_SECONDS:
            return True
    return False
