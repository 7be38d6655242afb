from __future__ import annotations

from tests.families.page import COLUMNS, PAGE, read_cells
from tests.families.tiny import FAMILIES


def test_the_page_has_a_row_for_each_family_and_a_cell_for_each_thing_tried() -> None:
    cells = read_cells()
    assert list(cells) == list(FAMILIES)
    for name, found in cells.items():
        assert list(found) == list(COLUMNS), name
    text = PAGE.read_text(encoding="utf-8")
    for name, family in FAMILIES.items():
        assert f"| `{name}` | {family.models} |" in text
    for name, what in COLUMNS.items():
        assert f"- **{name}**: {what}\n" in text
