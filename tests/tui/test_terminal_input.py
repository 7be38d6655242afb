"""Terminal input parsed to events: no bytes raise, are kept without limit, or become keys that nobody has typed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual.message import Message

from tests.cases import cases
from tui.messages import PasteRefused
from tui.terminal_input import (
    LARGEST_PASTE,
    LARGEST_SIZE,
    PASTE_SECONDS,
    SEQUENCE_SECONDS,
    TerminalInput,
    within_limits,
)


class Reader:
    """A parser of input with a clock of its own."""

    def __init__(self, is_alt: Callable[[events.Key], bool] = lambda _: True) -> None:
        self.now = 0.0
        self.input = TerminalInput(lambda: self.now, is_alt)

    def read(self, *pieces: bytes) -> list[Message]:
        """The events of some pieces, and of the silence after them."""
        found = [event for piece in pieces for event in self.input.feed(piece)]
        for seconds in (0.2, SEQUENCE_SECONDS, PASTE_SECONDS):
            self.now += seconds
            found += self.input.tick()
        return found


def keys(found: list[Message]) -> list[str]:
    """The keys, and the names of other events."""
    return [event.key if isinstance(event, events.Key) else type(event).__name__ for event in found]


def _cases(name: str) -> list[tuple[bytes, list[str]]]:
    return [(data.encode("latin-1"), expected) for data, expected in TABLES[name]]


TABLES = yaml.safe_load(Path(__file__).with_name("terminal_input.yaml").read_text(encoding="utf-8"))
SOUND = _cases("sound")
BROKEN = [*_cases("broken"), (b"\x1b[97;" + b"9" * 5000 + b"u", []), (b"\x1b[" + b"1;" * 40 + b"q", [])]


@cases(("data", "expected"), [*SOUND, *BROKEN], ids=lambda value: repr(value)[:40])
def test_bytes_become_keys_whole_or_in_pieces_and_the_next_key_is_heard(data: bytes, expected: list[str]) -> None:
    reader = Reader()
    assert keys(reader.read(data)) == expected
    assert keys(reader.read(b"x\x1b[B")) == ["x", "down"]
    assert keys(Reader().read(*(bytes([byte]) for byte in data))) == expected


def test_a_mouse_of_the_old_kind_says_where_it_is_and_which_button_was_let_go() -> None:
    down, up, move, wheel = Reader().read(b"\x1b[M\x22\xc40", b"\x1b[M#\xc40", b"\x1b[MC\xff!", b"\x1b[M`!!")
    assert isinstance(down, events.MouseDown)
    assert (down.x, down.y, down.button) == (163, 15, 3)
    assert isinstance(up, events.MouseUp)
    assert up.button == 3
    assert isinstance(move, events.MouseMove)
    assert (move.x, move.y) == (222, 0)
    assert isinstance(wheel, events.MouseScrollUp)


def test_a_size_is_believed_only_where_it_was_asked_for_and_within_limits() -> None:
    reader = Reader()
    assert not reader.read(b"\x1b[48;50;200;1000;2000t")
    reader.input.reports_size = True
    (resize,) = reader.read(b"\x1b[48;9999999;9999999;0;0t")
    assert isinstance(resize, events.Resize)
    assert (resize.size.width, resize.size.height) == LARGEST_SIZE
    # The mouse is reported in pixels from then on, of which there were none.
    assert keys(reader.read(b"\x1b[<0;10;10M")) == ["MouseDown"]
    assert not reader.read(b"\x1b[48;0;80;0;0t")


@given(st.integers(), st.integers())
def test_every_size_can_be_drawn(width: int, height: int) -> None:
    columns, rows = within_limits(width, height)
    assert 1 <= columns <= LARGEST_SIZE[0]
    assert 1 <= rows <= LARGEST_SIZE[1]


def test_a_paste_is_taken_whole_or_not_at_all() -> None:
    text = "é" * 1000 + "\x1b[20"
    paste, key = Reader().read(b"\x1b[200~", text.encode()[:501], text.encode()[501:], b"\x1b[2", b"01~x")
    assert isinstance(paste, events.Paste)
    assert paste.text == text
    assert keys([key]) == ["x"]
    refused, key = Reader().read(b"\x1b[200~" + b"q" * (LARGEST_PASTE + 1) + b"\x1b[201~x")
    assert isinstance(refused, PasteRefused)
    assert keys([key]) == ["x"]


@cases("begin", [b"\x1b[", b"\x1b[200~", b"\x1b]", b"\x1bP", b"\x1bO", b"\x1b[<"])
def test_what_never_ends_takes_no_memory(begin: bytes) -> None:
    reader = Reader()
    reader.input.feed(begin)
    piece, limit = (b"1" * (1 << 20), 4 * LARGEST_PASTE) if b"200" in begin else (b"1" * 4096, 1 << 20)
    tracemalloc.start()
    for _ in range(20):
        reader.input.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit


PIECES = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([data for data, _ in [*SOUND, *BROKEN]]),
    st.from_regex(rb"\x1b\[[<?>=]?[0-9;:]{0,24}[ -/]?[@-~]", fullmatch=True),
    st.from_regex(rb"\x1b[O\]P_^X][ -~]{0,12}(\x07|\x1b\\\\)?", fullmatch=True),
)


@given(st.lists(PIECES, max_size=12), st.booleans())
def test_no_bytes_raise_and_the_next_key_is_heard(pieces: list[bytes], reports_size: bool) -> None:
    reader = Reader()
    reader.input.reports_size = reports_size
    reader.read(*pieces)
    assert keys(reader.read(b"x")) == ["x"]


@given(st.lists(PIECES, max_size=6), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_it_does_not_matter_how_bytes_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    data, position = b"".join(pieces), 0
    cut = []
    for length in cuts:
        cut.append(data[position : position + length])
        position += length
    assert keys(Reader().read(data)) == keys(Reader().read(*cut, data[position:]))


@cases(("data", "expected"), _cases("without_alt"), ids=lambda value: repr(value)[:40])
def test_escape_and_a_key_that_come_together_are_two_where_alt_means_nothing(data: bytes, expected: list[str]) -> None:
    reader = Reader(is_alt=lambda key: key.key == "alt+x")
    assert keys(reader.read(data)) == expected
    assert keys(reader.read(b"\x1bx")) == ["alt+x"]
