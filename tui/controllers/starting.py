"""Controller of starts: the start card, the start of a worker, and the queue for a second run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from core.runs.record.sentences import brief_id, slug_of
from core.text import one_line
from tui.bridge import Bridge
from tui.controllers.configuration import Configuration
from tui.controllers.desktop import Desktop
from tui.controllers.runs import Runs
from tui.state import RunView

if TYPE_CHECKING:
    from core.analysis.result import Analysis
    from core.config.document import ConfigDocument
    from core.config.facts import Unkept
    from core.config.schema import Config
    from core.runs.record.store import Run
    from tui.screens.start.card import StartCard
    from tui.screens.start.summary import SeenRows, Start, StartPlan


class Starting:
    """Controller of starts: checks the configuration, opens the start card, and starts the worker.

    Args:
        desktop: The panes, dialogs and notices, and the state of the app.
        bridge: The threads that start a worker.
        configuration: The controller of the configuration.
        runs: The controller of runs.
    """

    def __init__(self, desktop: Desktop, bridge: Bridge, configuration: Configuration, runs: Runs) -> None:
        self._desktop, self._state, self._keys = desktop, desktop.state, desktop.keys
        self._bridge, self._configuration, self._runs = bridge, configuration, runs

    # Requests.

    def start_in(self, pane: str) -> None:
        """Offer a run of the configuration; in the Train pane, a new start of the ended run."""
        view = self._state.view
        if pane == "train" and view is not None and not view.is_live:
            self.start_again(view.run)
        else:
            self.start()

    def start(self) -> None:
        """Check the configuration, and offer a run of it."""
        document = self._state.document
        if document is None or (self._state.is_starting and self._refuse_second_run()):
            return
        form = self._desktop.panes.config
        problems = form.check() if form is not None else document.problems()
        if problems:
            name = next(iter(problems))
            if form is not None and (name != "data.train" or document.get(name) is not None):
                self._desktop.show_pane("config")
                form.refuse_start()
                return
            self._explain_missing_data()
            self._desktop.show_pane("data")
            return
        try:
            config = document.validate()
        except UserError as error:
            self._desktop.fail("The configuration is not ready", error)
            return
        self._offer(self._of_document(document, config), document.path)

    def start_again(self, run: Run) -> None:
        """Offer a new run with an ended run's ``run.toml``."""
        if self._state.is_starting and self._refuse_second_run():
            return
        from core.config.document import ConfigDocument
        from core.presets.provenance import find_provenance
        from core.runs.catalog.earlier import Origin
        from tui.panes.config.model import ConfigModel
        from tui.screens.start.summary import Start

        name = brief_id(run.id)
        try:
            document = ConfigDocument.load(run.config_path)
            if sentence := next(iter(ConfigModel(document).problems().values()), ""):
                raise UserError(sentence, "Edit its configuration, and start that.")
            config = document.validate()
        except UserError as error:
            self._desktop.fail(f"{name} cannot be started again", error)
            return
        notes = (self._tell_edits(run),) if self._has_edits(run) else ()
        values = find_provenance(config, ConfigDocument(), origin=Origin.of(run))
        start = Start(config, slug_of(run.id), values=values, notes=notes, title=f"Start {name} again")
        self._offer(start)

    def start_sample(self) -> None:
        """Offer a run of the sample data."""
        if self._refuse_second_run():
            return
        from core.config.document import ConfigDocument
        from core.presets.provenance import find_provenance
        from sample_data import path
        from tui.screens.start.summary import Start

        try:
            document = ConfigDocument.load(path("tickets.toml"))
            config = document.validate()
        except UserError as error:
            self._desktop.fail("The sample could not be started", error)
            return
        values = find_provenance(config, document, saved_text=document.dumps())
        start = Start(config, "tickets", values=values, title="Start the sample run")
        self._open_card(start)

    def continue_run(self, asked: Run | None = None) -> None:
        """Offer to continue an ended run; the shown one by default."""
        run = asked or (self._state.view.run if self._state.view is not None else None)
        if run is None or self._refuse_second_run():
            return
        from tui.screens.start.summary import Start, check_continuable, find_continuation

        try:
            checkpoint, config = check_continuable(run), run.config()
        except UserError as error:
            self._desktop.fail("The run could not be continued", error)
            return
        start = Start(config, run.id, continuation=find_continuation(run, checkpoint), title="Continue a run")
        self._open_card(start, run)

    def _has_edits(self, run: Run) -> bool:
        """True if the app's configuration is that of the run, and was edited since."""
        from core.config.compare import differences, holding_values

        document, state = self._state.document, self._state
        if document is None or state.view is None or state.view.run != run:
            return False
        return bool(state.config_name and state.is_of_config and differences(holding_values(document), run.values()))

    def _tell_edits(self, run: Run) -> str:
        config, start = self._keys["app.config"].display, self._keys["app.start"].display
        name = one_line(self._state.config_name, 60)
        return f"{name} has other values by now than {brief_id(run.id)}: {config}, then {start} starts those."

    def _explain_missing_data(self) -> None:
        pane = self._desktop.panes.data
        use, start = self._keys["data.train"].display, self._keys["app.start"].display
        if pane is not None and pane.view is not None:
            text = f"{use} uses {one_line(pane.view.path.name, 60)} for training, and {start} starts then."
        else:
            text = f"{self._keys['data.open'].display} opens a file, {use} uses it for training, {start} starts."
        self._desktop.warn("There is nothing to learn from yet", text)

    def _refuse_second_run(self) -> bool:
        """Refuse a second live run with a warning, as two do not fit on a device; returns True if refused."""
        view = self._state.live_run
        if self._state.is_starting:
            # The key was pressed twice for the same start.
            self._desktop.warn("A run is starting", "It is shown as soon as its worker is there.")
            return True
        if view is not None:
            self._desktop.warn(
                "A run is on", f"{view.run.id} is {view.state.state}. Stop it before another one starts."
            )
        return view is not None

    # The start card.

    def _offer(self, start: Start, source: Path | None = None) -> None:
        """Open the start card of a run; while another run is live, offer the queue."""
        view = self._state.live_run
        if view is not None:
            self._offer_to_wait(view, start.config, start.name, source)
        else:
            self._open_card(start)

    def _open_card(self, start: Start, run: Run | None = None) -> None:
        """Open the start card of a run at once, so that it gets keys typed ahead.

        Args:
            start: The run.
            run: The run to continue; None for a new run.
        """
        from tui.screens.start.card import StartCard

        if self._desktop.find_screen(StartCard) is not None:
            # A second request before the card was painted.
            return

        def plan(shown: Start, analysis: Analysis | None, used: int | None, measures: bool) -> StartPlan:
            return _plan(shown.config, analysis, used, run, measures)

        is_settled = not start.has_form or not self._configuration.presets.is_pending
        card = StartCard(start, self._seen, plan, is_settled=is_settled, choose_preset=self._choose_preset)

        def answered(answer: str | None) -> None:
            if answer == "start":
                self._begin(card, run)
            elif answer == "rows":
                self._show_rows()
            elif answer == "options":
                self._show_options()
            elif answer == "former":
                self._configuration.bring_back()

        # Notices would cover the card's keys, and the card repeats them.
        self._desktop.clear_notices()
        self._desktop.open(card, answered)

    def _begin(self, card: StartCard, run: Run | None) -> None:
        """Start the run of a card; ask first if it cannot meet a wish about its time."""
        from core.runs.outlook.forecast import wants_plan

        config, plan = card.start.config, card.found.plan
        if run is not None or not wants_plan(config):
            self._start(card.start, run)
            return

        async def ask() -> None:
            from core.commands.starting import unmet_now

            is_known = plan is not None and (plan.pace_of or plan.is_planned)
            unmet = plan.unmet if plan is not None and is_known else await asyncio.to_thread(unmet_now, config)
            if await self._agrees_to(unmet):
                self._start(card.start)

        self._desktop.run(ask, "wishes")

    async def _agrees_to(self, unmet: Sequence[Unkept]) -> bool:
        """Ask whether to start a run with unmet wishes; only if an earlier run measured the pace."""
        from tui.screens.dialogs import YES, unmet_dialog

        measured = [wish for wish in unmet if wish.is_measured]
        if not measured:
            return True
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answered(chosen: str | None) -> None:
            if not answer.done():
                answer.set_result(chosen == YES)

        self._desktop.open(unmet_dialog(measured), answered)
        return await answer

    def _of_document(self, document: ConfigDocument, config: Config) -> Start:
        """The run of the app's configuration.

        Args:
            document: The configuration.
            config: The same configuration, validated.
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
            is_choosing=self._configuration.presets.is_pending,
            former=state.former,
            notes=tuple(notes),
            has_form=True,
        )

    def follow(self) -> None:
        """Update the open card after a change of the configuration."""
        if not self._desktop.is_covered:
            return
        from tui.screens.start.card import StartCard

        card, document = self._desktop.find_screen(StartCard), self._state.document
        if card is None or document is None or not card.start.has_form:
            return
        # While a value is invalid, the card keeps the last valid configuration.
        with suppress(UserError):
            start = self._of_document(document, document.validate())
            card.show(start, is_settled=not self._configuration.presets.is_pending)

    def _seen(self, start: Start) -> SeenRows | None:
        """The facts that the Data pane knows about a run's rows."""
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

    # The start.

    def _start(self, start: Start, run: Run | None = None) -> None:
        """Start the worker of a card's run, or of the run that it continues, once the chat has freed its memory."""
        if self._refuse_second_run():
            return

        async def work() -> None:
            if (pane := self._desktop.panes.chat) is not None:
                await pane.release()
            if run is None:
                self._bridge.start(start.config, start.name, self._runs.started)
            else:
                self._bridge.continue_run(run, self._runs.started)

        if run is None:
            self._desktop.show_pane("train")
        self._state.expect_run()
        self._desktop.run(work, "start")

    # The queue.

    def show_queue(self) -> None:
        """Show the queue."""
        from tui.screens.queue import QueueScreen

        def left(run: Run | None) -> None:
            if run is not None:
                self._runs.open(run)

        if not self._desktop.is_covered:
            # Notices would cover its keys.
            self._desktop.clear_notices()
            self._desktop.open(QueueScreen(self.add_to_queue), left)

    async def add_to_queue(self) -> str:
        """Add a run of the app's configuration to the queue; returns a message with the result.

        Raises:
            UserError: If the configuration is not ready, or the queue cannot be written.
        """
        document = self._state.document
        if document is None:
            raise UserError("There is no configuration.", "Open one, or choose data to train on.")
        start = self._of_document(document, document.validate())
        number = await self._add(start.config, start.name, document.path)
        return f"Added as entry {number}, as the configuration is now." if number is not None else "Nothing is added."

    async def _add(self, config: Config, name: str, source: Path | None) -> int | None:
        """Add a run to the queue; returns its number, None if the user does not agree to unmet wishes."""
        if not await self._agrees_to(await asyncio.to_thread(_unmet_in_queue, config)):
            return None
        return await asyncio.to_thread(_add_entry, config, name, source)

    def _offer_to_wait(self, view: RunView, config: Config, name: str, source: Path | None) -> None:
        """Offer to queue a run behind the live one, as two do not fit on a device."""
        from tui.screens.dialogs import ADD, queue_dialog

        def answered(answer: str | None) -> None:
            if answer == ADD:
                self._desktop.run(partial(self._add_and_start, config, name, source), "queue")

        self._desktop.open(queue_dialog(view, name), answered)

    async def _add_and_start(self, config: Config, name: str, source: Path | None) -> None:
        from core.queue.status import start_runner

        try:
            if (number := await self._add(config, name, source)) is None:
                return
            await asyncio.to_thread(start_runner)
        except UserError as error:
            self._desktop.fail("The run was not queued", error)
            return
        view = self._state.live_run
        after = f" when {brief_id(view.run.id)} has ended" if view is not None else " when the device is free"
        self._desktop.tell(one_line(f"Entry {number} of the queue: {name} starts{after}.", 200), seconds=6)


