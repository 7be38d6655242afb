"""The command line of ``localtune-tui``: the app, or one of the commands of ``core.commands``.

Nothing heavy is imported here: ``--help`` and ``--version`` answer at once, and a command loads only what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from core import __version__
from core.commands import COMMANDS, load_command
from core.commands.common import EXIT_ERROR, EXIT_USAGE, OutputError, invoke, note, say
from core.commands.parser import ArgumentParser
from core.text import one_line

PROGRAM = "localtune-tui"


def _app_parser() -> ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {description}" for name, (_, description) in COMMANDS.items())
    parser = ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [CONFIG] [--run RUN | --demo]\n       {PROGRAM} COMMAND …",
        description="Fine-tune language models on one GPU, from a terminal. Without a command the app opens.",
        epilog=f"commands:\n{listing}\n\n'{PROGRAM} COMMAND --help' explains one. All take --json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="configuration file (TOML) to open the app with")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", help="run to open the app with: its id, a part of it, or 'latest'")
    parser.add_argument(
        "--no-mouse", action="store_true", help="leave the mouse to the terminal, for selecting and copying text"
    )
    which.add_argument("--demo", action="store_true", help="open the app with the sample run started")
    return parser


def _command_parser(name: str) -> ArgumentParser:
    module = load_command(name)
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}", description=f"{COMMANDS[name][1][0].upper()}{COMMANDS[name][1][1:]}."
    )
    module.add_arguments(parser)
    parser.set_defaults(command=name, run_command=module.run)
    return parser


def _open_app(args: argparse.Namespace) -> int:
    """Open the app, and print its closing line after it has ended."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        note(f"{PROGRAM}: the app needs a terminal; '{PROGRAM} --help' lists the commands that do not.")
        return EXIT_USAGE
    # Before anything imports the library: it would tokenize a screenful of rows on every core, competing with a run for
    # them, and warn on the terminal, over the screen, once a process is started after that.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tui.app import LocaltuneApp
    from tui.ending import end_process, whole_terminal

    app = LocaltuneApp(Path(args.config) if args.config else None, run=args.run, demo=args.demo)
    line = None
    try:
        with whole_terminal():
            line = app.run(mouse=not args.no_mouse)
    except KeyboardInterrupt:
        # It came before the app handled signals as a request to quit.
        raise
    except BaseException as error:
        # Textual does not handle what is not an Exception: a panic of a Rust library, for one.
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


def _refuse_config(parser: ArgumentParser, name: str) -> None:
    """Exit with a usage error for a first argument that is neither a command nor a file."""
    # Not the method of Path, which raises on names that no file can have.
    if os.path.isfile(name):
        return
    meant = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean '{PROGRAM} {meant[0]}'?" if meant else f" '{PROGRAM} --help' lists the commands."
    parser.error(f"'{one_line(name, 200)}' is neither a command nor a configuration file.{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 1 an error that the user can fix, 2 wrong usage; a run that was followed to its end
        gives 3 when it was stopped and 4 when it failed; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # Loading a command and parsing its arguments is guarded too: no input may end in a traceback, and neither may
    # Ctrl-C during the imports.
    return invoke(lambda: _run_command(words) if words and words[0] in COMMANDS else _run_app(words))


def _run_app(words: list[str]) -> int:
    parser = _app_parser()
    args = parser.parse_args(words)
    if args.config is not None:
        _refuse_config(parser, args.config)
    return _open_app(args)


def _run_command(words: list[str]) -> int:
    args = _command_parser(words[0]).parse_args(words[1:])
    code: int = args.run_command(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
