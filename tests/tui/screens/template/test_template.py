"""The screen of the chat templates in the real app: previews, choices, edits, and errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.template.builtin import NAMED_TEMPLATES
from tests.conftest import CHATML
from tests.tui.harness import (
    FORBIDDEN,
    HOSTILE,
    lend_terminal,
    make_editor,
    pane_of,
    paste,
    press,
    running,
    screen_lines,
    screen_text,
    shown,
    wait_for,
    words,
)
from tests.tui.screens.opening import document, open_screen, shows_rows, value
from tui.app import LocaltuneApp
from tui.screens.template.template import TemplateScreen
from tui.screens.template.template_entries import TemplateEntry

ROWS = [("what is it", "a reply"), ("and this", "another\nreply"), ("tell me", "")]


@pytest.fixture
def directory(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A configuration with rows and a model."""
    rows = "".join(json.dumps({"prompt": ask, "completion": answer}) + "\n" for ask, answer in ROWS)
    (tmp_path / "rows.jsonl").write_text(rows)
    text = f'[model]\nbase = "{tiny_model_dir}"\n\n[data]\ntrain = "rows.jsonl" # mine\n'
    (tmp_path / "tickets.toml").write_text(text)
    return tmp_path


async def opened(pilot: Pilot[Any]) -> TemplateScreen:
    """Open the screen from the data pane, and wait for the preview of every template."""
    screen = await open_screen(pilot, TemplateScreen, "1", "T")
    await seen(pilot, screen)
    return screen


@asynccontextmanager
async def templates(
    directory: Path,
    size: tuple[int, int] = (80, 24),
    *,
    notifications: bool = False,
    lends: bool = True,
) -> AsyncIterator[tuple[Pilot[Any], TemplateScreen]]:
    """The open screen."""
    app = LocaltuneApp(config_path=directory / "tickets.toml")
    with pytest.MonkeyPatch.context() as patch:
        if lends:
            lend_terminal(patch)
        async with running(app, size, notifications=notifications, until=shows_rows) as (_, pilot):
            yield pilot, await opened(pilot)


def append(directory: Path, text: str) -> None:
    """Lengthen the configuration."""
    path = directory / "tickets.toml"
    path.write_text(path.read_text() + text)


def at(screen: TemplateScreen) -> TemplateEntry:
    """The template under the cursor."""
    assert screen.current is not None
    return screen.current


async def seen(pilot: Pilot[Any], screen: TemplateScreen) -> None:
    await wait_for(
        pilot, lambda: screen.templates is not None and len(screen.previews) == len(screen.templates.entries)
    )
    await pilot.pause()


def lit(screen: TemplateScreen) -> str:
    """The supervised text, as displayed."""
    return "".join(cell.text for part in screen.mask_view.parts for cell in part.cells if cell.learned)


async def test_enter_chooses_and_the_first_entry_removes_again(directory: Path) -> None:
    (directory / "mine.jinja").write_text(CHATML)
    append(directory, '\n[template]\nfile = "./mine.jinja" # as it is\n')
    async with templates(directory, notifications=True) as (pilot, screen):
        assert "in force: mine.jinja, by template.file" in screen_text(pilot.app)
        await press(pilot, "enter", until=lambda: not isinstance(pilot.app.screen, TemplateScreen))
        assert value(pilot, "template.file") == "./mine.jinja", "what is in force stays as it is spelled"
        screen = await opened(pilot)
        assert lit(screen) == "a reply<|im_end|>"
        await press(pilot, "G")
        assert screen.source_view.source == NAMED_TEMPLATES["vicuna"].source
        assert value(pilot, "template.name") is None, "nothing is chosen by looking"
        await press(pilot, "g", *["j"] * 2)
        assert at(screen).title == "chatml"
        await press(pilot, "enter", until=lambda: value(pilot, "template.name") == "chatml")
        assert value(pilot, "template.file") is None
        assert "chatml is the chat template." in screen_text(pilot.app)
        await wait_for(pilot, lambda: pane_of(pilot.app, "config").form.field("template.name").value == "chatml")
        assert "chatml" not in (directory / "tickets.toml").read_text(), "the file is written when it is saved"
        await opened(pilot)
        assert "in force: chatml, by template.name" in screen_text(pilot.app)
        await press(pilot, "g", "enter", until=lambda: value(pilot, "template.name") is None)
        assert "template" not in document(pilot).dumps()


