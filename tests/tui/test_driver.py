"""The driver on a terminal that misbehaves, which no input can crash, and its output where there is no UTF-8."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.app import App
from textual.events import Key
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal
from tests.tui.test_terminal_input import BROKEN
from tui.driver import SIGNS, OutputStream, TerminalDriver, ascii_table
from tui.messages import KeysHandled
from tui.widgets.forms.ask_bar import KeyQuestion

HANG_UP = b"the line is dead"


def is_well(terminal: Terminal) -> bool:
    """True if the app answers: help opens, and closes."""
    terminal.press("?", until="Help · ")
    terminal.press("\x1b")
    terminal.wait_for(lambda: "Help · " not in terminal.text)
    return not terminal.has_ended()


def send(terminal: Terminal, data: bytes) -> None:
    """Send more than a terminal takes at once, reading the output in between."""

    def write() -> None:
        for start in range(0, len(data), 1024):
            os.write(terminal.descriptor, data[start : start + 1024])

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    while writer.is_alive():
        terminal.pump(0.01)
        assert not terminal.has_ended(), terminal.output[-2000:]


def test_no_bytes_end_the_app_or_leave_it_deaf(environment: dict[str, str]) -> None:
    # No bindings, as the meaning of a key does not matter here.
    quiet = bytes(byte for byte in range(256) if not 0x20 < byte < 0x7F and byte not in (0x0D, 0x11, 0x1A, 0x1B))
    noise = bytes(random.Random(1).choices(quiet, k=1 << 15))
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("No run yet.")
        terminal.wait_for_text("^p palette")
        for data, expected in BROKEN:
            if "q" not in expected:
                send(terminal, data + b"\x1b[I")
        send(terminal, noise)
        send(terminal, b"\x1b]" + b"q" * (1 << 16) + b"\x1b\\")
        send(terminal, b"\x1b[200~" + b"q" * (1 << 16) + b"\x1b[201~")
        assert is_well(terminal)
        terminal.press("q")
        assert terminal.wait_for_end() == 0
        assert b"Traceback" not in terminal.output


def test_a_key_behind_a_marked_paste_is_typed(environment: dict[str, str]) -> None:
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        # The text before it is none of this pane's keys; all in one read.
        send(terminal, b"zzzyyyxxx\x1b[200~pasted\x1b[201~?")
        terminal.wait_for_text("Help · ")


def test_escape_and_the_key_behind_it_are_both_heard(environment: dict[str, str]) -> None:
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal.press("?", until="Help · ")
        # In one read, as a slow line delivers them: alt+5 to a terminal.
        terminal.press("\x1b5", until="No runs yet.")
        assert "Help · " not in terminal.text
        # For alt+enter, Textual names enter alone, which would answer.
        terminal.press("?", until="Help · ")
        terminal.press("\x1b\r")
        terminal.wait_for(lambda: "Help · " not in terminal.text)


#: The app, which is busy while a screen is left: from a file that it makes until 0.2 s after one that the test makes.
BUSY = """
import sys, time
from pathlib import Path
from tui.screens.overlay import Overlay
leave = Overlay.dismiss
begun, pressed = map(Path, sys.argv[1:])
def busy(self, result=None):
    begun.touch()
    while not pressed.exists():
        time.sleep(0.01)
    time.sleep(0.2)
    return leave(self, result)
