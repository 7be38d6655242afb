"""The process of the queue's runner, ``python -m core.queue``. It ends when the queue is empty."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from datetime import datetime
from functools import partial

from core.errors import UserError
from core.notify import Notice, notify
from core.queue.entry import QueueEntry
from core.queue.runner import QueueRunner
from core.queue.status import own_status, release_runner_lock, try_runner_lock
from core.text import one_line


def main(argv: list[str] | None = None) -> int:
    """Run the queue; returns 0 when it is empty, or another runner is active."""
    argparse.ArgumentParser(prog="core.queue", description="Starts the runs of the queue in order.").parse_args(argv)
    os.umask(0o077)
    try:
        lock = try_runner_lock()
    except UserError as error:
        _log(str(error))
        return 1
    if lock is None:
        _log("another runner is active")
        return 0
    runner = QueueRunner(_log, _tell_end, release=partial(release_runner_lock, lock))
    runner.install_signals()
    own_status("begins").write()
    _log(f"begins as process {os.getpid()}")
    if runner.run():
        notify(Notice("queue_empty", "The queue is empty: nothing waits for the device any more."))
        _log("ends: nothing waits")
    else:
        _log("ends as it was told; the current run goes on")
    return 0


def _tell_end(entry: QueueEntry) -> None:
    notify(Notice(entry.state, entry.reason, run=entry.run or entry.name))


def _log(text: str) -> None:
    moment = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    # A full disk must not end the queue.
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{moment} {one_line(text, 1000)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
