"""Start cards: opened before a run starts, kept up to date, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from tui.controllers.beginnings import Beginnings
from tui.controllers.consent import starts_all_the_same
from tui.controllers.desktop import Desktop
from tui.state import AppState

if TYPE_CHECKING:
    from core.analysis.result import Analysis
    from core.config.document import ConfigDocument
    from core.config.schema import Config
    from core.runs.outlook.forecast import Unmet
    from core.runs.record.store import Run
    from tui.screens.start.card import StartCard
    from tui.screens.start.summary import SeenRows, Start, StartPlan


class StartCards:
    """The controller of start cards.

    Args:
        beginnings: Tells whether a preset is still being chosen for the configuration in the app.
        bring_back: Brings the former configuration back.
    """

    def __init__(
        self, desktop: Desktop, state: AppState, beginnings: Beginnings, bring_back: Callable[[], None]
    ) -> None:
        self._desktop, self._state, self._beginnings, self._bring_back = desktop, state, beginnings, bring_back

    def open(self, start: Start, go: Callable[[Config], None], *, run: Run | None = None) -> None:
        """Open the card of a run; at once, so that keys typed ahead are for it.

        Args:
            start: The run.
            go: Starts it, with the configuration as the card shows it.
            run: The run that is continued; None for a new one.
        """
        from tui.screens.start.card import StartCard

        if self._desktop.find_screen(StartCard) is not None:
            # A request that was made twice, before its card could be seen.
            return

        def plan(shown: Start, analysis: Analysis | None, used: int | None, measures: bool) -> StartPlan:
            return _plan(shown.config, analysis, used, run, measures)

        is_settled = not start.has_form or not self._beginnings.is_pending
        card = StartCard(start, self._seen, plan, is_settled=is_settled, choose_preset=self._choose_preset)

        def answered(answer: str | None) -> None:
            if answer == "start":
                self._start(card, go)
            elif answer == "rows":
                self._show_rows()
            elif answer == "options":
                self._show_options()
            elif answer == "former":
                self._bring_back()

        # The card has their news, and its keys are where they are shown.
        self._desktop.clear_notices()
        self._desktop.open(card, answered)

    def _start(self, card: StartCard, go: Callable[[Config], None]) -> None:
        """Start the run of a card; where its wishes for the night cannot be met, once the user agrees to that."""
        from core.runs.outlook.forecast import wants_plan

        config, plan = card.start.config, card.found.plan
        if card.start.continuation is not None or not wants_plan(config):
            go(config)
            return

        async def ask() -> None:
            is_known = plan is not None and (plan.pace_of or plan.is_planned)
            wishes = plan.unmet if plan is not None and is_known else await asyncio.to_thread(_unmet, config)
            if await starts_all_the_same(self._desktop, wishes):
                go(config)

        self._desktop.run(ask, "wishes")

    def of_document(self, document: ConfigDocument, config: Config) -> Start:
        """The run of the configuration in the app.

        Args:
            document: The configuration.
            config: The same, checked.
        """
        from core.presets.provenance import find_provenance
        from core.runs.catalog.earlier import run_name
        from tui.screens.start.summary import Start

        path, state = document.path, self._state
        notes: list[str] = []
        if state.is_dirty and path is not None:
            notes.append(f"The values are as edited; {path.name} does not have them until they are saved.")
        return Start(
            config,
            path.stem if path is not None else run_name(document, state.origin),
            values=find_provenance(config, document, origin=state.origin, saved_text=state.saved_text),
            is_choosing=self._beginnings.is_pending,
            former=state.former,
            notes=tuple(notes),
            has_form=True,
        )

    def follow(self) -> None:
        """Show the configuration in the app as it is now on the open card, if that is about it."""
        if not self._desktop.is_covered:
            return
        from tui.screens.start.card import StartCard

        card, document = self._desktop.find_screen(StartCard), self._state.document
        if card is None or document is None or not card.start.has_form:
            return
        # While a value is wrong, the card keeps the one before.
        with suppress(UserError):
            card.show(self.of_document(document, document.validate()), is_settled=not self._beginnings.is_pending)

    def _seen(self, start: Start) -> SeenRows | None:
        """The rows of a run as the Data pane shows them."""
        pane = self._desktop.panes.data
        if pane is None or not start.has_form or len(start.train) != 1:
            return None
        return pane.seen(Path(start.train[0]))

    def _choose_preset(self) -> None:
        if (form := self._desktop.panes.config) is not None:
            self._desktop.run(form.action_presets, "start-preset")

    def _show_rows(self) -> None:
        self._desktop.show_pane("data")
        if (pane := self._desktop.panes.data) is not None:
            pane.action_next_problem(1)

    def _show_options(self) -> None:
        self._desktop.show_pane("config")
        if (form := self._desktop.panes.config) is not None:
            form.show_warning()


def _plan(config: Config, analysis: Analysis | None, used: int | None, run: Run | None, measures: bool) -> StartPlan:
    """What a run will take; blocks."""
    from dataclasses import replace

    from core.runs.outlook.estimate import PaceBook
    from tui.screens.start.finding import find_pace, find_plan

    plan = find_plan(config, analysis, used, PaceBook(), "measured" if measures else "known")
    return plan if run is None else replace(plan, seconds_per_step=find_pace(run), unmet=())


def _unmet(config: Config) -> Sequence[Unmet]:
    """The wishes that cannot be met, of a run that starts before its card has worked that out; blocks."""
    from core.commands.wishes import unmet_now

    return unmet_now(config)
