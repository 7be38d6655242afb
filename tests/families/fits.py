"""Models that fit on cards: the table of plans, and the table of ``README.md`` by series of models.

``python -m tests.families.fits`` writes the latter anew, with the results of the tests of each family; ``make models``
does so as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.families.page import read_cells

README = Path(__file__).parents[2] / "README.md"
#: Lines around the table.
BEGIN, END = "<!-- models: begin; make models writes this -->", "<!-- models: end -->"
#: Cards, in GiB.
CARDS = (12, 16, 24)

#: QLoRA with adapters of rank 16 on all linear layers, rows of 2,048 tokens one by one, 16 of them in a step, as in the
#: presets. The GiB are needed with everything on the card. On each card the run fits as it is (``yes``), with inputs of
#: recomputed layers in the machine's memory (``inputs``), with the experts there (``experts``), or not (``no``).
TABLE = """
model                      GiB    12 GB     16 GB     24 GB
Qwen3.5-4B                 5.2    yes       yes       yes
Qwen3.5-9B                10.0    yes       yes       yes
Qwen3.5-27B               21.6    no        no        yes
Qwen3.5-35B-A3B           21.5    experts   experts   yes
Qwen3-30B-A3B             18.0    experts   experts   yes
Qwen3-4B                   4.1    yes       yes       yes
Qwen3-8B                   7.8    yes       yes       yes
Qwen3-14B                 12.1    inputs    yes       yes
Qwen3-32B                 22.3    no        no        yes
Gemma-4-E2B                7.8    yes       yes       yes
Gemma-4-E4B               10.7    yes       yes       yes
Gemma-4-12B                9.9    yes       yes       yes
Gemma-4-31B               21.4    no        no        yes
Gemma-4-26B-A4B           15.9    experts   experts   yes
Gemma-3-4B                 4.4    yes       yes       yes
Gemma-3-12B                9.8    yes       yes       yes
Gemma-3-27B               19.2    no        no        yes
gpt-oss-20b               16.1    experts   experts   yes
Ministral-3-3B             3.8    yes       yes       yes
Ministral-3-8B             7.7    yes       yes       yes
Ministral-3-14B           11.1    yes       yes       yes
Mistral-Small-3.2-24B     16.7    no        no        yes
GLM-4.7-Flash             17.9    experts   experts   yes
Llama-3.1-8B               7.4    yes       yes       yes
Llama-3.2-1B               2.2    yes       yes       yes
Llama-3.2-3B               3.7    yes       yes       yes
Phi-4                     11.3    yes       yes       yes
Phi-4-mini                 4.3    yes       yes       yes
SmolLM3-3B                 3.4    yes       yes       yes
LFM2-1.2B                  2.0    yes       yes       yes
LFM2-2.6B                  2.9    yes       yes       yes
LFM2-8B-A1B                5.8    yes       yes       yes
Olmo-3-7B                  6.6    yes       yes       yes
Olmo-3-32B                21.3    no        no        yes
Granite-3.3-2B             2.9    yes       yes       yes
Granite-3.3-8B             6.4    yes       yes       yes
Granite-4.0-Micro          3.6    yes       yes       yes
Granite-4.0-H-Tiny         5.5    yes       yes       yes
Granite-4.0-H-Small       20.9    experts   experts   yes
"""

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


SERIES = (
    Series("Qwen3", "qwen3", {size: f"Qwen3-{size}" for size in ("4B", "8B", "14B", "32B")}),
    Series("Qwen3", "qwen3_moe", {"30B-A3B": "Qwen3-30B-A3B"}),
    Series("Qwen3.5", "qwen3_5", {size: f"Qwen3.5-{size}" for size in ("4B", "9B", "27B")}, "Qwen3.6 27B"),
    Series("Qwen3.5, Qwen3.6", "qwen3_5_moe", {"35B-A3B": "Qwen3.5-35B-A3B"}),
    Series("Gemma 4", "gemma4", {size: f"Gemma-4-{size}" for size in ("E2B", "E4B", "12B", "31B")}),
    Series("Gemma 4", "gemma4_moe", {"26B-A4B": "Gemma-4-26B-A4B"}),
    Series("Gemma 3", "gemma3", {size: f"Gemma-3-{size}" for size in ("4B", "12B", "27B")}),
    Series("gpt-oss", "gpt_oss", {"20b": "gpt-oss-20b"}),
    Series("Ministral 3", "ministral3", {size: f"Ministral-3-{size}" for size in ("3B", "8B", "14B")}),
    Series("Mistral Small 3", "mistral3", {"24B": "Mistral-Small-3.2-24B"}),
    Series("GLM-4.7", "glm4_moe_lite", {"Flash": "GLM-4.7-Flash"}),
    Series("Llama 3", "llama", {"1B": "Llama-3.2-1B", "3B": "Llama-3.2-3B", "8B": "Llama-3.1-8B"}),
    Series("Phi 4", "phi3", {"mini": "Phi-4-mini", "14B": "Phi-4"}),
    Series("SmolLM3", "smollm3", {"3B": "SmolLM3-3B"}),
    Series("LFM2", "lfm2", {size: f"LFM2-{size}" for size in ("1.2B", "2.6B")}),
    Series("LFM2", "lfm2_moe", {"8B-A1B": "LFM2-8B-A1B"}),
    Series("OLMo 3", "olmo3", {size: f"Olmo-3-{size}" for size in ("7B", "32B")}),
    Series("Granite 3.3", "granite", {size: f"Granite-3.3-{size}" for size in ("2B", "8B")}),
    Series("Granite 4", "granitemoehybrid_dense", {"Micro": "Granite-4.0-Micro"}),
    Series("Granite 4", "granitemoehybrid", {size: f"Granite-4.0-{size}" for size in ("H-Tiny", "H-Small")}),
)


def rows() -> dict[str, list[str]]:
    """The cells of the table by model: the GiB, and the cards that it fits."""
    return {name: cells for name, *cells in (line.split() for line in TABLE.strip().splitlines()[1:])}


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
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README} has no place for the table.")
    README.write_text(f"{before}{BEGIN}\n\n{readme_table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
