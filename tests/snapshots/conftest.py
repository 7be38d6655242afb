"""Fixtures of the snapshots: everything that moves is held still."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from tests.tui.conftest import CPU
from tests.tui.conftest import parsed_once as parsed_once
from tests.tui.conftest import sandbox_kept as sandbox_kept
from tests.tui.conftest import short_looks as short_looks
from tests.tui.harness import screen_text, wait_for
from tui.app import LocaltuneApp

#: 24 November 2026, 14:36 UTC.
MOMENT = 1795530960.0
Compare = Callable[..., bool]
#: Number of turns without change before a snapshot is taken.
STILL = 3
#: Groups of the app's workers that run as long as it does, or as long as a question is open.
LASTING = {"sample", "follow", "list", "figures", "queue", "default"}


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed host and time zone, idle devices, no blinking cursor."""
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CPU])
    monkeypatch.setattr("tui.state.hostname", lambda: "ws1")
    # On a slow machine, a snapshot would show the run stalled; the last readings are before the fixed time.
    monkeypatch.setattr("core.runs.record.state.STALE_SECONDS", math.inf)
    monkeypatch.setattr("tui.meters.STALE_SECONDS", math.inf)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    for name in ("NO_COLOR", "TEXTUAL_THEME"):
        monkeypatch.delenv(name, raising=False)
    for widget in (Input, TextArea):
        monkeypatch.setattr(widget, "_on_mount", _without_blinking(widget._on_mount))


def _without_blinking(mount: Callable[..., Any]) -> Callable[..., Any]:
    def still(self: Any, event: Any) -> Any:
        result = mount(self, event)
        self.cursor_blink = False
        return result

    return still


def make_app(home: Path, config: Path | None = None) -> LocaltuneApp:
    """The app at a fixed time."""
    home.mkdir(parents=True, exist_ok=True)
    app = LocaltuneApp(config)
    app.clock = lambda: MOMENT + 110
    app.state.host = "ws1"
    return app


@pytest.fixture
def app(private_home: Path) -> LocaltuneApp:
    """The app at a fixed time, before the first run."""
    return make_app(private_home)


def cells(size: str) -> tuple[int, int]:
    """Columns and rows of ``80x24``."""
    width, height = map(int, size.split("x"))
    return width, height


def until(text: str, *keys: str) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait until the app is complete, type, and wait until a text is on the screen; notices are dismissed."""

    async def run(pilot: Pilot[Any]) -> None:
        shell: Any = pilot.app
        await wait_for(pilot, lambda: shell.state.document is not None)
        if keys:
            await pilot.press(*keys)
        await wait_for(pilot, lambda: text in screen_text(pilot.app))
        shell.clear_notifications()
        await wait_for(pilot, lambda: not shell.screen.query("Toast"))
        await settle(pilot)

    return run


def when(condition: Callable[[], object]) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Wait for a condition."""
    return lambda pilot: wait_for(pilot, condition)


def steps(*first_to_last: Callable[[Pilot[Any]], Awaitable[None]]) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Steps one after the other."""

    async def run(pilot: Pilot[Any]) -> None:
        for step in first_to_last:
            await step(pilot)

    return run


async def settle(pilot: Pilot[Any]) -> None:
    """Wait until nothing is being worked out, and layout, focus and painting are done: the picture stays the same from
    turn to turn.

    Raises:
        AssertionError: If it does not settle in time.
    """
    deadline = time.monotonic() + 60.0
    seen: list[object] = []
    while len(seen) < STILL:
        assert time.monotonic() < deadline, f"not still in time; the screen:\n{screen_text(pilot.app)}"
        await pilot.pause()
        screen = pilot.app.screen
        if is_working(pilot.app) or screen._layout_required:
            seen.clear()
            continue
        strips = screen._compositor.render_strips()
        now = (pilot.app.focused, [[(segment.text, segment.style) for segment in strip] for strip in strips])
        seen = [*seen, now] if seen and seen[-1] == now else [now]


def is_working(app: App[Any]) -> bool:
    """True while something that will be drawn is still computed: a plan, the format of a file."""
    return any(not worker.is_finished and worker.group not in LASTING for worker in app.workers)
