"""Makes ``docs/screenshot.svg``: the app itself, on a real run, with a question really answered.

Usage: ``python docs/make_screenshot.py RUN [QUESTION ...]``; the run is one in your own home.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

from core.runs.record.store import find_run
from tui.app import LocaltuneApp

SIZE = (190, 48)
PATIENCE = 120.0


async def shoot(run: str, questions: list[str], config: Path) -> str:
    """Open a run, ask, and return the picture."""
    app = LocaltuneApp(config, run=run)
    async with app.run_test(size=SIZE, notifications=False) as pilot:

        async def until(condition: Callable[[], object]) -> None:
            deadline = time.monotonic() + PATIENCE
            while not condition():
                if time.monotonic() > deadline:
                    raise SystemExit("The app did not get there in time.")
                await pilot.pause(0.1)

        await until(lambda: app.state.view is not None and app.desktop.panes.chat is not None)
        for question in questions:
            app.main.query_one("PromptInput").focus()
            await pilot.press(*question, "enter")
            await until(lambda: "tok/s" in app.export_screenshot().replace("&#160;", " ").split("4 Chat")[-1])
        await pilot.press("escape", "3", "0")
        await pilot.pause(1.0)
        return app.export_screenshot(title="localtune-tui")


def main() -> None:
    """Write the picture beside this file."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    import sample_data

    run = find_run(sys.argv[1])
    picture = asyncio.run(shoot(run.id, sys.argv[2:], sample_data.path("tickets.toml")))
    Path(__file__).with_name("screenshot.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
