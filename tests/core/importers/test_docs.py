"""The page on importing names every key of every tool."""

from __future__ import annotations

from pathlib import Path

from core.importers.convert import TOOLS
from core.importers.rules import Missing
from core.importers.tool import Tool
from tests.cases import cases

PAGE = Path(__file__).parents[3] / "docs" / "import.md"


@cases("tool", TOOLS.values(), ids=lambda tool: tool.kind)
def test_the_page_has_every_key_and_what_happens_instead(tool: Tool) -> None:
    text = PAGE.read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## {tool.title}\n")
    section = section.partition("\n## ")[0]
    offered, _, others = section.partition("\nNot offered")
    for key, rule in tool.table.items():
        if isinstance(rule, Missing):
            line = next((line for line in others.splitlines() if f"`{key}`" in line), "")
            assert rule.instead in line, key
        else:
            assert f"| `{key}` |" in offered, key
