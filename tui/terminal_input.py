"""Parser of terminal input that accepts any bytes, without exceptions and with bounded memory.

Textual's parser interprets keys and reports. It gets one complete sequence at a time: sequences are delimited here, so
that broken, unknown or overlong ones are dropped instead of being typed letter by letter.
"""

from __future__ import annotations

import codecs
import re
import time
from collections.abc import Callable

from textual import constants, events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._xterm_parser import XTermParser
from textual.message import Message

from tui.messages import PasteRefused

#: Maximum columns and rows that are drawn: a large screen with a small font.
LARGEST_SIZE = (640, 240)
#: Maximum bytes of a paste; longer text belongs in a file.
LARGEST_PASTE = 4 << 20
#: Seconds of silence after which an incomplete sequence is dropped, and a paste is complete.
SEQUENCE_SECONDS, PASTE_SECONDS = 1.0, 3.0
# Textual knows no longer sequence, and would type it.
_LONGEST = 32

_ESC, _BEL, _CAN, _SUB, _DEL = 0x1B, 0x07, 0x18, 0x1A, 0x7F
_PASTE_BEGIN, _PASTE_END = b"\x1b[200~", b"\x1b[201~"
# OSC, DCS, APC, PM and SOS: strings up to a terminator.
_STRINGS = frozenset(b"]P_^X")
_LONG_NUMBER = re.compile(r"\d{8}")
_SIZE = re.compile(r"\x1b\[48;(\d+)[^;]*;(\d+)[^;]*;(\d+)[^;]*;(\d+)[^;]*t")
_SURROGATE = re.compile("[\ud800-\udfff]")


def within_limits(width: int, height: int) -> tuple[int, int]:
    """A size clamped to at least one cell and at most :data:`LARGEST_SIZE`."""
    return max(1, min(width, LARGEST_SIZE[0])), max(1, min(height, LARGEST_SIZE[1]))


