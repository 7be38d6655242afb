"""ASCII output: in a locale without UTF-8 the app itself writes nothing else, and every line keeps its width."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal
from tui.driver import SIGNS, OutputStream, ascii_table

ROOT = Path(__file__).resolve().parents[2]


def test_every_replacement_is_one_ascii_character_of_one_cell() -> None:
    for code, replacement in ascii_table().items():
        assert replacement.isascii()
        assert len(replacement) == 1
        assert cell_len(chr(code)) == 1, f"U+{code:04X}"


def test_borders_keep_their_shape() -> None:
    assert "╭──┬─╮│┃┤└╰╯━═║╎".translate(ascii_table()) == "+--+-+||++++--||"
    assert "▕██▌▁▏⣀⠀✓ 71 °C …".translate(ascii_table()) == "|###_|: + 71 'C ~"


def test_letters_and_escapes_are_passed_on() -> None:
    stream = io.StringIO()
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
def test_in_the_c_locale_all_is_ascii(home: Path) -> None:
    ScriptedRun(home).begin().train_to(40)
    environment = {
        "LOCALTUNE_HOME": str(home),
        "XDG_CONFIG_HOME": str(home.parent / "config"),
        "LANG": "C",
        "LC_ALL": "C",
    }
    with Terminal.app(size=(120, 34), environment=environment) as terminal:
        terminal.wait_for_text("step")
        terminal.wait_for_text("5 Runs")
        terminal.press("1", until="d sample data")
        terminal.press("d", until="400 used")
        terminal.press("2", until="learning_rate")
        terminal.press("4", until="4 Chat")
        terminal.press("5", until="5 Runs - 1")
        terminal.press("?", until="Help - ")
        assert not [character for character in terminal.output.decode() if not character.isascii()]
        assert "+-" in terminal.text