Overlay.dismiss = busy
from tui.__main__ import main
sys.exit(main([]))
"""


def test_a_key_waits_for_the_one_before_in_an_app_that_is_busy(environment: dict[str, str], tmp_path: Path) -> None:
    begun, pressed = tmp_path / "begun", tmp_path / "pressed"
    with Terminal([sys.executable, "-c", BUSY, str(begun), str(pressed)], environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal.press("?", until="Help · ")
        terminal.press("\x1b")
        terminal.wait_for(begun.exists)
        terminal.press("5")
        pressed.touch()
        terminal.wait_for_text("No runs yet.")


async def test_nothing_is_waited_for_behind_many_keys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, told = TerminalDriver(App[None]()), list[Message]()
    monkeypatch.setattr(driver, "process_message", told.append)
    monkeypatch.setattr(driver, "_wait_for_app", lambda: None)

    def waited_for() -> threading.Event | None:
        return driver._handled

    driver._tell_keys([Key("x", "x")] * 65)
    assert waited_for() is None
    driver._tell_keys([Key("y", "y")])
    assert [message.key for message in told if isinstance(message, Key)] == ["x"] * 65 + ["y"]
    (handled,) = (message for message in told if isinstance(message, KeysHandled))
    event = waited_for()
    assert event is not None
    handled.reached()
    assert event.is_set()


@pytest.mark.parametrize(
    ("widget", "is_one"),
    [(None, False), (lambda: KeyQuestion("Overwrite it?", {"y": "yes"}), False), (Input, True)],
    ids=["no screen yet", "a question", "a text"],
)
async def test_escape_and_a_key_in_one_read_are_one_key_where_a_text_is_written_alone(
    monkeypatch: pytest.MonkeyPatch, widget: Callable[[], Widget] | None, is_one: bool
) -> None:
    if widget is not None:
        monkeypatch.setattr(App, "focused", widget())
    assert TerminalDriver(App[None]())._is_alt(Key("alt+y", "y")) is is_one


def test_no_size_ends_the_app(environment: dict[str, str]) -> None:
    with Terminal.app(environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal._screen.resize = lambda *_: None
        for columns, rows in ((0, 0), (1, 1), (65535, 1), (1, 65535), (65535, 65535)):
            before = len(terminal.output)
            terminal.resize(columns, rows)
            terminal.wait_for(lambda: len(terminal.output) > before)  # noqa: B023 - within this turn of the loop
        terminal.resize(80, 24)
        assert is_well(terminal)
        terminal.press("q")
        assert terminal.wait_for_end() == 0


def test_it_starts_in_a_terminal_of_any_size(environment: dict[str, str]) -> None:
    with Terminal.app(environment={**environment, "COLUMNS": "99999999", "LINES": "99999999"}) as terminal:
        # Its output is no screen of this size.
        terminal._stream.feed = lambda _: None
        terminal.wait_for(lambda: b"No run yet." in terminal.output)
        terminal.press("q")
        assert terminal.wait_for_end() == 0


def test_a_terminal_that_goes_without_a_signal_ends_the_app_in_order(environment: dict[str, str], home: Path) -> None:
    command = ["sh", "-c", f"trap '' HUP; exec {sys.executable} -m tui"]
    with Terminal(command, environment=environment) as terminal:
        terminal.wait_for_text("^p palette")
        terminal.hang_up()
        assert terminal.wait_for_end() == 0
    assert not (home / "crashes").exists()


def test_what_cannot_be_written_is_lost_and_raises_nothing() -> None:
    class Dead(StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, HANG_UP.decode())

        def flush(self) -> None:
            raise OSError(5, HANG_UP.decode())

    stream = OutputStream(Dead())
    assert stream.write("drawn") == 5
    stream.flush()
    assert stream.isatty() is False


ROOT = Path(__file__).resolve().parents[2]


def test_every_replacement_is_one_ascii_character_of_one_cell() -> None:
    for code, replacement in ascii_table().items():
        assert replacement.isascii()
        assert len(replacement) == 1
        assert cell_len(chr(code)) == 1, f"U+{code:04X}"


def test_borders_keep_their_shape_and_letters_and_escapes_are_passed_on() -> None:
    assert "╭──┬─╮│┃┤└╰╯━═║╎".translate(ascii_table()) == "+--+-+||++++--||"
    assert "▕██▌▁▏⣀⠀✓ 71 °C …".translate(ascii_table()) == "|###_|: + 71 'C ~"
    stream = StringIO()
    text = "\x1b[1mGrüße 日本 ✓\x1b[0m"
    assert OutputStream(stream, ascii_table()).write(text) == len(text)
    assert stream.getvalue() == "\x1b[1mGrüße 日本 +\x1b[0m"


def test_every_sign_that_the_app_writes_has_a_replacement() -> None:
    """Signs are the characters of the sources that are no letters; tables of scripts to recognize are no output."""
    table = ascii_table()
    for path in (ROOT / "tui").rglob("*.py"):
        for character in set(path.read_text(encoding="utf-8")):
            if not character.isascii() and not character.isalpha():
                assert ord(character) in table, f"{path.name}: {character} U+{ord(character):04X}"
    assert SIGNS["…"] == "~"


@pytest.mark.skipif(sys.platform != "linux", reason="the C locale is Linux's")
def test_in_the_c_locale_all_is_ascii(home: Path, environment: dict[str, str]) -> None:
    ScriptedRun(home).begin().train_to(40)
    with Terminal.app(size=(120, 34), environment={**environment, "LANG": "C", "LC_ALL": "C"}) as terminal:
        terminal.wait_for_text("step")
        terminal.wait_for_text("^p palette")
        terminal.press("1", until="E sample data")
        terminal.press("E", until="400 used")
        terminal.press("2", until="learning_rate")
        terminal.press("4", until="4 Chat")
        terminal.press("5", until="5 Runs - 1")
        terminal.press("?", until="Help - ")
        assert not [character for character in terminal.output.decode() if not character.isascii()]
        assert "+-" in terminal.text
