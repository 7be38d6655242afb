"""The screen of the column mapping in the real app: choices, preview, saving, clearing; hostile names, many columns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.data.registries.resolve import training_sources
from tests.tui.harness import FORBIDDEN, HOSTILE, pane_of, press, running, screen_lines, screen_text, wait_for, words
from tests.tui.screens.opening import document, open_screen, shows_rows, value
from tui.app import LocaltuneApp
from tui.screens.columns.column_plan import candidates, preview_columns, read_sample
from tui.screens.columns.columns import ColumnsScreen
from tui.screens.pick import PickScreen

CSV = "frage;antwort;persona\nWie geht das?;So geht das.;freundlich\nUnd das?;Auch so.;knapp\nWas?;;knapp\n"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A configuration with a file whose columns no format has."""
    (tmp_path / "mine.csv").write_text(CSV)
    (tmp_path / "c.toml").write_text('# mine\n[data]\ntrain = "mine.csv" # rows\n')
    return tmp_path


def write(directory: Path, rows: list[dict[str, Any]], more: str = "") -> None:
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "c.toml").write_text(f'[data]\ntrain = "rows.jsonl"\n{more}')


def configured(directory: Path) -> LocaltuneApp:
    return LocaltuneApp(config_path=directory / "c.toml")


async def opened(pilot: Pilot[Any]) -> ColumnsScreen:
    """Open the screen from the data pane, and wait until the rows have been read."""
    screen = await open_screen(pilot, ColumnsScreen, "1", "vertical_line")
    await seen(pilot, screen)
    return screen


@asynccontextmanager
async def columns(
    directory: Path, size: tuple[int, int] = (80, 24), *, notifications: bool = False
) -> AsyncIterator[tuple[Pilot[Any], ColumnsScreen]]:
    """The open screen."""
    app = configured(directory)
    async with running(app, size, notifications=notifications, until=shows_rows) as (_, pilot):
        yield pilot, await opened(pilot)


async def seen(pilot: Pilot[Any], screen: ColumnsScreen) -> None:
    await wait_for(pilot, lambda: screen.preview is not None)
    await pilot.pause()


async def go_to(pilot: Pilot[Any], screen: ColumnsScreen, part: str) -> None:
    await pilot.press("g")
    for _ in range(40):
        await pilot.pause()
        if screen.parts.current == part:
            return
        await pilot.press("j")
    raise AssertionError(f"{part} is not reached:\n{screen_text(pilot.app)}")


async def listed(pilot: Pilot[Any]) -> None:
    """List what can be chosen for the part under the cursor."""
    await open_screen(pilot, PickScreen, "enter")
    await pilot.pause()


def spoken(screen: ColumnsScreen) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in screen.conversation.turns if not turn.role.startswith("──")]


async def test_columns_are_chosen_seen_and_saved(directory: Path) -> None:
    async with columns(directory, notifications=True) as (pilot, screen):
        text = words(pilot)
        assert "✗ mine.csv has rows of no known format" in text
        assert "Choose a column for user" in text
        assert ("frage", "Wie geht das?") in spoken(screen), "the rows are shown as they are"
        await go_to(pilot, screen, "user")
        await pilot.press("right")
        await go_to(pilot, screen, "assistant")
        await pilot.press("left", "left")
        await seen(pilot, screen)
        assert screen.choice.columns == {"user": "frage", "assistant": "antwort"}
        assert "! 2 of the first 3 rows can be used" in words(pilot)
        assert "row 3: The answer is empty." in words(pilot)
        assert spoken(screen)[:2] == [("user", "Wie geht das?"), ("assistant", "So geht das.")]
        assert "by hand" in screen_lines(pilot.app)[0]
        assert all(len(line) == 80 for line in screen_lines(pilot.app))
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.columns") is not None)
        text = document(pilot).dumps()
        assert 'columns = {user = "frage", assistant = "antwort"}' in text
        assert "# rows" in text
        assert "user is frage, assistant is antwort" in words(pilot)
        assert "columns" not in (directory / "c.toml").read_text(), "the file is written when it is saved"
        config = ConfigDocument(text, directory / "c.toml").validate()
        [([source], _)] = training_sources(config.data)
        rows = list(source.rows())
        assert source.detect(rows).example(rows[0]).answer == "So geht das."


