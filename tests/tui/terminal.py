"""The app in a real pseudo-terminal: started, typed at, resized, hung up, and its output read as a screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

#: Seconds without output, and without a thread that runs, after which an app has done what it was asked for: more than
#: it waits between two paints, and for the rest of a key's sequence.
REST = 0.15
ROOT = Path(__file__).resolve().parents[2]


def app_environment(home: Path) -> dict[str, str]:
    """Environment variables of an app with directories of its own.

    Args:
        home: Its home.
    """
    return {"LOCALTUNE_HOME": str(home), "XDG_CONFIG_HOME": str(home.parent / "config")}


class Terminal:
    """A child process in a pseudo-terminal of its own; its output is kept as bytes.

    Args:
        command: The command line.
        size: Columns and rows.
        environment: Variables on top of a small fixed set.
    """

    def __init__(
        self, command: Sequence[str], size: tuple[int, int] = (80, 24), environment: Mapping[str, str] | None = None
    ) -> None:
        self.size = size
        self.output = b""
        self.status: int | None = None
        self._screen = pyte.Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self._read_as_screen = 0
        variables = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/"),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self.started = time.monotonic()
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
                os.execvpe(command[0], list(command), variables)  # noqa: S606
            finally:
                os._exit(127)

    @classmethod
    def app(
        cls, *arguments: str, size: tuple[int, int] = (80, 24), environment: Mapping[str, str] | None = None
    ) -> Terminal:
        """A terminal with localtune-tui itself."""
        return cls([sys.executable, "-m", "tui", *arguments], size, environment)

    def pump(self, seconds: float = 0.05) -> bytes:
        """Read output for a number of seconds; empty when there is none, or when the child has ended."""
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self.descriptor, 1 << 16)
        except OSError:
            return b""
        self.output += data
        return data

    def wait_for(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Read output until a condition holds.

        Raises:
            AssertionError: If it does not in time; the screen is in the message.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not in time; the screen:\n{self.text}"
            self.pump()

    def wait_for_rest(self, seconds: float = 60.0) -> None:
        """Read output until the child writes none and does nothing, as after a key that has been answered.

        Raises:
            AssertionError: If it does not rest in time; the screen is in the message.
        """
        deadline = time.monotonic() + seconds
        since = time.monotonic()
        while time.monotonic() - since < REST:
            assert time.monotonic() < deadline, f"no rest; the screen:\n{self.text}"
            if self.pump(REST / 10) or self._is_at_work():
                since = time.monotonic()

    def _is_at_work(self) -> bool:
        """True if a thread of the child runs or waits for a core."""
        with contextlib.suppress(OSError):  # it has ended
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    if (thread / "stat").read_text().rpartition(")")[2].split()[0] in "RD":
                        return True
        return False

    def wait_for_text(self, text: str, seconds: float = 60.0) -> None:
        """Read output until a text is on the screen."""
        self.wait_for(lambda: text in self.text, seconds)

    @property
    def text(self) -> str:
        """The screen's text."""
        # Only when it is asked for: reading the output as a screen takes longer than writing it.
        unread, self._read_as_screen = self.output[self._read_as_screen :], len(self.output)
        self._stream.feed(unread)
        return "\n".join(self._screen.display)

    def press(self, keys: str, *, until: str = "") -> None:
        """Type keys, and wait until a text is on the screen."""
        os.write(self.descriptor, keys.encode())
        if until:
            self.wait_for_text(until)

    def resize(self, columns: int, rows: int) -> None:
        """Give it another size, as a window does that is dragged."""
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.signal(signal.SIGWINCH)
        # Output for the size before is no longer on the screen.
        self._read_as_screen = len(self.output)
        self._screen.resize(rows, columns)
        self._screen.reset()

    def signal(self, number: int) -> None:
        """Send a signal to the child."""
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """Close the terminal, as a broken connection does."""
        os.close(self.descriptor)
        self.descriptor = -1

    def has_ended(self) -> bool:
        """True if the child has ended; ``status`` then has its exit status."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait_for_end(self, seconds: float = 60.0) -> int:
        """Read output until the child has ended.

        Raises:
            AssertionError: If it does not go in time.
        """
        deadline = time.monotonic() + seconds
        while not self.has_ended():
            assert time.monotonic() < deadline, f"still there; the screen:\n{self.text}"
            if self.descriptor >= 0:
                self.pump()
            else:
                time.sleep(0.02)
        while self.descriptor >= 0 and self.pump():
            pass
        assert self.status is not None
        return self.status

    def close(self) -> None:
        """Kill the child, if it is still running."""
        with contextlib.suppress(ProcessLookupError):
            if not self.has_ended():
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
