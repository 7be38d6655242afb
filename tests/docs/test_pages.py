"""Pages of the documentation: what they name is there — links, commands and their options, options of a configuration,
files."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tomli

from core.commands import COMMANDS
from core.commands.command_line import app_parser, command_parser
from core.config.schema import Config
from tests.cases import cases

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE_OF_LAYERS = ROOT / "docs/architecture.md"
#: Of other programs, which the page compares with this one.
FOREIGN = {"comparison.md"}
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
BY_PAGE = cases("page", PAGES, ids=lambda page: page.name)


def outside_of_code(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get."""
    headings = re.findall(r"^#+ +(.+)$", outside_of_code(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@BY_PAGE
def test_links_within_the_documentation_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_of_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def command_lines(page: Path) -> Iterator[tuple[str, str]]:
    """Command lines on a page: the command, and what follows it on its line or within its backticks."""
    # A line that goes on in the next one, by a backslash or, in a usage, by an indentation.
    joined = re.sub(r"\\?\n {2,}(?=[\[-])", " ", page.read_text())
    for words in re.findall(r"localtune-tui ([^`\n#|]*)", joined):
        name, _, rest = words.partition(" ")
        if name in COMMANDS:
            yield name, re.split(r" && | > |;|\)", rest)[0]


@cache
def options(name: str) -> frozenset[str]:
    """The options of a command, those of its subcommands among them."""
    return frozenset(_options(command_parser(name)))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for further in action.choices.values():
                yield from _options(further)


@BY_PAGE
def test_commands_have_the_options_that_they_are_shown_with(page: Path) -> None:
    for name, rest in command_lines(page):
        unknown = set(OPTION.findall(rest)) - options(name)
        assert not unknown, f"{name} {rest}"


@cases("name", COMMANDS)
def test_the_page_of_commands_tells_every_option(name: str) -> None:
    sections = re.split(r"^## ", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    said = next(section for section in sections if name in re.split(r", |\n", section.partition("\n\n")[0]))
    assert options(name) - {"-h", "--help"} - set(OPTION.findall(said)) == set()


def test_the_app_is_explained_with_every_option() -> None:
    said = (ROOT / "docs/commands.md").read_text()
    for option in set(_options(app_parser())) - {"-h", "--help"}:
        assert option in said


@BY_PAGE
def test_options_of_a_configuration_are_there(page: Path) -> None:
    sections = {name: set(getattr(field.annotation, "model_fields", ())) for name, field in Config.model_fields.items()}
    for section, option in re.findall(r"`([a-z]+)\.([a-z0-9_]+)(?: = [^`]*)?`", page.read_text()):
        if section in sections and page.name != "import.md" and option not in {"jsonl", "json", "csv", "parquet"}:
            assert option in sections[section], f"{section}.{option}"


@cases(("container", "first"), [("tui", "tui/ "), ("core", "core/\n"), ("core.worker", "  measure/")])
def test_the_architecture_draws_the_layers_in_their_order(container: str, first: str) -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == [container])
    text = PAGE_OF_LAYERS.read_text()
    drawing = re.split(r"\n\n|\n```", text[text.index(f"\n{first}") + 1 :])[0]
    # What a line says of its modules stands in a column of its own.
    heads = [line.strip().partition("   ")[0].split() for line in drawing.splitlines() if re.match(r"  \S", line)]
    place = {name.rstrip("/"): number for number, names in enumerate(heads) for name in names}
    reached = 0
    for layer in layers:
        # The worker has a drawing of its own.
        lines = [place[name] for name in layer.split(" | ") if name not in ("__main__", "worker")]
        assert min(lines, default=reached) >= reached, layer
        reached = max([reached, *lines])


@BY_PAGE
def test_files_of_the_tree_are_there(page: Path) -> None:
    if page.name in FOREIGN:
        return
    for path in re.findall(r"`((?:core|tui|bench|tests|themes)/[\w./-]+\.(?:py|toml|jsonl?))`", page.read_text()):
        # Tests are named by their place below ``tests/`` as well; names in capitals stand for many files.
        if not re.search(r"[A-Z]{3}", path):
            assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path
