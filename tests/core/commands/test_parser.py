"""The commands by group in the help; arguments that contradict each other."""

from __future__ import annotations

import argparse
import shlex

import pytest

from core.commands import COMMANDS, GROUPS
from core.commands import parser as parsers
from core.commands.command_line import app_parser, command_parser
from tests.cases import cases, tables

TABLES = tables(__file__)


@cases(("line", "said"), TABLES["contradictions"])
def test_what_contradicts_itself_is_wrong_usage(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *words = shlex.split(line)
    with pytest.raises(SystemExit) as caught:
        command_parser(command).parse_args(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {said}" in err


@cases("line", TABLES["what_goes_together_is_taken"])
def test_what_goes_together_is_taken(line: str) -> None:
    command, *words = shlex.split(line)
    taken = vars(command_parser(command).parse_args(words))
    for option in (word for word in words if word.startswith("--")):
        value = taken[option[2:].replace("-", "_")]
        assert value is not None, option
        assert value is not False, option


def test_help_lists_the_commands_by_group() -> None:
    shown = app_parser().format_help()
    assert sorted(COMMANDS) == sorted(name for group in GROUPS.values() for name in group)
    blocks = {block.partition(":\n")[0]: block.splitlines()[1:] for block in shown.split("\n\n")}
    for title, group in GROUPS.items():
        assert [line.split()[0] for line in blocks[title]] == list(group)
    places = [shown.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines())) <= 80


def test_every_argument_has_a_help_and_every_help_an_argument() -> None:
    found: set[tuple[str, str]] = set()
    for parser in (app_parser(), *map(command_parser, COMMANDS)):
        below = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        for each in (parser, *(each for choices in below for each in choices.values())):
            each.format_help()
            assert all(action.help for action in each._actions if action.dest != "action"), each.prog
            names = ((action.option_strings or [action.dest])[-1].lstrip("-") for action in each._actions)
            found |= {(each.prog.partition(" ")[2], name) for name in names}
    assert {(command, name) for command, texts in parsers._texts().items() for name in texts} <= found
