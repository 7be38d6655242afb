"""Another machine of a run, as the head sees it: its ranks, started over ssh, what they print and how they end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.config.document import dump_config
from core.config.schema import Config
from core.errors import UserError
from core.helper import describe_end
from core.launch.nodes.compare import start_ssh
from core.launch.nodes.network import SIGN_SECONDS
from core.launch.nodes.places import Places
from core.launch.nodes.ssh import ssh_failure
from core.text import one_line

#: Lines kept of what a rank has printed last.
LAST_WORDS = 20
#: Longest line of an agent, in bytes.
_LINE_LIMIT = 1 << 20
#: Seconds for an agent to end its ranks when it is told to; then the connection is cut, which does it as well.
_END_SECONDS = 10.0


class RemoteRank:
    """A rank on another machine, with the interface of a process that the supervisor uses.

    Args:
        host: The machine.
        rank: Its number.
    """

    def __init__(self, host: str, rank: int) -> None:
        self.host = host
        self.rank = rank
        self.pid: int | None = None
        self.status: int | None = None
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS)

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.status


class Node:
    """The ranks of a run on another machine; they end with the connection.

    Args:
        host: The machine, as ssh names it.
        tell: Is given each line that a rank prints, or that ssh does.
    """

    def __init__(self, host: str, tell: Callable[[str], None]) -> None:
        self.host = host
        self.ranks: dict[int, RemoteRank] = {}
        self.failure: UserError | None = None
        self._tell = tell
        self._said: deque[str] = deque(maxlen=LAST_WORDS)
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []

    def start(
        self,
        run_id: str,
        config: Config,
        address: str,
        variables: Sequence[Mapping[str, str]],
        *,
        resume: bool,
    ) -> None:
        """Start its ranks.

        Args:
            run_id: The run.
            config: Its configuration, with the paths of this machine.
            address: The numeric address at which all meet.
            variables: The environment of each rank that tells it which one it is, with ``RANK``.
            resume: Whether they go on from a checkpoint.

        Raises:
            UserError: If there is no ssh.
        """
        request = {
            "want": "ranks",
            "run": run_id,
            "config": dump_config(config),
            "places": Places.here().to_dict(),
            "address": address,
            "port": config.distributed.port,
            "resume": resume,
            "ranks": [dict(one) for one in variables],
        }
        self.ranks = {int(one["RANK"]): RemoteRank(self.host, int(one["RANK"])) for one in variables}
        self._process = process = start_ssh(self.host)
        self._threads = [
            threading.Thread(target=self._give_signs, args=(process, json.dumps(request)), daemon=True),
            threading.Thread(target=self._read_errors, args=(process,), daemon=True),
            threading.Thread(target=self._read_answers, args=(process,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End its ranks, which the agent kills when its standard input is closed; blocks for some seconds at most."""
        self._closing.set()
        process = self._process
        if process is None:
            return
        self._threads[0].join(SIGN_SECONDS)
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join()

    def _give_signs(self, process: subprocess.Popen[bytes], request: str) -> None:
        """Send the request, then a sign of life every few seconds, until the end."""
        stream = process.stdin
        if stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            stream.write(request.encode() + b"\n")
            stream.flush()
            while not self._closing.wait(SIGN_SECONDS) and process.poll() is None:
                stream.write(b"\n")
                stream.flush()
        with contextlib.suppress(OSError):
            stream.close()

    def _read_errors(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stderr or ():
            text = one_line(line.decode("utf-8", "replace").rstrip(), 1000)
            if text:
                self._said.append(text)
                self._tell(f"{self.host}: {text}")

    def _read_answers(self, process: subprocess.Popen[bytes]) -> None:
        stream = process.stdout
        while stream is not None and (line := stream.readline(_LINE_LIMIT)):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                self._hear(json.loads(line))
        self._lost(process.wait())

    def _hear(self, message: dict[str, Any]) -> None:
        """Take in a line of the agent."""
        if "error" in message:
            self.failure = UserError(
                f"{self.host}: {one_line(str(message['error']))}", one_line(str(message.get("hint", "")))
            )
        elif "started" in message:
            rank = self.ranks[message["started"]]
            rank.pid = int(message["pid"])
        elif "output" in message:
            rank, text = self.ranks[message["rank"]], one_line(str(message["output"]), 1000)
            if text:
                rank.last_words.append(text)
                self._tell(f"{self.host}, rank {rank.rank}: {text}")
        elif "ended" in message:
            self.ranks[message["ended"]].status = int(message["status"])

    def _lost(self, status: int) -> None:
        """The connection is gone, and so are the ranks that it has carried."""
        self._said.extend([] if self._said or status >= 0 else [f"ssh {describe_end(status)}"])
        missing = [rank for rank in self.ranks.values() if rank.status is None]
        if missing and self.failure is None and not self._closing.is_set():
            self.failure = ssh_failure(self.host, status, list(self._said))
        for rank in missing:
            if self.failure is not None:
                rank.last_words.append(self.failure.message)
            rank.status = -signal.SIGKILL
