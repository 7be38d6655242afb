"""The app with an internal error, raised by ``0``: ``python -m tests.tui.broken_app MISTAKE [ARGUMENTS]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tui.__main__ import main
from tui.app import LocaltuneApp
from tui.widgets.status_bar import StatusBar


class Panic(BaseException):
    """An exception as a library in another language raises it."""


def fail(*_: object, **__: object) -> None:
    rows = ["the rows of somebody"]
    token = os.environ.get("HF_TOKEN", "")
    raise RuntimeError(f"cannot reach the hub with {token} for {len(rows)} rows\x1b[31m")


def fail_in_thread(app: LocaltuneApp) -> None:
    app.run_worker(fail, thread=True)


def fail_in_drawing(app: LocaltuneApp) -> None:
    StatusBar.render_line = fail  # type: ignore[method-assign,assignment]
    app.main.query_one(StatusBar).refresh()


def panic(_: LocaltuneApp) -> None:
    raise Panic("index out of range")


def fail_twice(app: LocaltuneApp) -> None:
    app.drafts.look = fail  # type: ignore[method-assign]
    app.drafts.close = fail  # type: ignore[method-assign]
    fail()


def fail_unreadably(_: LocaltuneApp) -> None:
    class UnreadableError(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    raise UnreadableError


def work_without_end(app: LocaltuneApp) -> None:
    def work() -> None:
        while True:
            pass

    app.run_worker(work, thread=True)
    app.notify("The work has begun.")


MISTAKES: dict[str, Callable[[LocaltuneApp], None]] = {
    "handler": fail,
    "thread": fail_in_thread,
    "drawing": fail_in_drawing,
    "panic": panic,
    "twice": fail_twice,
    "unreadable": fail_unreadably,
    "endless": work_without_end,
}

if __name__ == "__main__":
    LocaltuneApp.action_tile = MISTAKES[sys.argv[1]]  # type: ignore[method-assign,assignment]
    sys.exit(main(sys.argv[2:]))
