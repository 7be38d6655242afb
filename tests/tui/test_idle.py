"""An app at rest writes nothing to its terminal: its ticks are driven by hand, over figures that jitter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.color import ColorSystem
from textual._compositor import CompositorUpdate
from textual.events import AppBlur, AppFocus
from textual.pilot import Pilot

import tui.app
from core.runs.record.events import ControlEvent
from tests.tui.conftest import CPU
from tests.tui.harness import is_ready, screen_lines, wait_for
from tests.tui.scripted_run import GPU, ScriptedRun
from tui.app import LocaltuneApp
from tui.bridge import Result
from tui.terminal_image import TerminalImage

PANES = "12345Q"
#: Readings of a card that waits, and of a processor with nothing to do.
CARDS = [
    replace(GPU, temperature_c=41.0 + number % 2, power_w=20.0 + number % 3, utilization=float(number % 4), clock=210.0)
    for number in range(6)
]
PROCESSORS = [
    replace(CPU, utilization=load, memory_used=round(used * 1e9))
    for load, used in ((3.0, 4.0), (31.0, 4.3), (8.0, 4.1), (0.0, 4.4), (44.0, 4.2), (5.0, 4.1))
]


class WrittenApp(LocaltuneApp):
    """The app, which records its output for a terminal."""

    CSS_PATH: ClassVar[str] = str(Path(tui.app.__file__).parent / "app.tcss")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written: list[str] = []
        self._shows = TerminalImage()

    def _display(self, screen: Any, renderable: Any) -> None:
        if isinstance(renderable, CompositorUpdate):
            output = self._shows.bring(renderable, ColorSystem.TRUECOLOR, screen.outer_size)
            self.written += [output] if output else []
        super()._display(screen, renderable)


async def show(pilot: Pilot[Any], app: WrittenApp, key: str) -> None:
    """Show a pane, or the queue, and wait until all that there is has been painted."""
    await wait_for(pilot, lambda: is_ready(app))
    await pilot.press(key)
    if key == "Q":
        await wait_for(pilot, lambda: "The queue is empty." in "\n".join(screen_lines(app)))
    await settled(pilot, app)


async def settled(pilot: Pilot[Any], app: WrittenApp) -> None:
    """Wait until a few rounds have written nothing; then clear the record."""
    rounds = 0

    def is_quiet() -> bool:
        nonlocal rounds
        rounds = 0 if app.written else rounds + 1
        app.written.clear()
        return rounds > 8

    await wait_for(pilot, is_quiet)


async def ticks(pilot: Pilot[Any], app: WrittenApp, devices: list[Any], pass_time: Callable[[], None]) -> None:
    """Everything that comes by itself: samples of the devices, and the clocks of header and pane."""
    for device in devices:
        pass_time()
        app.post_message(Result(partial(app.runs.show_devices, [device])))
        await pilot.pause()
        app.runs.count_down()
        if (pane := app.desktop.panes.train) is not None:
            pane._tick()
        app.desktop.show_header()
        await pilot.pause()


@pytest.mark.parametrize(("state", "panes"), [("none", "35"), ("ended", PANES)])
async def test_nothing_is_written_while_nothing_happens(
    home: Path, monkeypatch: pytest.MonkeyPatch, state: str, panes: str
) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [PROCESSORS[0]])
    if state == "ended":
        script = ScriptedRun(home, start=1e9).train_to(60)
        script.heartbeat = 1e9 + 200
        script.end("finished")
    app = WrittenApp()
    now = 1e9 + 1000.0
    app.clock = lambda: now
    async with app.run_test(size=(120, 34)) as pilot:

        def pass_time() -> None:
            nonlocal now
            now += 5

        for key in panes:
            await show(pilot, app, key)
            await ticks(pilot, app, PROCESSORS, pass_time)
            assert app.written == [], key


@pytest.mark.long
async def test_a_paused_run_writes_what_has_changed_on_its_card_and_nothing_else(home: Path) -> None:
    script = ScriptedRun(home).train_to(34).hardware(CARDS[0])
    script.write(ControlEvent(t=script.pass_time(0), command="pause", sender="socket", result="ok"))
    script.write_state(state="paused")
    app = WrittenApp()
    async with app.run_test(size=(200, 50)) as pilot:
        for pane in "53":
            await show(pilot, app, pane)
            script.hardware(CARDS[1], energy_wh=1.91)
            # The first news of a run brings the chat's title up to date.
            await wait_for(pilot, lambda: app.state.view.history.devices == [CARDS[1]])  # type: ignore[union-attr]
            await settled(pilot, app)
            for number, card in enumerate(CARDS):
                script.hardware(card, energy_wh=1.91 + number / 1000)
                await wait_for(pilot, lambda card=card: app.state.view.history.devices == [card])  # type: ignore[misc, union-attr]
                await ticks(pilot, app, [CPU], lambda: None)
            assert app.written == [], pane
        script.hardware(replace(CARDS[0], temperature_c=52.0), energy_wh=2.7)
        await wait_for(pilot, lambda: app.written)
        await settled(pilot, app)
        assert "52 °C" in screen_lines(app)[0]
        assert any("52 °C" in line for line in screen_lines(app)[1:])


async def test_a_real_change_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CARDS[0]])
    app = WrittenApp()
    async with app.run_test(size=(120, 34)) as pilot:
        await show(pilot, app, "3")
        warm = replace(CARDS[0], temperature_c=55.0)
        await ticks(pilot, app, [warm, warm, replace(warm, temperature_c=56.0)], lambda: None)
        assert len(app.written) == 1
        assert "55 °C" in screen_lines(app)[0]


@pytest.mark.long
async def test_a_terminal_without_the_focus_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [CPU])
    app = WrittenApp()
    async with app.run_test(size=(120, 34)) as pilot:
        await show(pilot, app, "3")
        app.post_message(AppBlur())
        await settled(pilot, app)
        busy = [replace(CPU, utilization=100.0) for _ in range(8)]
        await ticks(pilot, app, busy, lambda: None)
        assert app.written == []
        app.post_message(AppFocus())
        await wait_for(pilot, lambda: "100%" in screen_lines(app)[0])
