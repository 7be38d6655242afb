"""Shared parts of the commands: output, exit codes and common arguments."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from core.errors import UserError
from core.text import one_line, sanitize

if TYPE_CHECKING:
    from core.runs.record.state import RunState
    from core.runs.record.store import Run

PROGRAM = "localtune-tui"

#: Characters that JSON leaves as they are and a terminal acts on: DEL, C1, bidi controls, separators, lone surrogates.
_ACTED_ON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: Clears the line of the cursor.
CLEAR_LINE = "\r\x1b[K"

RUN_HELP = "a run: its id, a part of it, its directory, or 'latest'"

EXIT_ERROR = 1
EXIT_USAGE = 2
#: The reason why two arguments that each print to standard output exclude each other.
BOTH_PRINTED = "both are printed to standard output."
#: A run that ended without a final state counts as failed.
EXIT_LOST = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class OutputError(Exception):
    """Standard output cannot be written, for instance because its disk is full."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror) from error


def put(text: str) -> None:
    """Write to standard output, as it is.

    Raises:
        OutputError: If it cannot be written.
    """
    with _writing():
        sys.stdout.write(text)


def flush() -> None:
    """Flush standard output.

    Raises:
        OutputError: If it cannot be written.
    """
    with _writing():
        sys.stdout.flush()


def say(*lines: str) -> None:
    """Print lines of the result on standard output, safe for the terminal."""
    put("".join(f"{sanitize(line)}\n" for line in lines))
    flush()


def note(*lines: str) -> None:
    """Print lines about the progress on standard error, safe for the terminal."""
    flush()
    sys.stderr.write("".join(f"{sanitize(line)}\n" for line in lines))
    sys.stderr.flush()


def tell_measuring() -> Callable[[str, float], None]:
    """A callback that prints once that a model is being measured; for
    :func:`core.models.architecture.measuring.telling`."""
    said: list[str] = []

    def report(_activity: str, _seconds: float) -> None:
        if not said:
            said.append("measuring")
            note("measuring the memory of this model family; takes some seconds, once")

    return report


def agrees(question: str, hint: str) -> bool:
    """True if the user answers yes.

    Args:
        question: The question, which ends with ``?``.
        hint: The remedy without a terminal to ask at.

    Raises:
        UserError: If there is none.
    """
    if not sys.stdin.isatty():
        raise UserError(f'"{question}" needs an answer, and there is no terminal to ask at.', hint)
    flush()
    sys.stderr.write(f"{sanitize(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_table(table: Sequence[Sequence[str]], right: Container[int] = ()) -> None:
    """Print rows of cells in columns, the headings first.

    Args:
        table: The rows.
        right: Indices of right-aligned columns.
    """
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def emit(value: Any) -> None:
    """Print a result as one line of JSON on standard output, without the numbers that JSON lacks (``"NaN"``)."""
    from core.runs.record.events import as_json

    say(escape_json(json.dumps(as_json(value), ensure_ascii=False, allow_nan=False)))


def fields(value: object, *names: str) -> dict[str, Any]:
    """Attributes of an object by name, for :func:`emit`."""
    return {name: getattr(value, name) for name in names}


def escape_json(text: str) -> str:
    """Equivalent JSON without characters that a terminal acts on."""
    return _ACTED_ON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def report_error(error: UserError) -> None:
    """Print an error as one line on standard error, safe for the terminal."""
    note(f"{PROGRAM}: {one_line(str(error))}")


def invoke(action: Callable[[], int]) -> int:
    """Run a command so that no traceback reaches the user.

    Args:
        action: The command; returns its exit code.

    Returns:
        The exit code: the command's own, 1 after an error, 130 after Ctrl-C, 141 when the reader of the output is gone.
    """
    _open_missing_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "replace":
            # A locale without UTF-8 must not end a command because of a dash or a user's data, in or out.
            stream.reconfigure(errors="replace")
    try:
        return action()
    except UserError as error:
        report_error(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        note("")
        return EXIT_INTERRUPTED
    except (BrokenPipeError, OutputError) as error:
        # The buffered rest would raise again, now and when the interpreter closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        report_error(UserError(f"The output cannot be written: {error}.", "Make room, or send it elsewhere."))
        return EXIT_ERROR
    except (OSError, UnicodeEncodeError) as error:
        _trace()
        report_error(_refused_by_system(error))
        return EXIT_ERROR
    except Exception as error:
        _trace()
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        report_error(
            UserError(
                f"an internal error: {detail}.",
                "Please report it, with the output of the command under LOCALTUNE_DEBUG=1.",
            )
        )
        return EXIT_ERROR


def _trace() -> None:
    if os.environ.get("LOCALTUNE_DEBUG"):
        traceback.print_exc()


def _refused_by_system(error: OSError | UnicodeEncodeError) -> UserError:
    """The error for an OSError that nothing else has explained."""
    try:
        os.getcwd()
    except OSError:
        return UserError("The current directory has been deleted.", "Change to one that is there, and do it again.")
    if isinstance(error, UnicodeEncodeError):
        text = one_line(error.object, 200)
        return UserError(
            f"{text} cannot be written in the character set of this locale.", "Set LANG to C.UTF-8, or rename it."
        )
    name = error.filename
    if name is None:
        return UserError(f"The system refuses: {error.strerror or error}.", "Look at what the command was given.")
    shown = one_line(os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name), 200)
    return UserError(f"{shown} cannot be used: {error.strerror or error}.", "Check the path.")


def _open_missing_streams() -> None:
    """Open the null device for each standard stream that the caller has closed, so that no file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


def exit_code(state: RunState) -> int:
    """The exit code for the end state of a followed run: 0 finished, 3 stopped, 4 failed or lost, 5 finished with a
    result that ``eval.gate`` refuses."""
    return EXIT_LOST if state.exit_code is None else state.exit_code


def add_config(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Declare the configuration file and ``--set``.

    Args:
        parser: Parser of the command.
        optional: Whether the file may be left out.
    """
    parser.add_argument("config", metavar="CONFIG", nargs="?" if optional else None, help="configuration file (TOML)")
    add_set(parser)


def add_json_flag(parser: argparse.ArgumentParser, what: str = "print the result as one JSON object") -> None:
    """Add ``--json`` to a command."""
    parser.add_argument("--json", action="store_true", help=what)


def add_run_argument(parser: argparse.ArgumentParser, help_: str = RUN_HELP) -> None:
    """Add ``RUN`` to a command."""
    parser.add_argument("run", metavar="RUN", help=help_)


def add_set(parser: argparse.ArgumentParser, help_: str = "override an option of the file; may be repeated") -> None:
    """Add ``--set`` to a command."""
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help=help_)


