"""The tracker process: ``python -m core.tracking RUN TOOL [--online]``.

It only reads the run directory, so a library that fails, exits or hangs ends the tracker, and never the training. Its
exit code is 0 if everything was sent, and 4 if not.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import fcntl
import os
import sys
import time
import traceback
from pathlib import Path

from core.config.choices import TRACKERS
from core.errors import UserError
from core.redact import redact, redact_streams
from core.runs.record.store import Run, refuse_unsafe_files
from core.text import one_line
from core.tracking.destinations import DESTINATIONS, refuse_missing
from core.tracking.forward import Forwarder, told_configuration
from core.tracking.position import FOLDER, Position, TrackerFiles
from core.tracking.start import EXIT_BUSY, EXIT_FAILED, PATIENCE


def main(argv: list[str] | None = None) -> int:
    """Send a run's metrics; returns the exit code."""
    parser = argparse.ArgumentParser(prog="core.tracking", description="Sends the metrics of a run to a tracker.")
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("tool", choices=TRACKERS)
    parser.add_argument("--online", action="store_true", help="send to the tracker's server")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds that the tracker may take to answer")
    args = parser.parse_args(argv)
    redact_streams()
    os.umask(0o077)
    # The cores belong to the training.
    os.nice(10)
    place = TrackerFiles(Run(args.run.absolute()), args.tool, args.online)
    try:
        place.make()
        lock = _lock(place, args.patience)
        if lock is None:
            print(f"{place.run.id} is being sent to {place.name} by another process.", file=sys.stderr)
            return EXIT_BUSY
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    try:
        return _forward(place, args.patience)
    finally:
        os.close(lock)


def _forward(place: TrackerFiles, patience: float) -> int:
    def alive() -> None:
        # The watchdog is a thread that needs no interpreter, so it also ends a library that holds the GIL.
        faulthandler.dump_traceback_later(patience, exit=True, file=2)

    reason = ""
    try:
        # The library's own files are not opened by this program.
        refuse_unsafe_files(place.run, FOLDER)
        refuse_missing(place.tool)
        config = place.run.config()
        tracking = config.tracking
        destination = DESTINATIONS[place.tool](
            place, tracking.project, tracking.name or place.run.id, told_configuration(config)
        )
        count = Forwarder(place, destination, alive).run()
        print(f"{count} sets of figures passed on to {place.name}", file=sys.stderr)
    except UserError as error:
        reason = str(error)
    except (Exception, SystemExit) as error:  # whatever a library raises ends this process and not the run
        print(traceback.format_exc(), file=sys.stderr)
        first = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first}"
    if reason:
        reason = one_line(redact(reason), 300)
        print(f"error: {reason}", file=sys.stderr)
        failed = dataclasses.replace(Position.read(place.position_path), state="failed", reason=reason)
        failed.write(place)
    # The watchdog also covers the libraries' work at the exit of the interpreter.
    faulthandler.dump_traceback_later(min(patience, 30.0), exit=True, file=2)
    return EXIT_FAILED if reason else 0


def _lock(place: TrackerFiles, patience: float) -> int | None:
    """The lock of the tracker; waits for a holder that is about to end. None if it cannot be acquired."""
    descriptor = place.open(place.lock, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
