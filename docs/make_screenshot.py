"""Makes ``docs/screenshot.svg``: the app itself, on a real run in training, with a question really answered.

Usage: ``python docs/make_screenshot.py RUN QUESTION ...``; the run is a live one in your own home. A run on a card
shows that card. A run on the processor gets a modeled one, warmed by ``tests/core/governor/card_model.py``.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.runs.record.events import Event, HardwareEvent
from core.runs.record.history import RunHistory
from core.runs.record.store import find_run
from tests.core.governor.card_model import CardModel
from tests.tui.scripted_run import GPU
from tui.app import LocaltuneApp

SIZE = (190, 48)
PATIENCE = 240.0


def model_the_card() -> None:
    """Show the modeled card in every reading of the processor."""
    card, apply = CardModel(tau=40.0), RunHistory.apply

    def modeled(history: RunHistory, event: Event) -> None:
        if isinstance(event, HardwareEvent) and all(device["kind"] == "cpu" for device in event.devices):
            card.run(max(event.t - (history.updated or event.t), 1.0), 0.9)
            warm = round(card.reading())
            device = replace(GPU, temperature_c=warm, memory_temperature_c=warm + 10, power_w=card.power)
            device = replace(device, temperature_margin_c=83 - warm, memory_used=3_100_000_000)
            event = replace(event, devices=[device.to_dict()], energy_wh=card.joules / 3600)
        apply(history, event)

    RunHistory.apply = modeled  # type: ignore[method-assign]


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

        def answers() -> int:
            return app.export_screenshot().replace("&#160;", " ").split("4 Chat")[-1].count("tok/s")

        await until(lambda: app.state.view is not None and app.desktop.panes.chat is not None)
        for question in questions:
            before = answers()
            app.main.query_one("PromptInput").focus()
            await pilot.press(*question, "enter")
            await until(lambda before=before: answers() > before)
        await pilot.press("escape", "3", "0")
        await pilot.pause(1.0)
        return app.export_screenshot(title="localtune-tui")


def main() -> None:
    """Write the picture beside this file."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    import sample_data

    model_the_card()
    picture = asyncio.run(shoot(find_run(sys.argv[1]).id, sys.argv[2:], sample_data.path("tickets.toml")))
    Path(__file__).with_name("screenshot.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
