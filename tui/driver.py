"""Textual driver whose input and output survive any terminal: hostile bytes, floods, and a terminal that is gone."""

from __future__ import annotations

import os
import selectors
import threading
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from typing import Any, TextIO, cast

from textual.app import App, ScreenStackError
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Key, Paste
from textual.message import Message
from textual.widgets import Input, TextArea

from tui.messages import KeysAhead, KeysHandled, TerminalGone
from tui.shell import Shell
from tui.terminal_image import TerminalImage
from tui.terminal_input import TerminalInput, within_limits

#: Seconds between two polls of the input and of the exit event.
_TICK = 0.1
_READ = 4096
#: Maximum events that the app may lag behind; further input is left in the terminal until then.
_AHEAD = 1024
#: Seconds to wait for the app to catch up: it may be busy, or the focused widget gone.
_PATIENCE = 10.0
#: Seconds between two keys of a burst, which nobody types that fast.
_BURST = 0.01
#: The same after several keys at once: another program, or a slow line, may deliver the rest of a text a little later.
BURST_GOES_ON = 0.1
#: Longest burst whose keys are each handled before the next is posted, and seconds for all of it; longer ones are text.
_PACED, _PACE_PATIENCE = 64, 3.0


class TerminalDriver(LinuxDriver):
    """Terminal driver: :class:`~tui.terminal_input.TerminalInput` parses the input, and sizes are clamped."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._size = size or self._get_terminal_size()
        is_plain = isinstance(app, Shell) and app.glyphs.name == "ascii"
        self._file = cast(Any, OutputStream(cast(TextIO, self._file), ascii_table() if is_plain else None))
        self._ahead = 0
        self.image = TerminalImage()
        """The image of the terminal."""
        self._key_time = 0.0
        self._was_burst = False
        self._handled: threading.Event | None = None

    def _get_terminal_size(self) -> tuple[int, int]:
        return within_limits(*super()._get_terminal_size())

    def start_application_mode(self) -> None:
        """Take over the terminal, which another program may have used before."""
        self.image.forget()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """Restore the terminal."""
        if self._mouse_pixels:
            self.write("\x1b[?1016l")
        super().stop_application_mode()

    def _run_input_thread(self) -> None:
        """Read input until the app ends; pass an error on to the app, which exits."""
        try:
            self.run_input_thread()
        except BaseException as error:
            self._app.call_later(self._app._handle_exception, error)

    def run_input_thread(self) -> None:
        """Read the terminal's input and post its events, and a message when the terminal is gone."""
        reader = TerminalInput(is_alt=self._is_alt)
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                reader.reports_size = self._in_band_window_resize
                if selector.select(_TICK):
                    try:
                        data = os.read(self.fileno, _READ)
                    except (BlockingIOError, InterruptedError):
                        continue
                    except OSError:
                        data = b""
                    if not data:
                        self.send_message(TerminalGone())
                        return
                    self._tell_read(reader.feed(data))
                self._tell(reader.tick())

    def _tell_read(self, found: Iterable[Message]) -> None:
        """Post the messages of one read."""
        for is_key, messages in groupby(found, key=lambda message: isinstance(message, Key)):
            if is_key:
                self._tell_keys([message for message in messages if isinstance(message, Key)])
            else:
                told = list(messages)
                if any(isinstance(message, Paste) for message in told):
                    # The terminal marks pasted text, so the keys after it are typed.
                    self._was_burst, self._key_time = False, 0.0
                self._tell(told)

    def _tell_keys(self, keys: Sequence[Key]) -> None:
        """Post keys; announce a burst first, and wait until a key is handled before the next is posted."""
        now = time.monotonic()
        goes_on = now - self._key_time < (BURST_GOES_ON if self._was_burst else _BURST)
        self._key_time, self._was_burst = now, len(keys) > 1 or goes_on
        if len(keys) > 1 or goes_on:
            self._tell([KeysAhead(keys, goes_on)])
        for key in keys:
            if len(keys) <= _PACED:
                # Also for single keys: the app may be busy, and the key before may close a screen, which would swallow
                # this one.
                self._wait_until_handled(now + _PACE_PATIENCE)
            if self.exit_event.is_set():
                # The terminal is lent to another program; these keys were not meant for later.
                return
            self._tell([key])
            if len(keys) <= _PACED:
                self._handled = threading.Event()
                self._tell([KeysHandled(self._handled.set)])

    def _is_alt(self, key: Key) -> bool:
        """True if alt with this key has a meaning at the focus; otherwise it was escape and a key."""
        app = self._app
        try:
            focused = app.focused
        except ScreenStackError:
            focused = None  # the first screen does not exist yet
        if isinstance(focused, (Input, TextArea)):
            # Editing keys of other programs; and escape would leave the text.
            return True
        # For alt+enter, among others, Textual names the key alone, which would lose the escape.
        return key.key.startswith("alt+") and isinstance(app, Shell) and app.keys.has(key.key)

    def _wait_until_handled(self, until: float) -> None:
        reached, self._handled = self._handled, None
        if reached is not None:
            self._wait(reached, until)

    def _wait(self, reached: threading.Event, until: float) -> None:
        while not reached.wait(_TICK) and not self.exit_event.is_set() and time.monotonic() < until:
            pass

    def _tell(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.process_message(message)
            self._ahead += 1
            if self._ahead >= _AHEAD:
                self._wait_for_app()

    def _wait_for_app(self) -> None:
        """Wait until the app and the focused widget have handled their messages, for a limited time."""
        self._ahead = 0
        reached = threading.Event()

        def pass_on() -> None:
            focused = self._app.focused
            if focused is None or not focused.call_later(reached.set):
                reached.set()

        if self._app.call_later(pass_on):
            # The widget may be removed before the callback runs.
            self._wait(reached, time.monotonic() + _PATIENCE)


class OutputStream:
    """Stream to a terminal that may be gone; output that fails is dropped.

    Args:
        stream: The stream.
        table: Replacements of characters, for :meth:`str.translate`; None for none.
    """

    def __init__(self, stream: TextIO, table: Mapping[int, str] | None = None) -> None:
        self._stream, self._table = stream, table

    def write(self, text: str) -> int:
        """Write the text; errors are ignored."""
        with suppress(OSError, ValueError):
            self._stream.write(text if self._table is None or text.isascii() else text.translate(self._table))
        return len(text)

    def flush(self) -> None:
        """Flush the stream; errors are ignored."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)


# ASCII output: the app's borders, bars and symbols, each replaced by one ASCII character of the same width. Letters of
# other scripts, which only the user's own text has, are left to the terminal.

#: Symbols that the app writes, each with the character below it.
SIGNS = dict(
    zip(
        "…–—−·•×°±≈≠≤≥∞✓✔✗✂●○◌◍■□‖◆◇▼▽▲▸▶▷◂‹◦▪⟨⟩›◀▾▴→←↑↓⏎↵⇥“”‘’\u00a0\u202f",
        "~----*x'~~!<>*++x%*ooo#o\"ogvv^>>><<o*<>><v^><^v$$>\"\"''  ",
        strict=True,
    )
)
_SHADES = {"░": ".", "▒": ":", "▓": "%"}
#: Blocks that fill no more than a thin edge of their cell.
_EDGES = {"▏": "|", "▎": "|", "▕": "|", "▁": "_", "▔": "-", "▂": "_"}


@cache
def ascii_table() -> dict[int, str]:
    """The table for :meth:`str.translate`: symbols, box drawing (U+2500), blocks (U+2580) and braille (U+2800)."""
    table = {ord(sign): replacement for sign, replacement in SIGNS.items()}
    table |= {code: _box(chr(code)) for code in range(0x2500, 0x2580)}
    table |= dict.fromkeys(range(9600, 9632), "#")
    table |= {ord(block): replacement for block, replacement in (_SHADES | _EDGES).items()}
    table |= dict.fromkeys(range(10241, 10496), ":")
    table[0x2800] = " "
    return table


def _box(character: str) -> str:
    name = unicodedata.name(character)
    sides = {side for side in ("HORIZONTAL", "VERTICAL", "LEFT", "RIGHT", "UP", "DOWN") if side in name.split()}
    if not sides & {"VERTICAL", "UP", "DOWN"}:
        return "-"
    return "+" if sides & {"HORIZONTAL", "LEFT", "RIGHT"} else "|"
