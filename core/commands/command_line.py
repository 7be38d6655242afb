"""Parsers of the command line: the app, each command, and all together."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli

from core import __version__
from core.commands import COMMANDS, GROUPS, load_command
from core.commands.common import PROGRAM
from core.commands.parser import ArgumentParser, HelpFormatter

#: Columns of a terminal that is not wide.
_COLUMNS = 80


def app_parser() -> ArgumentParser:
    """The parser of the app's own arguments; its help lists the commands."""
    parser = ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [CONFIG | DATA] [--run RUN | --demo]\n       {PROGRAM} COMMAND …",
        description="Fine-tune language models on one GPU, from a terminal. Without a command the app opens.",
        epilog=f"{_listing()}\n\n{_examples('')}\n\n'{PROGRAM} COMMAND --help' explains one. All take --json.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="configuration file (TOML) to open the app with; or a data file, or the directory of a run",
    )
    add_app_options(parser)
    return parser


def add_app_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the app."""
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="RUN", help="run to open the app with: its id, a part of it, or 'latest'")
    parser.add_argument(
        "--no-mouse", action="store_true", help="leave the mouse to the terminal, for selecting and copying text"
    )
    which.add_argument("--demo", action="store_true", help="open the app with the sample run started")


def command_parser(name: str) -> ArgumentParser:
    """The parser of one command; ``run_command`` of its result carries the command out."""
    module = load_command(name)
    parser = ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=_sentence(COMMANDS[name][1]),
        epilog=_examples(name),
        formatter_class=HelpFormatter,
    )
    module.add_arguments(parser)
    parser.set_defaults(command=name, run_command=module.run)
    return parser


def whole_parser() -> ArgumentParser:
    """A parser of every command line; unlike :func:`command_parser` it imports all commands."""
    parser = ArgumentParser(prog=PROGRAM)
    add_app_options(parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (_, description) in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=_sentence(description))
        load_command(name).add_arguments(command)
    return parser


@functools.cache
def examples() -> Mapping[str, Sequence[tuple[str, str]]]:
    """By command, the command lines for the end of its ``--help`` with their meanings."""
    return tomli.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))


def example_lines(name: str) -> list[str]:
    """The examples of a command as they are typed; of the app for an empty name."""
    return [f"{PROGRAM} {line}".rstrip() for line, _ in examples()[name]]


def _listing() -> str:
    """All commands below the names of their groups."""
    width = max(map(len, COMMANDS))
    groups = (
        "\n".join([f"{title}:", *(f"  {name:<{width}}  {description}" for name, (_, description) in group.items())])
        for title, group in GROUPS.items()
    )
    return "\n\n".join(groups)


def _examples(name: str) -> str:
    """The examples of a command with their meanings as comments, in a column if they fit, else above each line."""
    meanings = [f"  # {meaning}" if meaning else "" for _, meaning in examples()[name]]
    pairs = list(zip([f"  {line}" for line in example_lines(name)], meanings, strict=True))
    width = max((len(line) for line, meaning in pairs if meaning), default=0)
    if all(width + len(meaning) < _COLUMNS for meaning in meanings):
        lines = [f"{line:<{width}}{meaning}".rstrip() for line, meaning in pairs]
    else:
        lines = [text for line, meaning in pairs for text in (meaning, line) if text]
    return "\n".join(["examples:", *lines])


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
