"""Helpers for tests of the config pane."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.config.schema import options
from tests.tui.harness import PaneApp, Request, paste, press, requested, screen_text, wait_for
from tui.panes.config.pane import ConfigPane
from tui.widgets.forms.option_field import OptionField


def edits(pilot: Pilot[Any]) -> list[Request]:
    """The edits that the pane has reported."""
    return requested(pilot, "configuration.edited")


def write_config(directory: Path, text: str = "") -> Path:
    """A configuration with a comment and a file of three rows."""
    (directory / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n')
    path = directory / "tickets.toml"
    path.write_text(text or '# mine\n[data]\ntrain = "rows.jsonl" # rows\n\n[train]\nepochs = 2.0\n')
    return path


def write_startable(directory: Path) -> Path:
    """A configuration of forty rows that a run can be started with."""
    (directory / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(40)))
    path = directory / "mine.toml"
    path.write_text('[data]\ntrain = "rows.jsonl"\n[train]\nlearning_rate = 3e-4\n')
    return path


async def opened(pilot: Pilot[None], pane: ConfigPane, path: Path | None = None) -> None:
    """The pane with its form and a configuration."""
    await wait_for(pilot, lambda: len(pane.form.fields) == len(list(options())))
    if path is not None:
        pane.load(ConfigDocument.load(path))
        await wait_for(pilot, lambda: path.name in screen_text(pilot.app))


@asynccontextmanager
async def config_pane(
    path: Path | None = None, *, size: tuple[int, int] = (120, 30)
) -> AsyncIterator[tuple[Pilot[None], ConfigPane]]:
    """A small app with the pane and a configuration."""
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=size) as pilot:
        await opened(pilot, pane, path)
        yield pilot, pane


async def go_to(pilot: Pilot[Any], pane: ConfigPane, name: str) -> OptionField:
    """Move the cursor to an option."""
    pane.go_to_option(name)
    field = pane.form.field(name)
    await wait_for(pilot, lambda: pane.form.current is field)
    assert field is not None
    return field


async def type_value(pilot: Pilot[Any], pane: ConfigPane, name: str, text: str) -> None:
    """Enter a value of an option."""
    await go_to(pilot, pane, name)
    # The input begins with its value selected.
    await pilot.press("enter")
    # Each key of its own would draw all problems and figures anew.
    await paste(pilot, text)
    await press(pilot, "enter", until=lambda: pane.form.has_focus)
    await pilot.pause()


async def answer(pilot: Pilot[Any], key: str, text: str, *, until: Callable[[], object] | str | None = None) -> None:
    """Answer the question of a key with a text."""
    await pilot.press(key, "ctrl+u")
    await paste(pilot, text)
    await press(pilot, "enter", until=until)


def flat(text: str) -> str:
    """The screen as one line of words, so that a sentence is found however it is wrapped."""
    return " ".join(text.replace("│", " ").split())
