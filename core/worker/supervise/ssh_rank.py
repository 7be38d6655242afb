"""A rank on another machine as a process of this one: ``python -m core.worker.supervise.ssh_rank HOST RUN [--resume]``.

To the supervisor it is a process like any other of the run: it has the same variables in its environment, prints what
the rank prints, reports what the rank reports, and ends as the rank does. It holds the connection: when it is killed,
the other machine ends the rank (:mod:`core.worker.supervise.remote_rank`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.config.document import dump_config
from core.errors import UserError
from core.launch.nodes.network import SIGN_SECONDS
from core.launch.nodes.places import Places
from core.launch.nodes.ssh import ssh_failure, start_ssh
from core.runs.record.state import EXIT_CODES
from core.runs.record.store import Run, complete_checkpoints
from core.text import one_line
from core.worker.distributed.rendezvous import LOCAL_RANK, MEETING, RANK, WORLD_SIZE, read_meeting
from core.worker.process.reports import Relay, relay_to_supervisor

REMOTE = "core.worker.supervise.remote_rank"
#: Environment variable with the number of ranks on the other machine.
SIBLINGS = "LOCALTUNE_SIBLINGS"
#: Longest line of the other machine, in bytes, and lines of ssh's own that are kept.
_LINE_LIMIT, _KEPT = 1 << 20, 20


def main(argv: list[str] | None = None) -> int:
    """Carry a rank; returns its exit code."""
    parser = argparse.ArgumentParser(prog="core.worker.supervise.ssh_rank", description="Carries a rank over ssh.")
    parser.add_argument("host", help="the machine, as ssh names it")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--paused", action="store_true", help="nothing: the first process pauses")
    args = parser.parse_args(argv)
    relay = relay_to_supervisor()
    try:
        status = SshRank(args.host, Run(args.run), relay).carry(resume=args.resume)
    except UserError as error:
        relay.tell(error=error.message, hint=error.hint)
        print(f"error: {error}", flush=True)
        return EXIT_CODES["failed"]
    if status < 0:
        # It ends as the rank did, so that the supervisor can say so.
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


class SshRank:
    """The connection to a rank.

    Args:
        host: Its machine.
        run: The run.
        relay: To the supervisor.
    """

    def __init__(self, host: str, run: Run, relay: Relay) -> None:
        self._host = host
        self._run = run
        self._relay = relay
        self._said: deque[str] = deque(maxlen=_KEPT)

    def carry(self, *, resume: bool) -> int:
        """Start the rank, and pass on what it does until it has ended.

        Returns:
            Its exit status, negative for the signal that ended it; ssh's own where the connection was lost.

        Raises:
            UserError: If the other machine refuses it.
        """
        files = list(_checkpoint_files(self._run)) if resume else []
        request = self._request(files, resume=resume)
        process = start_ssh(self._host, REMOTE)
        threads = [
            threading.Thread(target=self._give_signs, args=(process, request, files), daemon=True),
            threading.Thread(target=self._keep_errors, args=(process,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        for line in iter(lambda: process.stdout.readline(_LINE_LIMIT) if process.stdout else b"", b""):
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                if isinstance(message, dict) and (status := self._hear(message)) is not None:
                    return status
        status = process.wait()
        threads[1].join()
        lost = ssh_failure(self._host, status, list(self._said))
        self._relay.tell(error=lost.message)
        print(f"error: {lost}", flush=True)
        # What the supervisor takes for an end of the run, or for one that needs no new start, it is not.
        return status if status > EXIT_CODES["failed"] + 1 or status < 0 else 1

    def _request(self, files: list[Path], *, resume: bool) -> bytes:
        meeting = read_meeting(os.environ)
        if meeting is None:
            raise UserError("This process is none of a run.", "'localtune-tui train' starts it.")
        address, port = meeting.address
        request = {
            "run": self._run.id,
            "config": dump_config(self._run.config()),
            "places": Places.here().to_dict(),
            "address": address,
            "port": port,
            "siblings": int(os.environ.get(SIBLINGS, "1")),
            "variables": {name: os.environ[name] for name in (RANK, WORLD_SIZE, LOCAL_RANK, MEETING)},
            "files": [[str(path.relative_to(self._run.path)), path.stat().st_size] for path in files],
            "resume": resume,
        }
        return json.dumps(request).encode() + b"\n"

    def _give_signs(self, process: subprocess.Popen[bytes], request: bytes, files: list[Path]) -> None:
        """Send the request and the files, then a sign of life every few seconds."""
        stream = process.stdin
        if stream is None:
            return
        with contextlib.suppress(OSError, ValueError):
            stream.write(request)
            for path in files:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, stream)
            stream.flush()
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SIGN_SECONDS)
                    return
                stream.write(b"\n")
                stream.flush()

    def _keep_errors(self, process: subprocess.Popen[bytes]) -> None:
        for line in process.stderr or ():
            if text := one_line(line.decode("utf-8", "replace").strip(), 1000):
                self._said.append(text)
                print(text, flush=True)

    def _hear(self, message: dict[str, Any]) -> int | None:
        """Pass on a line of the other machine; its exit status where the rank has ended.

        Raises:
            UserError: If it refuses the rank.
        """
        if "error" in message:
            raise UserError(f"{self._host}: {one_line(str(message['error']))}", one_line(str(message.get("hint", ""))))
        if "output" in message:
            print(one_line(str(message["output"]), 4000), flush=True)
        elif isinstance(message.get("report"), dict):
            self._relay.tell(**message["report"])
        elif isinstance(message.get("ended"), int):
            return int(message["ended"])
        return None


def _checkpoint_files(run: Run) -> Iterator[Path]:
    """The files of the newest checkpoint, which the rank goes on from."""
    found = complete_checkpoints(run)
    if found:
        yield from sorted(path for path in found[-1].rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    sys.exit(main())
