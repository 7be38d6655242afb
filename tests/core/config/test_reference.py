from __future__ import annotations

import re
from pathlib import Path

from core.config.reference import render_reference
from core.config.rules.check import RULES
from core.config.schema import options

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    command = "localtune-tui schema --markdown --out docs/reference/configuration.md"
    assert PAGE.read_text(encoding="utf-8") == render_reference(), f"run: {command}"


def test_every_option_is_on_it_once_and_linked() -> None:
    page = render_reference()
    for option in options():
        assert page.count(f"\n### {option.name}\n") == 1
        assert f"[`{option.name}`](#{option.name.replace('.', '')})" in page
        assert " ".join(option.manual.about.split()) in " ".join(page.split())
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 120


def test_seldom_needed_options_are_at_the_end() -> None:
    short, _, seldom = render_reference().partition("\n## Seldom needed\n")
    for option in options():
        assert (f"\n### {option.name}\n" in seldom) is (option.audience == "file")
        assert (f"[`{option.name}`](#" in short) is (option.audience != "file")


def test_tables_have_as_many_cells_in_every_line() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", render_reference(), flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_every_rule_is_listed() -> None:
    page = render_reference()
    for rule in RULES:
        assert f"| {rule.says} | {rule.level} |" in page
