"""Every screen in a terminal that is dragged through all sizes: it stays whole, with many colors, sixteen and none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.queue.helpers import add
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal

#: Sizes that come one after the other, faster than any can be drawn.
STORM = [(200, 50), (20, 5), (61, 20), (1, 1), (120, 34), (33, 7), (80, 3), (9, 60), (59, 19), (20, 5)]
#: Keys to each screen from the Runs pane, a text on it at every usual size, and the keys back.
SCREENS = {
    "the queue": ("Q", "The runner is stopped", "\x1b"),
    "a deletion": ("D", "to the trash", "n"),
    "the trash": ("U", "The trash is empty", "\x1b"),
    "details": ("d", "[Curve]", "\x1b"),
    "runs compared": ("c", "runs compared", "\x1b"),
    "a curve with a cursor": (("\r", "m", "y", "+", "\x1b[D", "\x1b[D"), "┤", ("\x1b", "5")),
    "the palette": ("\x10", "Commands", "\x1b"),
}
#: Variables, and a color that must not be selected.
TERMINALS = {
    "256 colors": ({"TERM": "xterm-256color"}, rb"\x1b\[[0-9;]*[34]8;2;"),
    "16 colors": ({"TERM": "linux"}, rb"\x1b\[[0-9;]*[34]8;[25];"),
    "no colors": ({"TERM": "xterm-256color", "NO_COLOR": "1"}, rb"\x1b\[([0-9;]*;)?[34][1-6](;[0-9;]*)?m"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ended runs, with figures enough for a curve, and an entry in the queue."""
    made = tmp_path_factory.mktemp("home")
    for number in range(2):
        script = ScriptedRun(made, f"20261101-00000{number}-tickets", total=60).begin().steps(1, 60)
        script.checkpoint(60).end("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(made))
        add("waiting")
    return made


@pytest.fixture
def terminal(request: pytest.FixtureRequest, home: Path) -> Iterator[Terminal]:
    """The app at its Runs pane."""
    environment = {"LOCALTUNE_HOME": str(home), "XDG_CONFIG_HOME": str(home), **TERMINALS[request.param][0]}
    with Terminal.app(environment=environment) as opened:
        opened.wait_for_text("^p palette", 60)
        opened.press("5")
        opened.wait_for_text("20261101-000000", 60)
        yield opened


def storm(terminal: Terminal, sign: str) -> None:
    """Drag a terminal through all sizes; then a screen is there again, large and small."""
    for size in STORM:
        terminal.resize(*size)
    terminal.wait_for_rest()
    for size in ((200, 50), (80, 24)):
        terminal.resize(*size)
        terminal.wait_for_text(sign)
        terminal.wait_for_rest()


def press(terminal: Terminal, key: str) -> None:
    """Press a key that paints something, and wait for all of it, so that the next key is read on its own."""
    terminal.press(key)
    before = len(terminal.output)
    terminal.wait_for(lambda: len(terminal.output) > before)
    terminal.wait_for_rest()


@pytest.mark.long
@pytest.mark.parametrize(
    "terminal",
    [pytest.param(name, marks=() if name == "16 colors" else pytest.mark.long) for name in TERMINALS],
    indirect=True,
)
def test_no_storm_of_sizes_breaks_a_screen(terminal: Terminal, home: Path, request: pytest.FixtureRequest) -> None:
    for there, sign, back in SCREENS.values():
        for key in there:
            press(terminal, key)
        terminal.wait_for_text(sign)
        storm(terminal, sign)
        for key in back:
            press(terminal, key)
        terminal.wait_for(lambda: sign not in terminal.text)  # noqa: B023 - within this turn of the loop
    terminal.press("\x11")
    assert terminal.wait_for_end() == 0
    assert b"Traceback" not in terminal.output
    assert not (home / "crashes").exists()
    unwanted = TERMINALS[request.node.callspec.params["terminal"]][1]
    assert re.search(unwanted, terminal.output) is None


#: Keys to screens from the Runs pane, their titles, and the hint for ``enter`` at the smallest size.
TINY = {
    "D": ("Delete the run", "enter keep it"),
    "Q": ("Queue", "enter values"),
    "U": ("Trash", "enter restore"),
    "2P": ("Presets", "enter apply"),
}


@pytest.mark.long
@pytest.mark.parametrize("terminal", ["256 colors"], indirect=True)
def test_screens_say_at_any_size_what_they_ask_and_what_enter_does(terminal: Terminal) -> None:
    for keys, (title, enter) in TINY.items():
        for key in keys:
            press(terminal, key)
        terminal.resize(20, 5)
        terminal.wait_for(lambda: enter in terminal.text.splitlines()[-1])  # noqa: B023 - within this turn of the loop
        terminal.wait_for_rest()
        first, *lines, _ = terminal.text.splitlines()
        assert title in first
        assert any(line.strip() for line in lines)
        if title == "Delete the run":
            assert "20261101-000001-tickets" in "".join(line.strip() for line in lines)
            # The rest is scrolled to.
            terminal.press("\x1b[F", until="frees the")
        terminal.resize(80, 24)
        terminal.wait_for_text("d  delete it for good" if title == "Delete the run" else title)
        terminal.wait_for_rest()
        press(terminal, "\x1b")