async def test_a_guess_is_offered_and_saved_by_one_key(directory: Path) -> None:
    texts = [
        ("Wann wird der Kompost geleert?", "Jeden zweiten Freitag."),
        ("Wie melde ich mich um?", "Mit Ausweis im Rathaus."),
    ]
    write(directory, [{"nr": place, "frage": asked, "antwort": said} for place, (asked, said) in enumerate(texts)])
    async with columns(directory) as (pilot, screen):
        assert screen.choice.columns == {"user": "frage", "assistant": "antwort"}
        assert "a guess" in screen_lines(pilot.app)[0]
        assert "✓ 2 of the first 2 rows can be used" in words(pilot)
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.columns") is not None)
        assert value(pilot, "data.columns") == {"user": "frage", "assistant": "antwort"}


async def test_what_is_recognized_is_filled_in_and_not_written_unless_changed(directory: Path) -> None:
    write(directory, [{"question": "q", "answer": "a", "persona": "p"}] * 2)
    async with columns(directory) as (pilot, screen):
        assert "as recognized" in screen_lines(pilot.app)[0]
        assert screen.choice.columns == {"user": "question", "assistant": "answer"}
        assert screen.choice.named is None
        assert "prompt_completion: Each of the first 2 rows has prompt and completion" in words(pilot)
        assert "✓ 2 of the first 2 rows can be used" in words(pilot)
        await press(pilot, "ctrl+s", until=lambda: not isinstance(pilot.app.screen, ColumnsScreen))
        assert not pilot.app.state.is_dirty  # type: ignore[attr-defined]
        screen = await opened(pilot)
        await go_to(pilot, screen, "system")
        await pilot.press("left")
        await seen(pilot, screen)
        assert ("system", "p") in spoken(screen)
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.columns") is not None)
        assert value(pilot, "data.columns") == {"user": "question", "assistant": "answer", "system": "persona"}


@pytest.mark.long
async def test_clear_takes_the_columns_out_again(directory: Path) -> None:
    write(directory, [{"question": "q", "answer": "a", "b": "c"}], 'columns = {user = "b", assistant = "answer"}\n')
    async with columns(directory) as (pilot, screen):
        assert screen.choice.named == {"user": "b", "assistant": "answer"}
        assert spoken(screen)[0] == ("user", "c")
        await pilot.press("A")
        await seen(pilot, screen)
        assert spoken(screen)[0] == ("user", "q")
        assert value(pilot, "data.columns") is not None, "nothing is changed before it is saved"
        await press(pilot, "escape")
        assert value(pilot, "data.columns") is not None
        screen = await opened(pilot)
        await press(pilot, "A", "ctrl+s", until=lambda: value(pilot, "data.columns") is None)


@pytest.mark.long
async def test_the_format_can_be_overridden(directory: Path) -> None:
    write(directory, [{"instruction": "i", "output": "o", "text": "the text"}])
    async with columns(directory) as (pilot, screen):
        assert screen.parts.current == "format"
        assert "alpaca: The first row has" in words(pilot)
        await listed(pilot)
        assert "● auto" in words(pilot)
        assert "alpaca: The first row has instruction" in words(pilot)
        await press(pilot, *"text", "enter", until=lambda: screen.choice.wanted == "text")
        await seen(pilot, screen)
        assert spoken(screen) == [("text", "the text")]
        assert screen.choice.columns == {"text": "text"}
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.format") == "text")
        assert value(pilot, "data.columns") is None
        screen = await opened(pilot)
        await press(pilot, "D", "ctrl+s", until=lambda: value(pilot, "data.format") is None)


