"""``selftest``: proof that this program trains rightly on this very machine."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands.common import EXIT_ERROR, add_json_flag, emit, note, say
from core.commands.live_line import LiveLine
from core.errors import UserError
from core.text import one_line

if TYPE_CHECKING:
    from core.selftest.job import SelfTestProgress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--report", metavar="FILE")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Make all checks and print their table; the exit code is 0 unless one fails."""
    from core.selftest.job import selftest_job
    from core.selftest.report import device_line, refuse_place, table, write_report

    place = None if args.report is None else Path(args.report).expanduser().absolute()
    if place is not None:
        # Minutes before it is written.
        refuse_place(place)
    with LiveLine() as line:
        report = selftest_job().run(_Shown(line).show)
    # Minutes of work must not be lost: the file is written even if the output is gone, and the other way round.
    try:
        written: Path | UserError = write_report(report, place)
    except UserError as error:
        written = error
    if args.json:
        emit(report.to_dict())
    else:
        say(device_line(report.device))
        say("")
        say(*table(report.checks, shutil.get_terminal_size((100, 24)).columns))
        say("")
        say(report.summary())
    if isinstance(written, UserError):
        raise written
    note(f"The report, without names and paths, is in {written}.")
    return 0 if report.passed else EXIT_ERROR


class _Shown:
    """Progress on standard error: a live line on a terminal, a line for each check elsewhere."""

    def __init__(self, line: LiveLine) -> None:
        self._line = line
        self._done = 0
        self._current = ""

    def show(self, progress: SelfTestProgress) -> None:
        """Show progress."""
        from core.selftest.report import LABELS, subject

        for check in progress.checks[self._done :]:
            self._line.message(f"{LABELS[check.result]:<4}  {subject(check.name).title}  {check.seconds:.0f} s")
        self._done = len(progress.checks)
        if self._line.is_live:
            self._line.draw(one_line(activity_line(progress)))
        elif progress.current is not None and progress.current.name != self._current:
            self._current = progress.current.name
            note(f"{progress.current.title} …")


def activity_line(progress: SelfTestProgress) -> str:
    """The current check and its progress on one line; empty if there is none."""
    if progress.current is None and not progress.activity:
        return ""
    title = progress.current.title if progress.current is not None else "starter model"
    counted = f" {progress.done} of {progress.total}" if progress.done is not None and progress.total else ""
    return f"{title}: {progress.activity}{counted}" if progress.activity else f"{title} …"