def find_runs(names: Iterable[str]) -> list[Run]:
    """The named runs, each once.

    Raises:
        UserError: If there is no such run.
    """
    from core.runs.record.store import find_run

    return list({run.path.resolve(): run for run in map(find_run, names)}.values())


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


def do_for_each(runs: Iterable[T], action: Callable[[T], object]) -> tuple[list[T], list[dict[str, str]]]:
    """Do something with each run, and print the errors.

    Returns:
        The runs that are done; and for each of the others, its id and the reason as JSON fields.
    """
    done: list[T] = []
    left: list[dict[str, str]] = []
    for run in runs:
        try:
            action(run)
            done.append(run)
        except UserError as error:
            left.append({"run": run.id, "reason": str(error)})
            report_error(error)
    return done, left


def refuse_existing(path: Path) -> None:
    """Refuse to overwrite a file.

    Raises:
        UserError: If it exists.
    """
    if os.path.lexists(path):
        raise _exists(path)


def write_file(path: Path, text: str, *, force: bool = True) -> None:
    """Write a file of the user, atomically; without ``force`` never over another one.

    Raises:
        UserError: If it cannot be written, or another program has meanwhile made a file of that name.
    """
    from core.config.files import FileText

    try:
        if not force:
            # Claims the name, so that a file made in the meantime is not replaced.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        FileText("").write(path, text)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error


def _exists(path: Path) -> UserError:
    return UserError(f"{path} exists already.", "Choose another name, or replace it with --force.")


def find_live_run(name: str, purpose: str) -> Run:
    """The live run with a name.

    Args:
        name: The name that the user typed.
        purpose: The purpose, as a verb: ``pause``.

    Raises:
        UserError: If there is no such run, or it has ended.
    """
    from core.runs.record.state import in_words
    from core.runs.record.store import find_run, way_on

    run = find_run(name)
    state = run.state()
    if state.is_over:
        raise UserError(
            f"{run.id} {in_words(state.state)}; there is nothing to {purpose}.",
            way_on(run) if state.state != "finished" else "",
        )
    return run


def describe_state(state: RunState) -> str:
    """A state in words: ``training, step 34 of 120``."""
    words = state.word
    if state.total_steps:
        words += f", step {state.step} of {state.total_steps}"
    if state.refused:
        words += ", refused by eval.gate"
    return f"{words} ({state.reason})" if state.reason else words


def card_memory(text: str | None) -> int | None:
    """Bytes that ``--gpu-memory`` says; None without it.

    Raises:
        UserError: If it is no size.
    """
    if text is None:
        return None
    from core.units import parse_bytes

    size = parse_bytes(text)
    if not size:
        raise UserError(f"--gpu-memory {text} is no size.", "Write it as 24GB or 22.5GiB.")
    return size
