"""Terminal input parsed to events: no bytes raise, are kept without limit, or become keys that nobody has typed."""

from __future__ import annotations

import tracemalloc

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


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Reader:
    """A parser of input with a clock of its own."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.input = TerminalInput(self.clock)

    def read(self, *pieces: bytes) -> list[Message]:
        """The events of some pieces, and of the silence after them."""
        found = [event for piece in pieces for event in self.input.feed(piece)]
        for seconds in (0.2, SEQUENCE_SECONDS, PASTE_SECONDS):
            self.clock.now += seconds
            found += self.input.tick()
        return found


def keys(found: list[Message]) -> list[str]:
    """The keys, and the names of other events."""
    return [event.key if isinstance(event, events.Key) else type(event).__name__ for event in found]


SOUND = [
    (b"a", ["a"]),
    ("é".encode(), ["é"]),
    (b"\x1b", ["escape"]),
    (b"\x1b\x1b[A", ["escape", "up"]),
    (b"\x1b[A", ["up"]),
    (b"\x1bOP", ["f1"]),
    (b"\x1b[[A", ["f1"]),
    (b"\x1b[3$", ["shift+delete"]),
    (b"\x1b[1;5D", ["ctrl+left"]),
    (b"\x1b[97;5u", ["ctrl+a"]),
    (b"\x1bq", ["alt+q"]),
    ("\x1bé".encode(), ["alt+é"]),
    (b"\x1bO", ["alt+shift+o"]),
    (b"\x1b[I", ["AppFocus"]),
    (b"\x1b[<0;10;10M", ["MouseDown"]),
    (b"\x1b[200~two\nlines\x1b[201~x", ["Paste", "x"]),
    (b"\x1b[?2026;2$y", ["TerminalSupportsSynchronizedOutput"]),
]
BROKEN = [
    (b"\xe9", ["replacement_character"]),
    (b"\xff", ["replacement_character"]),
    (b"\xc3", ["replacement_character"]),
    (b"\xc0\x80", ["replacement_character"] * 2),
    (b"\xed\xa0\x80", ["replacement_character"] * 3),
    (b"\x1b\xe9q", ["replacement_character", "q"]),
    (b"\x1b[M \xc40", ["MouseDown"]),
    (b"\x1b[M#\xc4qx", ["MouseUp", "x"]),
    (b"\x1b[M \x00q", []),
    (b"\x1b[M q", []),
    (b"\x1b[M\x1b[A", ["up"]),
    (b"\x1b[12q", []),
    (b"\x1b[1", []),
    (b"\x1b[1\x11", []),
    (b"\x1b[1\xe9", ["replacement_character"]),
    (b"\x1b[?62;4c", []),
    (b"\x1b[99999999u", []),
    (b"\x1b[1114112u", []),
    (b"\x1b[55296u", []),
    (b"\x1b[0;;55296u", []),
    (b"\x1b[97:65;2u", []),
    (b"\x1b[97;" + b"9" * 5000 + b"u", []),
    (b"\x1b[" + b"1;" * 40 + b"q", []),
    (b"\x1b[48;99999999;99999999;9;9t", []),
    (b"\x1b[48;0;0;0;0t", []),
    (b"\x1b[<0;99999999999;1M", []),
    (b"\x1b[<0;-1;-1M", []),
    (b"\x1b]11;rgb:ffff/q/q\x07", []),
    (b"\x1b]11;q\x1b\\", []),
    (b"\x1b]q\x1b[Ax", ["up", "x"]),
    (b"\x1bPq", []),
    (b"\x1b_q\x18x", ["x"]),
    (b"\x1b[201~", []),
    (b"\x1b[200~q", ["Paste"]),
    (b"\x00", ["ctrl+@"]),
]


@cases(("data", "expected"), [*SOUND, *BROKEN], ids=lambda value: repr(value)[:40])
def test_what_comes_of_bytes(data: bytes, expected: list[str]) -> None:
    assert keys(Reader().read(data)) == expected


@cases(("data", "expected"), [*SOUND, *BROKEN], ids=lambda value: repr(value)[:40])
def test_the_next_key_is_none_the_worse(data: bytes, expected: list[str]) -> None:
    reader = Reader()
    reader.read(data)
    assert keys(reader.read(b"x\x1b[B")) == ["x", "down"]


@cases(("data", "expected"), SOUND, ids=lambda value: repr(value)[:40])
def test_a_sequence_may_come_in_pieces(data: bytes, expected: list[str]) -> None:
    pieces = [bytes([byte]) for byte in data]
    assert keys(Reader().read(*pieces)) == expected


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


@cases(
    ("data", "expected"),
    [
        (b"\x1bq", ["escape", "q"]),
        (b"\x1bQ", ["escape", "Q"]),
        (b"\x1b?", ["escape", "question_mark"]),
        (b"\x1b1", ["escape", "1"]),
        (b"\x1b ", ["escape", "space"]),
        (b"\x1b\r", ["escape", "enter"]),
        ("\x1bé".encode(), ["escape", "é"]),
        (b"\x1bO", ["escape", "O"]),
        (b"\x1bP", ["escape", "P"]),
        (b"\x1b\x1bq", ["escape", "escape", "q"]),
        # The rest of a report may be late.
        (b"\x1b[", ["left_square_bracket"]),
        # Only alone is an escape before these a key of its own.
        (b"\x1b\x7f", ["ctrl+w"]),
        (b"\x1b[A", ["up"]),
        # A terminal with this protocol says explicitly that it is alt.
        (b"\x1b[113;3u", ["alt+q"]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_escape_and_a_key_that_come_together_are_two_where_alt_means_nothing(data: bytes, expected: list[str]) -> None:
    reader = Reader()
    reader.input = TerminalInput(reader.clock, is_alt=lambda key: key.key == "alt+x")
    assert keys(reader.read(data)) == expected
    assert keys(reader.read(b"\x1bx")) == ["alt+x"]