@pytest.mark.long
async def test_a_template_that_does_not_suit_the_model_is_marked(directory: Path) -> None:
    async with templates(directory) as (pilot, screen):
        lines = [line for line in screen_lines(pilot.app) if "llama3" in line]
        assert "✗" in lines[0]
        assert not any("✗" in line for line in screen_lines(pilot.app) if " chatml " in line)
        place = [entry.id for entry in screen.templates.entries].index("llama3")  # type: ignore[union-attr]
        await press(pilot, *["j"] * place)
        text = screen_text(pilot.app)
        assert "the model has no token <|eot_id|>" in text
        assert "✗ The chat template does not end an answer with a token" in text
        assert lit(screen) == ""
        assert "<|eot_" in text, "the row is shown all the same"


@pytest.mark.long
async def test_other_rows_and_rows_that_cannot_be_used(directory: Path) -> None:
    async with templates(directory, (100, 30)) as (pilot, screen):
        await press(pilot, "n", until=lambda: lit(screen) == "another\nreply<|im_end|>")
        assert "row 2 ·" in screen_text(pilot.app)
        await press(pilot, "right", until="an example, as row 3 cannot be used")
        assert "Rome.<|im_end|>" in lit(screen)
        await press(pilot, "n", "N", "left", until=lambda: lit(screen) == "a reply<|im_end|>")


async def test_editing_makes_a_copy_and_uses_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "VISUAL", make_editor(directory, 'sed -i "s/user/human/; s/CHATML//" "$1"; echo "{# mine #}" >> "$1"')
    )
    async with templates(directory) as (pilot, screen):
        data = pane_of(pilot.app, "data")
        before = data.session.masks
        await press(pilot, "j", "e", until="save the copy as chatml.jinja")
        await pilot.press("enter")
        path = directory / "chatml.jinja"
        await wait_for(pilot, lambda: value(pilot, "template.file") == "chatml.jinja")
        assert path.read_text() == NAMED_TEMPLATES["chatml"].source + "{# mine #}\n"
        assert value(pilot, "template.name") is None
        await seen(pilot, screen)
        await shown(pilot, "in force: chatml.jinja, by template.file")
        await shown(pilot, "✓ chatml.jinja is saved and is the chat template.")
        assert at(screen).path == path
        assert screen.source_view.source.endswith("{# mine #}\n")
        assert lit(screen) == "a reply<|im_end|>"
        await press(pilot, "escape", until=lambda: data.session.masks not in (None, before))
        assert "{# mine #}" in data.session.masks.settings.template


async def test_a_broken_template_says_its_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen_by_editor = directory / "seen"
    script = f'cp "$1" {seen_by_editor}; echo "{{% if %}}" >> "$1"'
    monkeypatch.setenv("VISUAL", make_editor(directory, script))
    async with templates(directory) as (pilot, screen):
        await press(pilot, "j", "e", "enter", until=lambda: screen.current is not None and screen.current.id == "file")
        await seen(pilot, screen)
        text = words(pilot)
        number = NAMED_TEMPLATES["chatml"].source.count("\n") + 1
        assert f"not valid in line {number}" in text
        assert "not used until it is fixed" in text
        assert f"✗{number} " in text, "the line is marked and in view"
        await press(pilot, "enter", until=lambda: "Fix it" in words(pilot))
        assert value(pilot, "template.file") is None
        assert "{% if %}" in (directory / "chatml.jinja").read_text()
        monkeypatch.setenv("VISUAL", make_editor(directory, 'sed -i "s/{% if %}/{# ok #}/" "$1"'))
        await press(pilot, "e", until=lambda: value(pilot, "template.file") == "chatml.jinja")
        await seen(pilot, screen)
        assert lit(screen) == "a reply<|im_end|>"


async def test_a_template_that_fails_on_the_row_says_where(directory: Path) -> None:
    (directory / "mine.jinja").write_text(
        "a\n{% for m in messages %}\n{{ raise_exception('not ' + m.role) }}{% endfor %}"
    )
    append(directory, '\n[template]\nfile = "mine.jinja"\n')
    async with templates(directory) as (pilot, screen):
        await shown(pilot, "✗ Line 3: The chat template refuses the")
        assert screen.source_view.marked == 3
        assert any("✗ 3 " in line for line in screen_lines(pilot.app))


