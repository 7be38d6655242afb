"""Filters for the rows with one problem: listed under their own numbers, with every move inside them; real analyses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.data_panes import (
    analyzed,
    configuration,
    data_pane,
    make_tokenizer,
    messy,
    row,
    shows,
    tokens_of,
    write_lines,
)
from tests.tui.harness import press, screen_lines, wait_for
from tui.panes.data.pane import DataPane


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("model"))


def code_of(pane: DataPane) -> str:
    """The problem code of the filter; empty for all rows."""
    return pane.session.filter.code if pane.session.filter is not None else ""


def numbers(pane: DataPane, lines: list[str]) -> list[int]:
    """The numbers of the listed rows."""
    inner = [line.strip("│").lstrip(" ▸✗!").split(" ")[0] for line in lines[2 : 2 + pane.body.rows.size.height]]
    return [int(text) for text in inner if text.isdecimal()]


async def test_a_filter_lists_its_rows_alone_and_the_longest_row_leaves_it(tmp_path: Path, model: Path) -> None:
    path = messy(tmp_path / "rows.jsonl")
    async with data_pane(
        path, configuration(tmp_path, model__base=str(model), train__max_length=128), size=(100, 30)
    ) as (pilot, pane):
        analysis = await analyzed(pilot, pane)
        assert analysis.dropped == {"not_json": 3, "overlong": 2}
        await pilot.press("s")
        await wait_for(
            pilot, lambda: shows(pilot, "60 rows read · 55 used · 5 dropped: 3 no JSON, 2 longer than train.max_length")
        )
        await press(pilot, "j", "enter")
        assert screen_lines(pilot.app)[0].startswith(
            "╭─ 1 Data · rows.jsonl · longer than train.max_length · 2 of 60 rows ─"
        )
        assert numbers(pane, screen_lines(pilot.app)) == [10, 50]
        assert shows(pilot, "Raise train.max_length")
        assert pane.body.rows.has_focus
        assert pane.index == 9
        await pilot.press("j")
        assert pane.index == 49
        await pilot.pause()
        assert "question 50" in pane.body.conversation.turns[0].text
        await pilot.press("g")
        assert pane.index == 9
        await press(pilot, "escape")
        assert code_of(pane) == ""
        assert pane.body.rows.count == 60
        assert pane.index == 9, "the cursor stays on its row"
        # The reason of the mark stays in the title of the row, and an error among its turns is not said twice.
        assert any("─ row 10 · ✗ longer than train.max_length ─" in line for line in screen_lines(pilot.app))
        await press(pilot, "colon", "5", "enter", until=lambda: pane.index == 4)
        assert any("─ row 5 ─" in line for line in screen_lines(pilot.app))
        await press(pilot, "colon", *"10", "enter", until=lambda: pane.index == 9)
        assert shows(pilot, "55 used · 5 dropped")
        await pilot.press("f", "l")
        assert code_of(pane) == ""
        assert pane.index == 49
        await pilot.pause()
        assert shows(pilot, "It is not “no JSON”; all rows are shown again.")
        await pilot.press("g", "f", "f", "l")
        assert code_of(pane) == "overlong", "the longest row is"
        assert pane.index == 49
        await pilot.press("escape")
        await pilot.press("f", "f", "m", "j")
        assert code_of(pane) == "overlong"
        await wait_for(pilot, lambda: "question 50" in tokens_of(pane))
        assert pane.body.mask_view.parts[0].cut == 128
        await wait_for(pilot, lambda: pane.body.cells(1, 1)[0].cells[0].isdecimal())
        assert [cell.number for cell in pane.body.cells(0, 9)] == [10, 50]
        assert {cell.mark for cell in pane.body.cells(0, 9)} == {"drop"}


async def test_a_key_goes_through_the_filters_and_moves_stay_inside_them(tmp_path: Path) -> None:
    path = messy(tmp_path / "rows.jsonl")
    async with data_pane(path, size=(100, 30)) as (pilot, pane):
        if pane.view is not None and pane.view.analysis is None:
            await pilot.press("f")
            assert code_of(pane) == "", "nothing to filter by before the rows have been looked at"
        await analyzed(pilot, pane)
        codes = []
        for key in ("f", "f", "f", "F", "F", "F"):
            await pilot.press(key)
            codes.append(code_of(pane))
        assert codes == ["not_json", "email", "", "email", "not_json", ""]
        await pilot.press("g")
        await press(pilot, "f")
        assert numbers(pane, screen_lines(pilot.app)) == [5, 25, 45]
        visited = []
        for key in (*["exclamation_mark"] * 3, "left_square_bracket", "G", "k", "home"):
            await pilot.press(key)
            visited.append(pane.index + 1)
        assert visited == [25, 45, 5, 45, 45, 25, 5]
        await press(pilot, "slash", *"broken 45", "enter", until=lambda: pane.index == 44)
        await pilot.press("slash", "ctrl+u", *"question", "enter")
        await wait_for(pilot, lambda: shows(pilot, "None of these rows has “question” in it."))
        assert pane.index == 44
        assert [turn.role for turn in pane.body.conversation.turns] == ["problem", "file"]
        assert shows(pilot, "✗ The row is not JSON")
        await press(pilot, "colon", *"25", "enter", until=lambda: pane.index == 24)
        await pilot.press("colon", *"26", "enter")
        await wait_for(pilot, lambda: shows(pilot, "Row 26 is not “no JSON”; the nearest that is, is row 45."))
        assert pane.index == 44
        await pilot.press("escape")
        assert code_of(pane) == "not_json", "the mark of the search goes first"
        await pilot.press("escape")
        assert code_of(pane) == ""
        assert pane.index == 44
        for key in ("s", "s", "slash"):
            pilot.app.simulate_key(key)
        await wait_for(pilot, lambda: pane.ask_bar.is_asking)
        await press(pilot, *"question 7", "enter", until=lambda: pane.index == 6)
        assert pane.body.rows.has_focus
        await pilot.press("enter")
        assert pane.body.conversation.has_focus


async def test_a_filter_goes_on_after_the_rows_are_looked_at_anew(tmp_path: Path, model: Path) -> None:
    path = messy(tmp_path / "rows.jsonl")
    document = configuration(tmp_path, model__base=str(model), train__max_length=128)
    async with data_pane(path, document, size=(100, 30)) as (pilot, pane):
        await analyzed(pilot, pane)
        await pilot.press("f", "f")
        document.set("train.max_length", 64)
        pane.configure(document)
        await wait_for(pilot, lambda: pane.view is not None and pane.view.analysis is None)
        await analyzed(pilot, pane)
        assert code_of(pane) == "overlong"
        document.set("train.max_length", 4096)
        pane.configure(document)
        await wait_for(pilot, lambda: code_of(pane) == "")
        await wait_for(pilot, lambda: shows(pilot, "No row is “longer than train.max_length” any more"))
        assert pane.body.rows.count == 60


async def test_keys_that_lead_to_rows_leave_the_report(tmp_path: Path, model: Path) -> None:
    async with data_pane(
        messy(tmp_path / "rows.jsonl"), configuration(tmp_path, model__base=str(model)), size=(100, 24)
    ) as (pilot, pane):
        await analyzed(pilot, pane)
        await press(pilot, "f", "G")
        assert shows(pilot, "▸  45")
        await press(pilot, "escape")
        assert shows(pilot, "▸  45")
        assert shows(pilot, "question 44 of many"), "leaving a filter keeps the cursor in view"
        await pilot.press("g")
        problem = ["exclamation_mark"]
        for keys, index in ((problem, 4), (["l"], 49), (["colon", "3", "enter"], 2), (["f"], 4), (problem, 24)):
            await pilot.press("s")
            assert pane.shows_report
            await press(pilot, *keys, until=lambda: not pane.shows_report)
            await wait_for(pilot, lambda: pane.index == index)  # noqa: B023
            await wait_for(pilot, lambda: pane.body.rows.has_focus)


async def test_clean_rows_have_nothing_to_filter_by(tmp_path: Path) -> None:
    lines = [row("What is it?", "A test, and a short one."), row("How is it?", "Quite well, thank you kindly.")]
    async with data_pane(write_lines(tmp_path / "rows.jsonl", lines), size=(100, 30)) as (pilot, pane):
        await analyzed(pilot, pane)
        await press(pilot, "f")
        assert shows(pilot, "No problems, so there is nothing to filter by.")
        await press(pilot, "exclamation_mark")
        assert shows(pilot, "No problems.")


async def test_rows_left_out_by_the_configuration_are_marked_and_listed_as_not_used(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [row(f"question {number}", "yes") for number in range(1, 13)])
    document = configuration(tmp_path, data__train="rows.jsonl", data__exclude=["rows.jsonl:3", "rows.jsonl:8-9"])
    async with data_pane(path, document, size=(100, 30)) as (pilot, pane):
        analysis = await analyzed(pilot, pane)
        assert (analysis.used, analysis.dropped) == (9, {"excluded": 3})
        await wait_for(pilot, lambda: shows(pilot, "9 used · 3 dropped: 3 left out by data.exclude"))
        await press(pilot, "f", until=lambda: code_of(pane) == "excluded")
        assert numbers(pane, screen_lines(pilot.app)) == [3, 8, 9]
        assert any("─ row 3 · ✗ left out by data.exclude ─" in line for line in screen_lines(pilot.app))
