"""Sources of devices, and the thread that asks one which may never answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import psutil

from core.hardware.snapshot import Device

T = TypeVar("T")


class DeviceSource(Protocol):
    """A source of devices: a driver's library, or files of the system. Its calls may hang, so they belong in a
    :class:`Watched`."""

    @property
    def reason(self) -> str:
        """The reason why it has no devices, as a sentence; empty while it has some, or where none are missed."""

    def read(self, only: str | None = None) -> list[Device]:
        """Its devices in their current state; one that cannot be read has the reason in ``problem``.

        Args:
            only: The UUID of the one device to read; None: all.
        """


class Watched(Generic[T]):
    """The newest answer of something that may hang, asked in a daemon thread of its own: a call into a wedged driver
    never returns and cannot be interrupted.

    Args:
        make: Makes what is asked; called once, in the thread.
        name: Name of the thread.
        answered: Called after each answer.
    """

    def __init__(self, make: Callable[[], Callable[[], T]], name: str, answered: Callable[[], None]) -> None:
        self._make, self._name, self._answered = make, name, answered
        self._asked = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.answer: T | None = None
        """The newest answer; None before the first."""
        self.moment: float | None = None
        """When that was asked for (``time.monotonic``); None before the first."""
        self.failure = ""
        """Why the newest question has had no answer, in words; empty where it has had one."""
        self.is_pending = False
        """Whether a question is not answered yet."""

    def ask(self) -> None:
        """Ask, unless a question is not answered yet."""
        if self.is_pending or self._closed:
            return
        self.is_pending = True
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; it is not waited for, since it may hang."""
        self._closed = True
        self._asked.set()

    def _run(self) -> None:
        ask: Callable[[], T] | None = None
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closed:
                return
            moment = time.monotonic()
            try:
                ask = ask or self._make()
                self.answer, self.moment, self.failure = ask(), moment, ""
            except (OSError, ValueError, RuntimeError, psutil.Error) as error:
                # A sensor that fails now may answer next time; until then the last answer stands, with its age.
                self.failure = str(error)
            self.is_pending = False
            self._answered()
