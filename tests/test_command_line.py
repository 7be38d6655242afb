"""The parsers of the command line: their examples, and what a shell completes."""

from __future__ import annotations

import shlex

from core.commands import COMMANDS
from core.commands.command_line import app_parser, command_parser, example_lines, examples
from tests.cases import cases


def test_every_command_has_examples() -> None:
    assert set(examples()) == {"", *COMMANDS}
    assert all(examples().values())


@cases(("name", "line"), [(name, line) for name in examples() for line in example_lines(name)], ids=lambda value: value)
def test_every_example_parses(name: str, line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "localtune-tui"
    if words and words[0] in COMMANDS:
        assert not name or words[0] == name
        parsed = command_parser(words[0]).parse_args(words[1:])
        assert callable(parsed.run_command)
    else:
        assert not name
        app_parser().parse_args(words)


@cases("name", examples())
def test_examples_are_in_the_help_and_fit_a_terminal(name: str) -> None:
    shown = (command_parser(name) if name else app_parser()).format_help()
    lines = shown[shown.index("examples:") :].splitlines()
    for line in example_lines(name):
        assert any(shown_line.partition("  #")[0].strip() == line for shown_line in lines)
    assert max(map(len, lines)) <= 80