def _plan(config: Config, analysis: Analysis | None, used: int | None, run: Run | None, measures: bool) -> StartPlan:
    """The plan of a run's memory and time; blocks."""
    from dataclasses import replace

    from core.runs.outlook.estimate import PaceBook
    from tui.screens.start.summary import find_pace, find_plan

    plan = find_plan(config, analysis, used, PaceBook(), "measured" if measures else "known")
    return plan if run is None else replace(plan, seconds_per_step=find_pace(run), unmet=())


def _unmet_in_queue(config: Config) -> Sequence[Unkept]:
    """The unmet wishes of a run at the end of the queue; blocks.

    Raises:
        UserError: If the queue cannot be read.
    """
    from core.commands.starting import unmet_in_queue
    from core.queue.estimate import Estimator
    from core.runs.outlook.forecast import wants_plan

    return unmet_in_queue(config, Estimator()) if wants_plan(config) else ()


def _add_entry(config: Config, name: str, source: Path | None) -> int:
    """Check model and data of a run, and add it to the queue; blocks.

    Raises:
        UserError: If model or data are refused, or the queue cannot be written.
    """
    from core.commands.train import check_data, check_model
    from core.queue import store
    from core.queue.entry import QueueEntry

    check_model(config)
    check_data(config)
    entry = QueueEntry(id=1, name=name, added=time.time(), source=str(source.absolute()) if source else "")
    (added,) = store.add([(entry, config)])
    return added.id
