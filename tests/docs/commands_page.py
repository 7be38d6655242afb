"""Generator of docs/reference/commands.md: ``python -m tests.docs.commands_page``.

The page has the parsers' own help, and the fields of ``--json`` from ``json_fields.toml``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import tomli

from core.commands import COMMANDS, GROUPS
from core.commands.command_line import app_parser, command_parser, example_lines, examples

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"
HEAD, FIELDS = (Path(__file__).with_name(name) for name in ("commands_head.md", "json_fields.toml"))
#: Commands with the fields of another one.
SAME = dict.fromkeys(("resume", "park", "checkpoint", "set", "stop"), "pause") | {"continue": "train"}


def render() -> str:
    """The page as Markdown."""
    fields = tomli.loads(FIELDS.read_text(encoding="utf-8"))
    parts = [HEAD.read_text(encoding="utf-8"), "## The app\n", *_arguments(app_parser())]
    for title, group in GROUPS.items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        for name in group:
            parts += _command(name, fields.get(SAME.get(name, name), {}))
    return "\n".join(parts)


def _command(name: str, fields: dict[str, str]) -> Iterator[str]:
    description = COMMANDS[name][1]
    yield f"### {name}\n\n{description[0].upper()}{description[1:]}.\n"
    yield from _arguments(command_parser(name))
    lines = [
        f"{line}{f'  # {meaning}' if meaning else ''}"
        for line, (_, meaning) in zip(example_lines(name), examples()[name], strict=True)
    ]
    yield "```sh\n" + "\n".join(lines) + "\n```\n"
    if name in SAME:
        yield f"Fields of `--json`: as of [{SAME[name]}](#{SAME[name]}).\n"
    else:
        yield from _table("field", [(", ".join(f"`{one}`" for one in key.split(", ")), fields[key]) for key in fields])


def _arguments(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """Tables of a parser's arguments, followed by its subcommands' tables."""
    parser.format_help()  # it fills in the texts
    rows, below = [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = list(action.choices.items())
            rows += [(f"`{choice.dest}`", choice.help or "") for choice in action._choices_actions]
        elif action.dest not in ("help", "json") and action.help != argparse.SUPPRESS:
            rows.append((f"`{_name(action)}`", (action.help or "") % {**vars(action), "prog": parser.prog}))
    yield from _table(f"`{before}`" if before else "argument", rows)
    for name, inner in below:
        yield from _arguments(inner, f"{parser.prog.split()[-1]} {name}")


def _name(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    if not action.option_strings:
        return f"{value} …" if action.nargs in ("+", "*") else str(value)
    return action.option_strings[-1] + ("" if action.nargs == 0 else f" {value}")


def _table(head: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    if rows:
        cells = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        yield "\n".join([f"| {head} | |", "|---|---|", *cells]) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
