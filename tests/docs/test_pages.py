"""The documentation: its length, its links, and the existence of named commands, options, files and packages."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tomli

from core.commands import COMMANDS
from core.commands.command_line import app_parser, command_parser
from core.config.schema import Config
from tests.cases import cases
from tests.docs import commands_page

ROOT = Path(__file__).parents[2]
HAND_WRITTEN = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *HAND_WRITTEN, *sorted((ROOT / "docs/reference").glob("*.md"))]
CONTRACTS = ROOT / "tests" / "contracts" / "contracts.json"
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
BY_PAGE = cases("page", PAGES, ids=lambda page: page.name)
#: Containers of the layers, and the first line of their drawings.
DRAWN = {"tui": "tui/", "core": "core/", "core.worker": "core/worker/"}


def test_the_pages_are_short() -> None:
    def lines(page: Path) -> int:
        return len(page.read_text(encoding="utf-8").splitlines())

    assert lines(ROOT / "README.md") <= 120
    assert len(HAND_WRITTEN) <= 15
    assert sum(map(lines, HAND_WRITTEN)) <= 3000


def outside_of_code(page: Path) -> str:
    """Text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", outside_of_code(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(heading.replace(" ", "-") for heading in plain)


@BY_PAGE
def test_links_lead_to_a_page_and_an_anchor(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_of_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_pages_named_in_the_code_exist() -> None:
    sources = [path for folder in ("core", "tui", "bench", "tests") for path in (ROOT / folder).rglob("*")]
    missing = {
        f"{path.relative_to(ROOT)}: {named}"
        for path in sources
        if path.suffix in (".py", ".toml") and "results" not in path.parts
        for named in re.findall(r"(?<![\w/.-])docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
        if not (ROOT / named).exists()
    }
    assert missing == set()


def command_lines(page: Path) -> Iterator[tuple[str, str]]:
    """Commands on a page, each with the rest of its line or of its backticks."""
    # A backslash continues a line.
    joined = re.sub(r"\\\n +", " ", page.read_text(encoding="utf-8"))
    for words in re.findall(r"localtune-tui ([^`\n#|]*)", joined):
        name, _, rest = words.partition(" ")
        if name in COMMANDS:
            yield name, re.split(r" && | > |;|\)", rest)[0]


@cache
def flags(name: str) -> frozenset[str]:
    """Flags of a command and its actions."""
    return frozenset(_flags(command_parser(name)))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for further in action.choices.values():
                yield from _flags(further)


@BY_PAGE
def test_commands_take_the_flags_that_they_are_shown_with(page: Path) -> None:
    for name, rest in command_lines(page):
        unknown = set(OPTION.findall(rest)) - flags(name)
        assert not unknown, f"{name} {rest}"


def test_the_page_of_commands_is_up_to_date() -> None:
    page = commands_page.PAGE.read_text(encoding="utf-8")
    assert page == commands_page.render(), "run: python -m tests.docs.commands_page"
    for name in COMMANDS:
        assert f"\n### {name}\n" in page
        assert {f"`{flag}" for flag in flags(name) - {"-h", "--help", "--json"} if f"`{flag}" not in page} == set()
    assert all(flag in page for flag in set(_flags(app_parser())) - {"-h", "--help"})


def test_the_page_of_commands_has_the_fields_of_the_contracts() -> None:
    fields = tomli.loads(commands_page.FIELDS.read_text(encoding="utf-8"))
    assert set(fields) | set(commands_page.SAME) == set(COMMANDS)
    for contract, keys in json.loads(CONTRACTS.read_text(encoding="utf-8"))["fields of --json"].items():
        # "queue add" is an action of a command, and "init --list" another result.
        if contract in fields and isinstance(keys, dict):
            named = set(", ".join(fields[contract]).split(", "))
            assert set(keys.get("each", keys)) - named == set(), contract


@BY_PAGE
def test_options_of_a_configuration_exist(page: Path) -> None:
    sections = {name: set(getattr(field.annotation, "model_fields", ())) for name, field in Config.model_fields.items()}
    for section, option in re.findall(r"`([a-z]+)\.([a-z0-9_]+)(?: = [^`]*)?`", page.read_text(encoding="utf-8")):
        # Keys of other tools and names of files look alike.
        if section in sections and page.name != "import.md" and option not in {"jsonl", "json", "csv", "parquet"}:
            assert option in sections[section], f"{section}.{option}"


@cases("container", DRAWN)
def test_the_architecture_draws_every_package_in_the_order_of_the_layers(container: str) -> None:
    contracts = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == [container])
    layer_of = {name: number for number, layer in enumerate(layers) for name in layer.split(" | ")}
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    drawing = text.partition(f"```\n{DRAWN[container]}\n")[2].partition("\n```")[0]
    # The explanation of a line stands in a column of its own.
    heads = [re.split(r" {2,}", line.strip())[0] for line in drawing.splitlines()]
    names = [name.rstrip("/") for head in heads for name in head.split()]
    folder = ROOT / container.replace(".", "/")
    assert {path.parent.name for path in folder.glob("*/__init__.py")} - set(names) == set()
    assert [layer_of[name] for name in names] == sorted(layer_of[name] for name in names)


@BY_PAGE
def test_files_of_the_tree_exist(page: Path) -> None:
    named = re.findall(r"`((?:core|tui|bench|tests|themes)/[\w./-]+\.(?:py|toml|jsonl?))`", page.read_text("utf-8"))
    # Names in capitals stand for many files.
    assert [path for path in named if not re.search(r"[A-Z]{3}", path) and not (ROOT / path).exists()] == []
