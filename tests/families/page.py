"""The table of ``docs/models.md``: the tests of each family.

``python -m tests.families.page RECORD`` rewrites it from the tests' findings; ``make models`` does both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.families.tiny import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
#: Lines around the table.
BEGIN, END = "<!-- families: begin; make models writes this -->", "<!-- families: end -->"
#: Tests in the order of the columns, and the text of a passed cell.
COLUMNS = {
    "16 bit": "loaded in 16 bit; its logits are those of the same checkpoint loaded whole by transformers",
    "4 bit": "loaded in 4 bits; the cell names experts or towers that stay in 16 bit",
    "plan": "number and bytes of its weights are as planned, in 16 bit and in 4",
    "trains": "20 steps lower the loss, with adapters on the experts where there are some",
    "fast paths": "fused are adapters, norms, rotation, feed-forward networks and attention; gradients are those of "
    "the plain model to 1e-4 in fp32, packed and shared too",
    "packing": "rows are trained one behind another in a sequence, and equal beginnings of rows are computed once",
    "resume": "killed in a step and continued, a run has the same adapter, bit for bit",
    "chat": "base and tuned model answer, the tuned one with the learned text",
    "mask": "the learned tokens are the tokens that the model has to write, by templates of the structure of its "
    "models' own",
}
_LIBRARIES = ("transformers", "torch", "peft", "bitsandbytes")


def read_cells() -> dict[str, dict[str, str]]:
    """The cells of the page by family and column."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {family.strip("`"): dict(zip(rows[0][2:], cells, strict=True)) for family, _models, *cells in rows[2:]}


def read_record(record: Path) -> dict[str, dict[str, str]]:
    """The cells that tests have written down, a JSON object a line."""
    cells: dict[str, dict[str, str]] = {name: {} for name in FAMILIES}
    for line in record.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        cells[told["family"]][told["column"]] = told["cell"]
    return cells


def table(cells: Mapping[str, Mapping[str, str]]) -> str:
    """The table in Markdown; an empty cell was not tried, or failed."""
    lines = [["family", "models", *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for name, family in FAMILIES.items():
        lines.append([f"`{name}`", family.models, *(cells.get(name, {}).get(column, "no") for column in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Write a text into a page, in place of the one between two lines."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise SystemExit(f"{page} has no place for the table.")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def write(cells: Mapping[str, Mapping[str, str]]) -> None:
    """Write the table into the page."""
    tried = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    columns = "\n".join(f"- **{name}**: {what}" for name, what in COLUMNS.items())
    write_between(PAGE, BEGIN, END, f"{table(cells)}\n\n{columns}\n\nTried with {tried}.")


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Writes the table of docs/models.md.")
    parser.add_argument("record", type=Path, help="what the tests have written down")
    write(read_record(parser.parse_args().record))


if __name__ == "__main__":
    main()