async def test_without_a_terminal_to_lend_the_editor_is_refused(directory: Path) -> None:
    async with templates(directory, lends=False) as (pilot, _):
        await press(pilot, "j", "e", "enter", until="cannot be lent to an editor")


async def test_a_file_that_is_there_is_not_replaced_unasked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "true")
    path = directory / "chatml.jinja"
    path.write_text(CHATML)
    async with templates(directory) as (pilot, _):
        await press(pilot, "j", "e", "enter", until="exists already")
        await press(pilot, "u", until=lambda: value(pilot, "template.file") == "chatml.jinja")
        assert path.read_text() == CHATML


@pytest.mark.long
async def test_what_cannot_be_written_is_kept(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", make_editor(directory, 'echo "{# kept #}" >> "$1"'))
    async with templates(directory, (120, 30)) as (pilot, _):
        await pilot.press("j", "e", "ctrl+u")
        await paste(pilot, "no/such/place/t.jinja")
        await press(pilot, "enter", until="Your text is kept; e saves it elsewhere.")
        monkeypatch.setenv("VISUAL", "false")
        await pilot.press("e", "ctrl+u")
        await paste(pilot, "mine")
        await press(pilot, "enter", until=lambda: value(pilot, "template.file") == "mine.jinja")
        assert (directory / "mine.jinja").read_text().endswith("{# kept #}\n")


@pytest.mark.long
async def test_both_options_at_once_are_an_error_that_a_choice_mends(directory: Path) -> None:
    append(directory, '\n[template]\nfile = "mine.jinja"\nname = "qwen"\n')
    async with templates(directory) as (pilot, screen):
        await shown(pilot, "template.name and template.file are both set")
        await press(pilot, "j")
        assert "cannot be read" in at(screen).problem
        await press(pilot, "enter")
        assert isinstance(pilot.app.screen, TemplateScreen), "a file that is not there is not chosen"
        await press(pilot, "j", "enter", until=lambda: value(pilot, "template.file") is None)
        assert value(pilot, "template.name") == "chatml"


@pytest.mark.long
async def test_without_a_model_the_templates_are_shown_as_text(directory: Path) -> None:
    path = directory / "tickets.toml"
    path.write_text('[model]\nbase = "no/model"\n[data]\ntrain = "rows.jsonl"\n')
    async with templates(directory) as (pilot, screen):
        await shown(pilot, "is not on this machine")
        await press(pilot, "j", until="<|im_start|>user⏎")
        assert lit(screen) == ""
        await press(pilot, "enter", until=lambda: value(pilot, "template.name") == "chatml")


async def test_without_data_an_example_is_shown(directory: Path, tiny_model_dir: Path) -> None:
    (directory / "tickets.toml").write_text(f'[model]\nbase = "{tiny_model_dir}"\n')
    async with templates(directory) as (pilot, screen):
        assert "an example, as no data is open" in screen_text(pilot.app)
        assert lit(screen) == "Paris.<|im_end|>Rome.<|im_end|>"


async def test_a_section_that_is_none_leaves_everything_as_it_was(directory: Path) -> None:
    path = directory / "tickets.toml"
    path.write_text('template = "chatml"\n' + path.read_text())
    async with templates(directory) as (pilot, _):
        before = document(pilot).dumps()
        await press(pilot, "j", "enter", until="The configuration is not changed")
        assert pilot.app.state.document.dumps() == before  # type: ignore[attr-defined]


async def test_hostile_text_never_reaches_a_strip(directory: Path) -> None:
    name = "evil\x1b]0;x\x07[b].jinja"
    (directory / name).write_text("{% for m in messages %}" + HOSTILE + "{{ m.content }}<|im_end|>{% endfor %}")
    row = {"prompt": HOSTILE, "completion": HOSTILE}
    (directory / "rows.jsonl").write_text(json.dumps(row) + "\n")
    append(directory, f"\n[template]\nfile = {json.dumps(name)}\n")
    async with templates(directory, (60, 20)) as (pilot, _):
        for _ in range(4):
            assert not FORBIDDEN & set(screen_text(pilot.app))
            await press(pilot, "j")
        await press(pilot, "g", "j")
        assert "[/]i[bold]j" in screen_text(pilot.app).replace("\n", "")
        assert not FORBIDDEN & set(screen_text(pilot.app))
