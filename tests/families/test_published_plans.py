"""Plans of the models that people tune, by their published configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config.schema import Config
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import load_architecture
from core.presets.choose import fits_card
from tests.families.fits import CARDS, README, SERIES, readme_table, rows
from tests.families.published_models import DIRECTORY, PUBLISHED, published_config
from tests.families.tiny import FAMILIES
from tests.short_list import long_but

GIB = 1 << 30
#: Least and most share of a published figure that the plan may take.
BOUNDS = {"ran": (0.8, 1.2), "more": (0.6, 1.2), "claimed": (0.7, 1.5)}
FIGURES = yaml.safe_load(Path(__file__).with_name("figures.yaml").read_text(encoding="utf-8"))
#: Models of the same shapes.
SAME = {"Qwen3.6-27B": "Qwen3.5-27B", "Qwen3.6-35B-A3B": "Qwen3.5-35B-A3B"}


#: Models of which no test is long.
FEW = ("Llama-3.1-8B", "Qwen3-8B", "gpt-oss-20b")


def test_every_configuration_has_its_numbers_and_its_source() -> None:
    """The table of numbers and the list of sources name the same models, and the program knows their shapes."""
    sources = (DIRECTORY / "SOURCES.md").read_text(encoding="utf-8")
    first = [line.split("|")[1].strip() for line in sources.splitlines() if line.startswith("| ")]
    named = set()
    for cell in first:
        head, *more = (part.strip() for part in cell.split(","))
        named |= {head, *(f"{head[: head.rindex('-')]}-{size}" for size in more)}
    assert set(PUBLISHED) <= named
    assert all(published_config(name) for name in PUBLISHED)


def test_every_model_is_in_the_table() -> None:
    assert {name for name in PUBLISHED if name not in SAME} == set(rows())


def test_the_readme_has_what_fits_and_what_was_tried() -> None:
    """``make models`` writes it."""
    assert f"\n\n{readme_table()}\n\n" in README.read_text(encoding="utf-8")
    told = [name for series in SERIES for name in series.models.values()]
    assert sorted(told) == sorted(rows())
    # The table of docs/models.md has the same families.
    assert {series.family for series in SERIES} == set(FAMILIES)
    assert all(PUBLISHED[name] == PUBLISHED[other] for name, other in SAME.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", long_but(FEW, rows()))
def test_all_parameters_are_planned_and_the_table_says_what_fits(name: str, tmp_path: Path) -> None:
    """The parameters are those of the model, or of its text part where it has towers, but for small buffers: a scalar a
    layer of Gemma 4, and what LFM2 and GLM add to the scores of experts; the table says what fits.
    """
    gib, *fits = rows()[name]
    model = _model(name, tmp_path)
    published = PUBLISHED[name]
    assert model.parameters == pytest.approx(published.text or published.built, abs=5000)
    assert _plan(model).needed_bytes / GIB == pytest.approx(float(gib), rel=0.02, abs=0.06)
    assert [_fits(model, card) for card in CARDS] == fits


@pytest.mark.slow
@pytest.mark.parametrize("figure", long_but([figure for figure in FIGURES if figure["model"] == FEW[0]], FIGURES))
def test_the_plan_is_near_what_others_have_published(figure: dict[str, Any], tmp_path: Path) -> None:
    least, most = BOUNDS[figure["bounds"]]
    planned = _plan(_model(figure["model"], tmp_path), **figure.get("settings", {})).needed_bytes / GIB
    assert least <= planned / figure["gib"] <= most


def _model(name: str, directory: Path) -> Architecture:
    (directory / "config.json").write_text(json.dumps(published_config(name)), encoding="utf-8")
    return load_architecture(directory)


def _plan(
    model: Architecture,
    *,
    method: str = "qlora",
    micro_batch: int = 1,
    length: int = 2048,
    rank: int = 16,
    optimizer: str = "paged_adamw_8bit",
    card: int | None = None,
) -> Plan:
    config = Config.model_validate(
        {
            "data": {"train": "rows.jsonl"},
            "method": {"name": method, "rank": rank},
            "train": {
                "batch_size": 16,
                "micro_batch_size": micro_batch,
                "max_length": length,
                "optimizer": optimizer,
            },
            "memory": {"gradient_checkpointing": "on"},
        }
    )
    limit = None if card is None else int(0.95 * card * GIB)
    budget = micro_batch * length if card is None else None
    return make_plan(model, config, Machine("cuda", limit_bytes=limit), token_budget=budget)


def _fits(model: Architecture, card: int) -> str:
    plan = _plan(model, card=card)
    if not fits_card(plan.needed_bytes, card * GIB):
        return "no"
    if plan.experts_host_bytes:
        return "experts"
    return "inputs" if plan.offload else "yes"
