"""The queue in the app: its screen, and runs that are added to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.runs.record.sentences import brief_id
from core.text import one_line
from tui.controllers.consent import starts_all_the_same
from tui.controllers.desktop import Desktop
from tui.controllers.start_cards import StartCards
from tui.state import AppState, RunView

if TYPE_CHECKING:
    from core.config.schema import Config
    from core.runs.outlook.forecast import Unmet
    from core.runs.record.store import Run

ADD = "add"


class Queueing:
    """The controller of the queue.

    Args:
        cards: Knows the run of the configuration in the app.
        open_run: Shows a run.
    """

    def __init__(self, desktop: Desktop, state: AppState, cards: StartCards, open_run: Callable[[Run], None]) -> None:
        self._desktop, self._state, self._cards, self._open_run = desktop, state, cards, open_run

    def show(self) -> None:
        """Show the queue."""
        from tui.screens.queue import QueueScreen

        if not self._desktop.is_covered:
            # Its keys are where they are shown.
            self._desktop.clear_notices()
            self._desktop.open(QueueScreen(self.add_document), self._left)

    def _left(self, run: Run | None) -> None:
        if run is not None:
            self._open_run(run)

    async def add_document(self) -> str:
        """Add a run of the configuration in the app; returns what was done, as a sentence.

        Raises:
            UserError: If the configuration is not ready, or the queue cannot be written.
        """
        document = self._state.document
        if document is None:
            raise UserError("There is no configuration.", "Open one, or choose data to train on.")
        start = self._cards.of_document(document, document.validate())
        if not await self._agrees(start.config):
            return "Nothing is added."
        number = await asyncio.to_thread(_add, start.config, start.name, document.path)
        return f"Added as entry {number}, as the configuration is now."

    async def _agrees(self, config: Config) -> bool:
        """Whether its wishes for the night can be met, or the user agrees that they cannot.

        Raises:
            UserError: If the queue cannot be read.
        """
        return await starts_all_the_same(self._desktop, await asyncio.to_thread(_unmet, config))

    def offer(self, view: RunView, config: Config, name: str, source: Path | None) -> None:
        """Offer to let a run wait for the one that is on: two do not fit on one device."""
        from tui.screens.dialogs import queue_dialog

        def answered(answer: str | None) -> None:
            if answer == ADD:
                self._desktop.run(partial(self._add_and_start, config, name, source), "queue")

        self._desktop.open(queue_dialog(view, name), answered)

    async def _add_and_start(self, config: Config, name: str, source: Path | None) -> None:
        from core.queue.status import start_runner

        try:
            if not await self._agrees(config):
                return
            number = await asyncio.to_thread(_add, config, name, source)
            await asyncio.to_thread(start_runner)
        except UserError as error:
            self._desktop.fail("The run was not queued", error)
            return
        view = self._state.live_run
        after = f" when {brief_id(view.run.id)} has ended" if view is not None else " when the device is free"
        self._desktop.tell(one_line(f"Entry {number} of the queue: {name} starts{after}.", 200), seconds=6)


def _unmet(config: Config) -> Sequence[Unmet]:
    """The wishes that a run at the end of the queue cannot meet; blocks."""
    from core.commands.wishes import unmet_in_queue
    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import wants_plan

    return unmet_in_queue(config, Estimator()) if wants_plan(config) else ()


def _add(config: Config, name: str, source: Path | None) -> int:
    """Check what a run needs, and add it; blocks.

    Raises:
        UserError: If model or data would be refused, or the queue cannot be written.
    """
    from core.commands.train import check_data, check_model
    from core.queue import store
    from core.queue.entry import QueueEntry

    check_model(config)
    check_data(config)
    entry = QueueEntry(id=1, name=name, added=time.time(), source=str(source.absolute()) if source else "")
    (added,) = store.add([(entry, config)])
    return added.id