class TerminalInput:
    """Parser from bytes to events. An incomplete sequence is kept until it is complete or times out.

    Args:
        clock: A monotonic clock, in seconds.
        is_alt: True if alt with a key has a meaning. If not, an escape followed by a character is read as two keys: a
            slow line or a busy machine delivers separate keys together.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, is_alt: Callable[[events.Key], bool] = lambda _: True
    ) -> None:
        self.reports_size = False
        """True if the terminal was asked for in-band size reports; others are ignored."""
        self._clock, self._is_alt = clock, is_alt
        self._heard = clock()
        self._parser = XTermParser()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._take: Callable[[int], None] = self._text
        self._held = bytearray()
        self._is_long = False
        self._is_pasting = False
        self._button = 0
        self._out: list[Message] = []

    def feed(self, data: bytes) -> list[Message]:
        """Parse bytes, and return the completed events."""
        self._heard = self._clock()
        position = 0
        while position < len(data):
            if self._is_pasting:
                position += self._paste_on(data[position:])
            else:
                self._take(data[position])
                position += 1
        return self._drain()

    def tick(self) -> list[Message]:
        """Time out incomplete sequences, and return the resulting events; called several times a second."""
        silence = self._clock() - self._heard
        if self._is_pasting:
            if silence >= PASTE_SECONDS:
                self._end_paste()
        elif not self._is_long and len(self._held) in (1, 2) and silence >= constants.ESCAPE_DELAY:
            # Escape, or alt with a key that begins a sequence.
            self._give_up()
        elif silence >= SEQUENCE_SECONDS:
            self._give_up()
        return self._drain()

    def _drain(self) -> list[Message]:
        out, self._out = self._out, []
        return out

    # States of the parser; each method takes one byte.

    def _text(self, byte: int) -> None:
        if byte == _ESC:
            self._begin()
        else:
            for character in self._decoder.decode(bytes([byte])):
                self._parse(character)

    def _escaped(self, byte: int) -> None:
        """After an escape: an introducer, or the bytes of a character."""
        is_cut = bool(self._decoder.getstate()[0])
        if byte == _ESC:
            self._give_up()
            self._begin()
        elif byte == ord("[") and not is_cut:
            self._go_on(byte, self._in_report)
        elif byte == ord("O") and not is_cut:
            self._go_on(byte, self._in_key)
        elif byte in _STRINGS and not is_cut:
            self._go_on(byte, self._in_string)
        elif characters := self._decoder.decode(bytes([byte])):
            self._end()
            self._parse_behind_escape(characters[0])
            for character in characters[1:]:
                self._parse(character)

    def _in_report(self, byte: int) -> None:
        """Within CSI: parameters up to a final letter."""
        if not self._may_go_on(byte):
            return
        if len(self._held) < _LONGEST:
            self._held.append(byte)
        else:
            self._is_long = True
        if self._held == b"\x1b[[":
            # A function key of the Linux console: one more letter.
            self._take = self._in_key
        elif self._held == b"\x1b[M":
            self._take = self._in_old_mouse
        elif byte >= 0x40 or self._held.decode("ascii") in ANSI_SEQUENCES_KEYS:
            self._end_report()

    def _in_key(self, byte: int) -> None:
        """Within SS3: a letter after an optional number."""
        if not self._may_go_on(byte):
            return
        if len(self._held) < _LONGEST:
            self._held.append(byte)
        if byte >= 0x40:
            self._parse(self._end())

    def _in_old_mouse(self, byte: int) -> None:
        """Within a mouse report in the format before SGR: any three bytes."""
        if byte == _ESC:
            self._begin()
            return
        self._held.append(byte)
        if len(self._held) == 6:
            code, column, row = (value - 32 for value in self._held[3:])
            self._end()
            self._old_mouse(code, column, row)

    def _in_string(self, byte: int) -> None:
        """Within an unrequested string for a program: dropped."""
        self._is_long = True
        if byte == _ESC:
            self._take = self._behind_string
        elif byte in (_BEL, _CAN, _SUB):
            self._end()

    def _behind_string(self, byte: int) -> None:
        self._begin()
        if byte == ord("\\"):
            self._end()
        else:
            self._escaped(byte)

    # Sequences.

    def _begin(self) -> None:
        """Begin a sequence at an escape; an incomplete character before it is replaced."""
        for character in self._decoder.decode(b"", final=True):
            self._parse(character)
        self._held[:] = b"\x1b"
        self._is_long = False
        self._take = self._escaped

    def _go_on(self, byte: int, take: Callable[[int], None]) -> None:
        self._held.append(byte)
        self._take = take

    def _may_go_on(self, byte: int) -> bool:
        """True if a byte can continue a sequence; any other byte ends it, and a control is dropped with it."""
        if byte == _ESC:
            self._give_up()
            self._begin()
        elif byte < 0x20 or byte == _DEL:
            self._end()
        elif byte >= 0x80:
            self._end()
            self._text(byte)
        else:
            return True
        return False

    def _end(self) -> str:
        """End the sequence, and return it."""
        sequence = self._held.decode("ascii", "replace")
        self._held.clear()
        self._is_long = False
        self._take = self._text
        return sequence

    def _give_up(self) -> None:
        """Time out a sequence: a lone escape and alt with a letter are keys; anything else is dropped."""
        missing = self._decoder.decode(b"", final=True)
        is_key = not self._is_long and len(self._held) in (1, 2)
        sequence = self._end()
        following = sequence[1:] + missing[:1]
        if is_key and following:
            self._parse_behind_escape(following)
        elif is_key:
            self._parse(sequence, alone=True)
        else:
            for character in missing:
                self._parse(character)

    def _end_report(self) -> None:
        is_long = self._is_long
        sequence = self._end()
        if sequence == _PASTE_BEGIN.decode():
            self._is_pasting = True
        elif size := _SIZE.fullmatch(sequence):
            self._size(*(int(number) for number in size.groups()))
        elif not is_long and not _LONG_NUMBER.search(sequence):
            self._parse(sequence)

    def _size(self, rows: int, columns: int, height: int, width: int) -> None:
        if not self.reports_size or not rows or not columns:
            return
        columns, rows = within_limits(columns, rows)
        # Mouse reports are in pixels from now on; Textual converts them to cells with these numbers.
        width, height = max(columns, min(width, 10**6)), max(rows, min(height, 10**6))
        self._parse(f"\x1b[48;{rows};{columns};{height};{width}t")

    def _old_mouse(self, code: int, column: int, row: int) -> None:
        if code < 0 or column < 1 or row < 1:
            return
        moved, wheel = code & 32, code & 64
        released = code & 3 == 3 and not moved and not wheel
        if released:
            # This format does not report which button was released.
            code = (code & ~3) | self._button
        elif not moved and not wheel:
            self._button = code & 3
        self._parse(f"\x1b[<{code};{column};{row}{'m' if released else 'M'}")

    # Pastes.

    def _paste_on(self, data: bytes) -> int:
        """Take pasted bytes up to the end marker; returns the number of bytes taken."""
        known = len(self._held)
        self._held += data
        end = self._held.find(_PASTE_END, max(0, known - len(_PASTE_END)))
        if end >= 0:
            taken = end + len(_PASTE_END) - known
            del self._held[end:]
            self._end_paste()
            return taken
        if len(self._held) > LARGEST_PASTE:
            self._is_long = True
            # Keep the beginning of an end marker.
            del self._held[: -len(_PASTE_END)]
        return len(data)

    def _end_paste(self) -> None:
        raw, is_long = bytes(self._held), self._is_long
        self._end()
        self._is_pasting = False
        if is_long or len(raw) > LARGEST_PASTE:
            self._out.append(PasteRefused(LARGEST_PASTE))
        elif raw:
            self._out.append(events.Paste(raw.decode("utf-8", "replace").replace("\x00", "")))

    # Events.

    def _parse(self, sequence: str, *, alone: bool = False) -> None:
        """Parse a key or report with Textual's parser; unknown sequences and its errors give no event.

        Args:
            sequence: A character, or a complete sequence.
            alone: Whether nothing follows, so that the beginning of a sequence is a key.
        """
        try:
            found = list(self._parser.feed(sequence))
            if alone and self._is_within:
                self._parser._timeout_time = 0.0
                found += self._parser.tick()
            is_lost = self._is_within
        except Exception:
            # Textual may raise anything for a malformed sequence; the next one must not be affected.
            found, is_lost = [], True
        if is_lost:
            self._renew()
        self._out += filter(_is_sound, found)

    def _parse_behind_escape(self, character: str) -> None:
        """Parse a character after an escape: alt with its key, or two keys."""
        before = len(self._out)
        self._parse(f"\x1b{character}", alone=True)
        is_one = all(isinstance(found, events.Key) and self._is_alt(found) for found in self._out[before:])
        # After a bracket, the rest of a report may be late.
        if not is_one and character not in "[]" and (character.isprintable() or character == "\r"):
            del self._out[before:]
            self._parse("\x1b", alone=True)
            self._parse(character, alone=True)

    @property
    def _is_within(self) -> bool:
        """True while Textual's parser waits for the rest of a sequence."""
        return self._parser._awaiting.timeout is not None

    def _renew(self) -> None:
        before, self._parser = self._parser, XTermParser()
        for name in ("last_x", "last_y", "mouse_pixels", "terminal_size", "terminal_pixel_size"):
            setattr(self._parser, name, getattr(before, name))


def _is_sound(event: Message) -> bool:
    """False for a key with a lone surrogate, which cannot be encoded."""
    return not isinstance(event, events.Key) or not _SURROGATE.search(event.key + (event.character or ""))
