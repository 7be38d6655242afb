"""Internal errors that end the app: the terminal is restored, one sentence says so, and no work is lost."""

from __future__ import annotations

import math
import re
import signal
import stat
import sys
import termios
import time
from pathlib import Path

import pytest

from core import crashes
from tests.tui.broken_app import MISTAKES
from tests.tui.config_panes import write_config
from tests.tui.terminal import Terminal

TOKEN = "hf_" + "q7Rk2LmX9" * 4
#: Terminal modes that are on while the app draws, and off otherwise.
MODES = ("?1049", "?1000", "?1003", "?1006", "?1015", "?2004", "?1004")


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return {"LOCALTUNE_HOME": str(home), "XDG_CONFIG_HOME": str(home.parent / "config"), "HF_TOKEN": TOKEN}


def broken(mistake: str, *arguments: str, environment: dict[str, str]) -> Terminal:
    command = [sys.executable, "-m", "tests.tui.broken_app", mistake, *arguments]
    return Terminal(command, (100, 30), environment)


def edit_epochs(terminal: Terminal, value: str) -> None:
    """Type another value of ``train.epochs``."""
    terminal.wait_for_text("tickets.toml")
    terminal.press("2/epochs", until="enter accepts")
    terminal.wait_for_text("Passes over the trainin")
    terminal.press("\r")
    # The key bar shows the form's keys again.
    terminal.wait_for_text("q quit")
    terminal.press("\r", until="enter accepts")
    terminal.press("\x15")
    # A bound key runs its action later than a letter after it reaches the input.
    terminal.wait_for(lambda: re.search(r"epochs +Passes", terminal.text))
    terminal.press(f"{value}\r", until="q quit")
    terminal.wait_for_text("•edited")
    terminal.wait_for_text(f"epochs                 {value}")


def answer(terminal: Terminal, key: str, question: str) -> None:
    """Press a key until a question is gone: pressed before the question could be read, it is no answer.

    Not at every look, as the key means something else once the question has been answered and is still on the screen.
    """
    pressed = -math.inf

    def is_gone() -> bool:
        nonlocal pressed
        if question not in terminal.text or terminal.has_ended():
            return True
        if time.monotonic() - pressed > 5:
            terminal.press(key)
            pressed = time.monotonic()
        return False

    terminal.wait_for(is_gone, 60)


def is_on(output: bytes, mode: str) -> bool:
    """True if the last sequence for a terminal mode turned it on."""
    found = re.findall(rb"\x1b\[" + re.escape(mode.encode()) + rb"([hl])", output)
    return bool(found) and found[-1] == b"h"


def assert_whole(terminal: Terminal, before: list[object]) -> None:
    """Assert that the terminal is as the app found it."""
    after = termios.tcgetattr(terminal.descriptor)
    assert after[:4] == before[:4]
    assert not [mode for mode in MODES if is_on(terminal.output, mode)]
    assert terminal.output.count(b"\x1b[<u") >= terminal.output.count(b"\x1b[>")
    assert is_on(terminal.output, "?25")
    assert is_on(terminal.output, "?7")


#: Mistakes that end the app in three different ways; the others are tried where there is time.
FEW = ("thread", "drawing", "panic")


@pytest.mark.parametrize(
    "mistake",
    [*FEW, *(pytest.param(name, marks=pytest.mark.long) for name in MISTAKES if name not in (*FEW, "endless"))],
)
def test_a_mistake_leaves_a_whole_terminal_a_sentence_and_a_report(
    environment: dict[str, str], home: Path, mistake: str
) -> None:
    with broken(mistake, environment=environment) as terminal:
        before = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for_text("No run yet.")
        terminal.wait_for_text("^p palette")
        terminal.press("0")
        assert terminal.wait_for_end() == 1
        assert_whole(terminal, before)
        left = terminal.output[terminal.output.rindex(b"\x1b[?1049l") :].decode()
        assert "Traceback" not in left
        assert TOKEN not in left
        assert left.count("an internal error ended the app") == 1
        assert left.rstrip().count("\n") == 0
        (report,) = crashes.reports()
        assert report.name in left
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert stat.S_IMODE(report.parent.stat().st_mode) == 0o700
    text = report.read_text()
    assert TOKEN not in text
    assert "\x1b" not in text
    assert "rows of somebody" not in text.replace('rows = ["the rows of somebody"]', "")
    assert "broken_app.py" in text


def test_where_the_home_cannot_be_written_the_mistake_is_reported_all_the_same(
    environment: dict[str, str], home: Path
) -> None:
    (home / "crashes").write_text("a file where a directory belongs")
    with broken("handler", environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal.press("0")
        assert terminal.wait_for_end() == 1
        assert b"its details could not be written" in terminal.output


def test_edits_come_back_after_a_mistake_and_can_be_given_up(
    environment: dict[str, str], home: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path)
    before = path.read_text()
    with broken("handler", str(path), environment=environment) as terminal:
        terminal.wait_for_text("tickets.toml")
        edit_epochs(terminal, "73")
        terminal.press("0")
        assert terminal.wait_for_end() == 1
        assert b"edits that were not saved are kept for the next start" in terminal.output
    assert path.read_text() == before
    (draft,) = (home / "drafts").iterdir()
    assert stat.S_IMODE(draft.stat().st_mode) == 0o600

    with Terminal.app(str(path), environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("not saved yet are back: ^s saves them")
        terminal.wait_for_text("•edited")
        terminal.press("2", until="▸")
        terminal.press("u")
        terminal.wait_for(lambda: "•edited" not in terminal.text)
        terminal.wait_for(lambda: not draft.exists())
        terminal.press("q")
        assert terminal.wait_for_end() == 0
    assert path.read_text() == before
    assert not list((home / "drafts").iterdir())


def test_q_does_not_wait_for_a_thread_that_never_ends(environment: dict[str, str]) -> None:
    with broken("endless", environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal.press("0", until="The work has begun.")
        terminal.press("q")
        assert terminal.wait_for_end(10) == 0
        assert not is_on(terminal.output, "?1049")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_edits_outlive_an_app_that_is_killed(
    environment: dict[str, str], home: Path, tmp_path: Path, number: int
) -> None:
    path = write_config(tmp_path)
    with Terminal.app(str(path), environment=environment, size=(100, 30)) as terminal:
        edit_epochs(terminal, "73")
        terminal.wait_for(lambda: any("73" in draft.read_text() for draft in (home / "drafts").glob("*.json")))
        terminal.signal(number)
        terminal.wait_for_end()
    path.write_text(path.read_text() + "# changed by somebody else\n")

    with Terminal.app(str(path), environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("changed by another program since")
        answer(terminal, "r", "changed by another program since")
        terminal.wait_for_text("•edited")
        terminal.press("q", until="has edits that are not saved")
        answer(terminal, "d", "has edits that are not saved")
        assert terminal.wait_for_end() == 0
    assert path.read_text().endswith("# changed by somebody else\n")
    assert not list((home / "drafts").iterdir())