async def test_a_format_that_contradicts_the_columns_is_not_saved(directory: Path) -> None:
    more = 'format = "text"\ncolumns = {user = "a", assistant = "b"}\n'
    write(directory, [{"a": "q", "b": "r"}], more)
    async with columns(directory, (100, 30)) as (pilot, _):
        assert "data.format says text" in words(pilot)
        await press(pilot, "ctrl+s", until="✗ Not saved.")
        assert isinstance(pilot.app.screen, ColumnsScreen)


async def test_a_part_that_does_not_exist_is_reported_and_left_out(directory: Path) -> None:
    write(directory, [{"a": "q", "b": "r"}], 'columns = {user = "a", assistant = "b", usr = "c"}\n')
    async with columns(directory, (100, 30)) as (pilot, _):
        assert "! data.columns has no part usr; what you save is without it." in words(pilot)
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.columns") == {"user": "a", "assistant": "b"})


@pytest.mark.long
async def test_another_file_than_the_configuration_names(directory: Path) -> None:
    (directory / "other.jsonl").write_text('{"a": "q", "b": "r"}\n')
    async with running(configured(directory), (120, 30), until=shows_rows) as (app, pilot):
        pane_of(app, "data").show(directory / "other.jsonl")
        await wait_for(pilot, lambda: pane_of(app, "data").view.path.name == "other.jsonl")
        screen = await opened(pilot)
        await go_to(pilot, screen, "user")
        await pilot.press("right", "j", "left")
        await seen(pilot, screen)
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.train") == str(directory / "other.jsonl"))
        assert value(pilot, "data.columns") == {"user": "a", "assistant": "b"}
        assert (document(pilot).path, app.state.former) == (None, "c.toml")
        (told,) = [note.message for note in app._notifications if "new configuration" in note.message]
        assert told.startswith("Columns by hand: user is a, assistant is b. other.jsonl is used for training, in a new")
        assert "r starts. u in Data brings c.toml back." in told
        await press(pilot, "u", until=lambda: value(pilot, "data.train") == "mine.csv")
        assert document(pilot).dumps() == (directory / "c.toml").read_text()


async def test_without_data_and_for_entries_of_a_registry_it_is_refused(directory: Path) -> None:
    (directory / "c.toml").write_text("")
    (directory / "dataset_info.json").write_text(json.dumps({"x": {"file_name": "a.json"}}))
    (directory / "a.json").write_text(json.dumps([{"instruction": "i", "output": "o"}]))
    async with running(configured(directory), (100, 30), notifications=True) as (app, pilot):
        await pilot.press("1", "vertical_line")
        await wait_for(pilot, lambda: any("Open a data file first" in note.message for note in app._notifications))
        pane_of(app, "data").show(directory / "dataset_info.json#x")
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None)
        await pilot.press("vertical_line")
        await wait_for(pilot, lambda: any("an entry of a registry" in note.message for note in app._notifications))
        assert not isinstance(app.screen, ColumnsScreen)


async def test_hostile_names_and_values(directory: Path) -> None:
    names = [HOSTILE, "[red]", " spaced ", "x" * 5000, "\n", "𝔘 wide 文字"]
    write(directory, [{**dict.fromkeys(names, HOSTILE), "half \ud800": "y", "": "z", "long": "w" * 200_000}])
    async with columns(directory, (60, 20)) as (pilot, screen):
        assert screen.sample is not None
        assert [one.value for one in screen.sample.columns] == [*names, "long"]
        assert "2 columns cannot be chosen" in words(pilot)
        for part, name in (("user", HOSTILE), ("assistant", "[red]"), ("system", " spaced ")):
            await go_to(pilot, screen, part)
            await listed(pilot)
            assert not FORBIDDEN & set(screen_text(pilot.app))
            assert all(cell_len(line) == 60 for line in screen_lines(pilot.app))
            await pilot.press(*["down"] * (names.index(name) + 1), "enter")
            await seen(pilot, screen)
        await seen(pilot, screen)
        text = screen_text(pilot.app)
        assert not FORBIDDEN & set(text)
        assert "[red]" in text
        await press(pilot, "ctrl+s", until=lambda: value(pilot, "data.columns") is not None)
        assert not FORBIDDEN & set(screen_text(pilot.app))
        chosen = document(pilot).validate().data.columns
        assert chosen == {"user": HOSTILE, "assistant": "[red]", "system": " spaced "}


