"""Crash reports: the error and its place, for whoever fixes the bug.

A report is a traceback without the values of variables, which may be anybody's data, and without secrets.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.redact import redact
from core.text import one_line, sanitize

#: Reports that are kept; older ones are removed.
KEPT = 10
#: Most characters of a report, and of those searched for secrets: an exception's message may be a whole file.
_LONGEST, _LOOKED_AT = 200_000, 2_000_000


def describe(error: BaseException) -> str:
    """An exception in a few words, on one line and without secrets: ``ValueError: it is negative``."""
    try:
        text = " ".join(str(error)[:_LOOKED_AT].split())
    except Exception:
        # An exception whose message raises still has a type.
        text = ""
    return one_line(redact(f"{type(error).__name__}: {text}" if text else type(error).__name__), 160)


def write_report(error: BaseException, facts: Mapping[str, str] | None = None) -> Path:
    """Write a crash report, readable by the user alone, and remove the oldest ones.

    Args:
        error: The exception.
        facts: Other useful facts, a line each: the version, the size of the terminal.

    Returns:
        The path of the report, in :func:`core.paths.crashes_dir`.

    Raises:
        UserError: If the directory cannot be made.
        OSError: If the file cannot be written.
    """
    directory = paths.make_private_dir(paths.crashes_dir())
    path = directory / f"{datetime.now().strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    lines = [f"{name}: {one_line(value)}" for name, value in (facts or {}).items()]
    # Redacted before it is shortened: half of a secret would not be recognized.
    text = sanitize(redact("\n".join([*lines, "", _traceback(error)])[:_LOOKED_AT]))[:_LONGEST]
    write_atomic(path, text.rstrip("\n") + "\n")
    for old in reports()[KEPT:]:
        with suppress(OSError):
            old.unlink()
    return path


def reports() -> list[Path]:
    """The existing reports, the newest first."""
    try:
        found = [path for path in paths.crashes_dir().iterdir() if path.suffix == ".txt"]
    except OSError:
        return []
    return sorted(found, reverse=True)


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=False).format())
    except Exception:
        # An exception that cannot be written as text, such as one whose message raises.
        return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
