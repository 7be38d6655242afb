"""The page on importing names every key that is carried over."""

from __future__ import annotations

from pathlib import Path

from core.importers.convert import TOOLS
from core.importers.rules import Missing
from core.importers.tool import Tool
from tests.cases import cases

PAGE = Path(__file__).parents[3] / "docs" / "import.md"


@cases("tool", TOOLS.values(), ids=lambda tool: tool.kind)
def test_the_page_has_every_carried_key(tool: Tool) -> None:
    text = PAGE.read_text(encoding="utf-8")
    carried = {key for key, rule in tool.table.items() if not isinstance(rule, Missing)}
    assert {key for key in carried if f"`{key}`" not in text and f"`{key}: " not in text} == set()
