"""The shell: the app's interface for widgets, the app's access to its panes, and an app without screens."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from textual.app import App

from tests.tui.harness import ShellApp, wait_for
from tui.app import LocaltuneApp
from tui.controllers.desktop import Desktop
from tui.panes import PANES, Panes
from tui.panes.train import TrainPane
from tui.shell import Shell, shell_of
from tui.state import AppState


async def test_an_app_without_keys_is_no_shell() -> None:
    bare: App[None] = App()
    async with bare.run_test():
        with pytest.raises(TypeError, match="App is no shell"):
            shell_of(bare.screen)


async def test_a_widget_sees_the_app() -> None:
    app = ShellApp()
    async with app.run_test():
        assert shell_of(app.screen) is app
    assert isinstance(LocaltuneApp(), Shell)


def test_a_pane_that_is_not_there_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tui.panes.chat.pane", None)
    assert Panes(lambda _: None).chat is None


def test_a_pane_in_the_slot_of_another_one_is_none_of_its_kind() -> None:
    train = TrainPane()
    panes = Panes(lambda _: train)
    assert (panes.train, panes.runs) == (train, None)


async def test_every_pane_is_reached_by_its_class() -> None:
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        panes = app.desktop.panes
        await wait_for(pilot, lambda: None not in (panes.data, panes.config, panes.train, panes.chat, panes.runs))
        for spec in PANES:
            assert type(panes.find(spec.id)) is spec.load()


def test_what_is_there_is_left_alone() -> None:
    code = (
        "import gc; from tui.app import spare_the_screen; kept = [[n] for n in range(1000)]; spare_the_screen();"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold())"
    )
    # In a process of its own: nothing there is ever freed afterwards.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == ["True", "(10000, 20, 20)\n"]


def test_the_header_of_an_app_without_screens_is_left_alone() -> None:
    Desktop(App(), AppState(), time.time).show_header()