@pytest.mark.long
async def test_ten_thousand_columns(directory: Path) -> None:
    write(directory, [{f"column {number}": f"value {number}" for number in range(10_000)}] * 5)
    async with columns(directory) as (pilot, screen):
        await go_to(pilot, screen, "user")
        await listed(pilot)
        assert "Column for user" in words(pilot)
        assert "column 0 value 0" in words(pilot), "each column with a value of it"
        await press(pilot, *"n 9876", "enter", until=lambda: screen.choice.columns.get("user") == "column 9876")
        await pilot.press("j")
        await listed(pilot)
        await press(pilot, *"column 12", "pagedown", "up", "enter", until=lambda: "assistant" in screen.choice.columns)
        await press(pilot, "enter", *"zz", until="as typed")
        await press(pilot, "escape", until=lambda: pilot.app.screen is screen)
        await seen(pilot, screen)
        assert spoken(screen)[0] == ("user", "value 9876")


@pytest.mark.long
async def test_unreadable_rows_and_a_file_that_has_changed(directory: Path) -> None:
    write(directory, [{"a": "q", "b": "r"}])
    path = directory / "rows.jsonl"
    path.write_text("{broken\n" + path.read_text() + "[1]\n")
    async with columns(directory) as (pilot, screen):
        await go_to(pilot, screen, "user")
        await pilot.press("right", "j", "left")
        await seen(pilot, screen)
        assert "! 1 of the first 3 rows can be used · row 1: The row is not JSON" in words(pilot)
        assert [role for role, _ in spoken(screen)] == ["problem", "user", "assistant", "problem"]
        await pilot.press("escape")
        path.write_text("something else\n" * 10)
        await press(pilot, "vertical_line", until=lambda: "✗" in words(pilot) and "since it was opened" in words(pilot))
        await pilot.press("ctrl+s", "A", "D", "right", "enter", "escape")
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, ColumnsScreen))


async def test_the_config_pane_opens_it_from_its_fields(directory: Path) -> None:
    async with running(configured(directory), until=shows_rows) as (app, pilot):
        await pilot.press("2", "A")
        form = pane_of(app, "config").form
        for name in ("data.columns", "data.format"):
            form.go_to(form.field(name))
            await press(pilot, "T", until=lambda: isinstance(app.screen, ColumnsScreen))
            await press(pilot, "escape", until=lambda: not isinstance(app.screen, ColumnsScreen))


def test_a_huge_row_is_sampled_in_bounds(tmp_path: Path) -> None:
    from tui.datasets.view import DatasetView

    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(30):
            file.write(json.dumps({"a": "x" * 3_000_000, "n": number, "m": [{"role": "user"}, 5, "x"]}) + "\n")
    view = DatasetView(path)
    try:
        view.file.index()
        sample = read_sample(view)
    finally:
        view.close()
    assert 3 <= len(sample.rows) < 12
    assert all(len(one.example) <= 120 for one in sample.columns)
    assert [one.value for one in candidates("role", {"messages": "m"}, sample)] == ["role"]
    assert [one.value for one in candidates("user_role", {"messages": "m"}, sample)] == ["user"]
    assert preview_columns(sample, "auto", {"text": "a"}).used == len(sample.rows)
    assert preview_columns(sample, "nonsense", None).problem is not None
    assert "train.objective is dpo" in preview_columns(sample, "auto", {"text": "a"}, "dpo").warning
