"""Command line of ``localtune-tui``: the app, or a command of ``core.commands``.

Imports are lazy: ``--help`` and ``--version`` answer at once, and a command loads only its own modules.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.commands import COMMANDS
from core.commands.command_line import app_parser, command_parser
from core.commands.common import EXIT_ERROR, EXIT_USAGE, PROGRAM, OutputError, invoke, note, say
from core.commands.parser import ArgumentParser
from core.errors import UserError
from core.path_kind import path_kind, refuse_kind
from core.paths import runs_dir
from core.text import one_line


@dataclass(frozen=True)
class Opening:
    """Argument that the app is opened with: a configuration, data, a run, or nothing."""

    config: Path | None = None
    data: Path | None = None
    run: str | None = None


def _open_app(args: argparse.Namespace, opened: Opening) -> int:
    """Open the app, and print its closing line after it has ended."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        note(f"{PROGRAM}: the app needs a terminal; '{PROGRAM} --help' lists the commands that do not.")
        return EXIT_USAGE
    if os.environ.get("TERM") == "dumb":
        note(
            f"{PROGRAM}: the app needs a terminal that can place text, and TERM=dumb says that this one cannot; set "
            f"TERM as it is (xterm-256color, for one), or use the commands that '{PROGRAM} --help' lists."
        )
        return EXIT_USAGE
    # Fails now, as in any command, if the directory has been deleted.
    os.getcwd()
    # Before anything imports the library: it would use every core to tokenize a screenful of rows, and print a warning
    # over the screen once a process is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tui.app import LocaltuneApp
    from tui.ending import end_process, whole_terminal

    app = LocaltuneApp(opened.config, run=args.run or opened.run, demo=args.demo, data=opened.data)
    line = None
    try:
        with whole_terminal():
            line = app.run(mouse=not args.no_mouse)
    except KeyboardInterrupt:
        # It came before the app installed its signal handlers.
        raise
    except BaseException as error:
        # Textual handles subclasses of Exception only; a panic of a Rust library is none.
        app.end_by_mistake(error)
    words = app.last_words()
    # The terminal may be gone, and then nobody can read the message.
    with suppress(OSError, OutputError):
        if words:
            note(f"{PROGRAM}: {words}")
            app.mistakes.print_traceback()
        elif line:
            say(line)
    return end_process(EXIT_ERROR if words else 0)


def _refuse_word(parser: ArgumentParser, name: str) -> None:
    """Exit with a usage error for a first argument that is not a command, path or run."""
    meant = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean '{PROGRAM} {meant[0]}'?" if meant else f" '{PROGRAM} --help' lists the commands."
    parser.error(f"'{one_line(name, 200)}' is not a command, configuration file, data file or run.{hint}")


def _is_run_id(name: str) -> bool:
    # Not the method of Path, which raises on names that no file can have.
    return os.path.basename(name) == name and os.path.isfile(runs_dir() / name / "run.toml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit code: 0 done, 1 an error that the user can fix, 2 wrong usage; a run that was followed to its end
        gives 3 when it was stopped and 4 when it failed; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Loading a command and parsing its arguments is guarded too: no input may end in a traceback, and neither may
    # Ctrl-C during the imports.
    return invoke(lambda: _run_command(words) if words and words[0] in COMMANDS else _run_app(words))


def _run_app(words: list[str]) -> int:
    parser = app_parser()
    first = words[0] if words and not words[0].startswith("-") else None
    if first is not None and path_kind(Path(first)) == "missing" and not _is_run_id(first):
        # Checked before the other arguments: after a mistyped command they belong to it, and are not the mistake.
        _refuse_word(parser, first)
    args, further = parser.parse_known_args(words)
    if further:
        late = args.config if args.config in COMMANDS else None
        hint = f" A command comes first: '{PROGRAM} {late} …'." if late else ""
        parser.error(f"unrecognized arguments: {' '.join(further)}.{hint}")
    return _open_app(args, opening(parser, args.config))


def opening(parser: ArgumentParser, name: str | None) -> Opening:
    """The opening for a path or a run id.

    Raises:
        UserError: If the app cannot open this kind of file.
    """
    if name is None:
        return Opening()
    path = Path(name)
    kind = path_kind(path)
    if kind == "missing":
        if not _is_run_id(name):
            _refuse_word(parser, name)
        return Opening(run=name)
    if kind in ("data", "directory"):
        return Opening(data=path)
    if kind == "run":
        return Opening(run=os.fspath(path.absolute()))
    refuse_kind(path, "config")
    if kind == "other":
        raise UserError(f"{one_line(name, 200)} is neither a configuration nor data.", "Name a TOML file, or rows.")
    return Opening(config=path)


def _run_command(words: list[str]) -> int:
    args = command_parser(words[0]).parse_args(words[1:])
    code: int = args.run_command(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
