"""What the commands share: output, exit codes and the arguments that several of them take."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.errors import UserError

if TYPE_CHECKING:
    from core.runs.state import RunState
    from core.runs.store import Run

PROGRAM = "localtune-tui"

#: Takes the line away that the cursor is on.
CLEAR_LINE = "\r\x1b[K"

EXIT_ERROR = 1
EXIT_USAGE = 2
#: A run that ended without a word counts as failed.
EXIT_LOST = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def say(text: str) -> None:
    """Print a line of the result on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line about the progress on standard error."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def emit(value: Any) -> None:
    """Print a result as one line of JSON on standard output, without the numbers that JSON lacks (``"NaN"``)."""
    from core.runs.events import as_json

    say(json.dumps(as_json(value), ensure_ascii=False, allow_nan=False))


def report_error(error: UserError) -> None:
    """Print an error as one line on standard error, safe for the terminal."""
    from core.text import one_line

    note(f"{PROGRAM}: {one_line(str(error))}")


def invoke(action: Callable[[], int]) -> int:
    """Carry out a command so that no traceback reaches the user.

    Args:
        action: The command; returns its exit code.

    Returns:
        The exit code: the command's own, 1 after an error, 130 after Ctrl-C, 141 when nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without UTF-8 must not end a command over a dash or somebody's data.
            stream.reconfigure(errors="replace")
    try:
        return action()
    except UserError as error:
        report_error(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        note("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered would raise again when the interpreter closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("LOCALTUNE_DEBUG"):
            traceback.print_exc()
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        report_error(
            UserError(
                f"a mistake of the program itself: {detail}.",
                "Please report it, with what LOCALTUNE_DEBUG=1 in front of the command shows.",
            )
        )
        return EXIT_ERROR


def exit_code(state: str) -> int:
    """The exit code for a run that was followed to its end: 0 finished, 3 stopped, 4 failed or lost."""
    from core.runs.state import EXIT_CODES

    return EXIT_CODES.get(state, EXIT_LOST)


def add_json_flag(parser: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    """Give a command its ``--json``."""
    parser.add_argument("--json", action="store_true", help=what)


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Give a command its ``RUN``."""
    parser.add_argument("run", metavar="RUN", help="a run: its id, a part of it, its directory, or 'latest'")


def find_live_run(name: str, purpose: str) -> Run:
    """The run that a user means, if it is one that still does something.

    Args:
        name: What the user typed.
        purpose: What it is wanted for, as a verb: ``pause``.

    Raises:
        UserError: If there is no such run, or it has ended.
    """
    from core.runs.store import find_run

    run = find_run(name)
    state = run.state()
    if state.is_over:
        raise UserError(
            f"{run.id} is {state.state}; there is nothing to {purpose}.",
            f"'{PROGRAM} continue {run.id}' goes on with it." if state.state != "finished" else "",
        )
    return run


def describe_state(state: RunState) -> str:
    """A state in words: ``training, step 34 of 120``."""
    words = state.state
    if state.total_steps:
        words += f", step {state.step} of {state.total_steps}"
    return f"{words} ({state.reason})" if state.reason else words
