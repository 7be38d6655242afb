from __future__ import annotations

import json
from pathlib import Path

from tests.families.page import BEGIN, COLUMNS, END, PAGE, read_cells, read_record, write
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


def test_what_tests_write_down_is_what_the_page_says(tmp_path: Path) -> None:
    page, record = tmp_path / "models.md", tmp_path / "record.jsonl"
    page.write_text(f"above\n\n{BEGIN}\nold\n{END}\n\nbelow\n", encoding="utf-8")
    told = [("llama", "trains", "yes"), ("llama", "packing", "refused: 1 | 2"), ("llama", "packing", "yes")]
    lines = [json.dumps({"family": family, "column": column, "cell": cell}) for family, column, cell in told]
    record.write_text("\n".join(lines), encoding="utf-8")
    write(read_record(record), page)
    found = read_cells(page)
    assert found["llama"] == {**dict.fromkeys(COLUMNS, "no"), "trains": "yes", "packing": "yes"}
    assert found["qwen3"] == dict.fromkeys(COLUMNS, "no")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("above\n\n")
    assert text.endswith("\n\nbelow\n")
    assert "old" not in text
    write(read_record(record), page)
    assert page.read_text(encoding="utf-8") == text
