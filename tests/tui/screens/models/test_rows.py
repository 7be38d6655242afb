"""Lines of the list of base models, at any width, and whatever a model is."""

from __future__ import annotations

from pathlib import Path

from rich.cells import cell_len

from core.errors import UserError
from core.memory.fit import Fit
from core.models.inspection import STARTER_FACTS, ModelFacts
from core.models.places import FoundModel, Source
from tests.cases import cases
from tests.tui.harness import FORBIDDEN, HOSTILE
from tui.screens.models import ModelRow, hub_line, model_details, model_line, tell_fit, verdict

GIGABYTE = 1_000_000_000


def row(
    name: str = "org/some-model",
    source: Source = "hub cache",
    *,
    place: str = "HF cache",
    fit: Fit | None = None,
    facts: ModelFacts | None = None,
) -> ModelRow:
    return ModelRow(FoundModel(name, name, Path("/somewhere/snapshots/abc"), source, place), facts, fit)


@cases(
    ("fit", "told"),
    [
        (Fit(2_600_000_000, 23_400_000_000, True), "fits, 2.6 of 23 GB"),
        (Fit(812_000_000, 23_400_000_000, True), "fits, 812 MB of 23 GB"),
        (Fit(44_300_000_000, 23_400_000_000, False), "✗ needs 44 of 23 GB"),
        (Fit(2_600_000_000, 900_000_000, False), "✗ needs 2.6 GB of 900 MB"),
        (Fit(2_600_000_000), "needs 2.6 GB"),
        (Fit(reason="Because."), "memory unknown"),
    ],
)
def test_memory_is_told_against_what_is_free(fit: Fit, told: str) -> None:
    assert tell_fit(fit)[0] == told


def test_the_verdict_names_what_keeps_a_model_from_being_trained_first() -> None:
    fits = Fit(GIGABYTE, 2 * GIGABYTE, True)
    assert verdict(row())[0] == "reading …"
    assert verdict(row(facts=STARTER_FACTS, fit=fits))[0] == "fits, 1.0 of 2.0 GB"
    flawed = STARTER_FACTS.flawed(UserError("It is damaged.", "Copy it again."))
    assert verdict(row(facts=flawed, fit=fits))[0] == "✗ cannot be used"
    assert "✗ It is damaged. Copy it again." in model_details(row(facts=flawed, fit=fits), 80).plain
    part = ModelFacts(is_incomplete=True, flaw="/somewhere/snapshots/abc lacks a.safetensors.", hint="Copy it.")
    assert verdict(row(facts=part))[0] == "! incomplete"
    details = model_details(row(facts=part), 80).plain
    assert details.endswith("! org/some-model lacks a.safetensors. Enter fetches it from the hub.")
    assert row(facts=part).is_fetched_anew
    assert not row(facts=part, source="directory").is_fetched_anew


@cases("width", [40, 54, 63, 64, 74, 99, 100, 120, 200])
@cases("name", ["smollm2-135m-instruct", "owner/" + "n" * 150, "模型" * 40, HOSTILE])
def test_a_line_has_the_width_and_nothing_leaks(width: int, name: str) -> None:
    facts = ModelFacts(7_600_000_000, HOSTILE, 99, True, HOSTILE, flaw=HOSTILE, hint=HOSTILE)
    for known in (None, STARTER_FACTS, facts):
        listed = row(name, "directory", place=name, facts=known, fit=Fit(GIGABYTE, 2 * GIGABYTE, True))
        line = model_line(listed, width, is_present=True).plain
        assert cell_len(line) <= max(width, 41)
        for text in (line, model_details(listed, width).plain, hub_line(name, width).plain):
            assert not FORBIDDEN & set(text)
        assert cell_len(model_details(listed, width).plain.split("\n")[0]) <= width


def test_wide_lines_tell_more() -> None:
    listed = row(facts=STARTER_FACTS, fit=Fit(GIGABYTE, 2 * GIGABYTE, True))
    narrow, usual, wide = (model_line(listed, width, is_present=False).plain for width in (60, 74, 120))
    assert "chat" not in narrow
    assert "chat" in usual
    assert "BF16" not in usual
    assert "BF16" in wide
    for line in (narrow, usual, wide):
        assert "135 M" in line
        assert "fits, 1.0 of 2.0 GB" in line


def test_an_id_that_is_too_long_shows_its_second_part() -> None:
    listed = row("HuggingFaceTB/SmolLM2-360M-Instruct", facts=STARTER_FACTS)
    assert model_line(listed, 74, is_present=False).plain.strip().startswith("SmolLM2-360M-Instruct")
    assert "HuggingFaceTB/SmolLM2-360M-Instruct" in model_line(listed, 120, is_present=False).plain


def test_the_starter_says_where_it_comes_from() -> None:
    starter = ModelRow(FoundModel("s", "s", Path("/x"), "starter", "first run"), STARTER_FACTS, Fit(GIGABYTE))
    assert "the first run with it downloads it" in model_details(starter, 200).plain
