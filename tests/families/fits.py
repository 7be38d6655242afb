"""Models that fit on cards: the table of plans in ``fits.yaml``, and the table of ``README.md`` by series of models.

``python -m tests.families.fits`` writes the latter anew, with the results of the tests of each family; ``make models``
does so as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from tests.families.page import read_cells, write_between

README = Path(__file__).parents[2] / "README.md"
#: Lines around the table.
BEGIN, END = "<!-- models: begin; make models writes this -->", "<!-- models: end -->"
#: Cards, in GiB.
CARDS = (12, 16, 24)

#: Tests of a family, by columns of ``docs/models.md``.
_TRIED = ("16 bit", "4 bit", "trains", "resume", "chat")
_SIGNS = {"yes": "", "inputs": "¹", "experts": "²"}


class Series(NamedTuple):
    """Models of a family in a row of their own.

    Args:
        name: Their name.
        family: Their row in ``docs/models.md``.
        models: Label of each, and its name in the table.
        also: Models of equal shapes.
    """

    name: str
    family: str
    models: dict[str, str]
    also: str = ""


_FITS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SERIES = [Series(**series) for series in _FITS["series"]]


def rows() -> dict[str, list[str]]:
    """The cells of the table by model: the GiB, and the cards that it fits."""
    return {name: cells for name, *cells in (line.split() for line in _FITS["plans"].splitlines()[1:])}


def readme_table() -> str:
    """The table of the README in Markdown."""
    found, tried = rows(), read_cells()
    lines = [["models", "tried", *(f"{card} GB" for card in CARDS)], ["---"] * (2 + len(CARDS))]
    for series in SERIES:
        cells = [_fitting(series, found, 1 + place) for place in range(len(CARDS))]
        models = ", ".join(filter(None, (*series.models, series.also)))
        lines.append([f"{series.name} {models}".strip(), _tried(tried[series.family]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fitting(series: Series, found: dict[str, list[str]], place: int) -> str:
    planned = {short: found[name][place] for short, name in series.models.items()}
    fitting = {short: _SIGNS[cell] for short, cell in planned.items() if cell != "no"}
    if len(fitting) == len(series.models) and len(set(fitting.values())) == 1:
        return "yes" + next(iter(fitting.values()))
    return ", ".join(short + sign for short, sign in fitting.items()) or "no"


def _tried(cells: dict[str, str]) -> str:
    missing = [column for column in _TRIED if not cells[column].startswith("yes")]
    if len(missing) == len(_TRIED):
        return "no"
    if missing:
        return f"all but {', '.join(missing)}"
    return "yes, experts in 16 bit" if "experts" in cells["4 bit"] else "yes"


def main() -> None:
    """Write the table into the README."""
    write_between(README, BEGIN, END, readme_table())


if __name__ == "__main__":
    main()
