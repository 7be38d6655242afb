"""The server of the app: a helper process that is started, told of, and ended with the app."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from typing import Any

from core.errors import UserError
from core.helper import Helper, describe_end
from core.serve.options import PORT, ServerAddress
from core.text import one_line


class ServeJob:
    """A server in a helper process. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        target: A run, ``RUN`` or ``RUN@STEP``, or a model.
        port: The port; 0 for any that is free.
        command: The command line to run instead of the helper, for tests.
    """

    def __init__(self, target: str, port: int = PORT, command: list[str] | None = None) -> None:
        self._options = {"targets": [target], "port": port}
        self._command: str | list[str] = command or "core.serve"
        self._guard = threading.Lock()
        self._helper: Helper | None = None
        self._is_closed = False

    def run(self, ready: Callable[[ServerAddress], None], progress: Callable[[str], None]) -> None:
        """Serve until it is closed.

        Args:
            ready: Called once clients can connect.
            progress: Told in a few words what is being loaded; a sentence is a warning.

        Raises:
            UserError: If it cannot serve, or ends by itself.
        """
        with self._guard:
            if self._is_closed:
                return
            helper = self._helper = Helper(self._command)
        with helper:
            # One that has ended already reads nothing; how it ended is told below.
            with contextlib.suppress(OSError):
                helper.send(json.dumps(self._options).encode("ascii") + b"\n")
            for message in helper.answers():
                self._hear(message, ready, progress)
            status = helper.end()
        if not self._is_closed:
            raise UserError(f"The server {describe_end(status)}.", "Start it again.")

    def close(self) -> None:
        """End the server, and with it the engine that holds the model."""
        with self._guard:
            self._is_closed = True
            if self._helper is not None:
                self._helper.end()

    @staticmethod
    def _hear(message: Any, ready: Callable[[ServerAddress], None], progress: Callable[[str], None]) -> None:
        if "ready" in message:
            told = message["ready"]
            ready(ServerAddress(str(told["url"]), str(told["key"]), tuple(map(str, told["models"]))))
        elif "progress" in message:
            progress(one_line(str(message["progress"]), 200))
        elif "error" in message:
            raise UserError(one_line(str(message["error"])), one_line(str(message.get("hint", ""))))
