"""Start card: a run as it would start now; only enter starts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Literal

from textual import events, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.worker import get_current_worker

from core.analysis.job import AnalysisJob
from core.analysis.result import Analysis
from core.errors import UserError
from core.jobs.job import JobCancelledError, JobDiedError, JobProgress
from core.models.architecture.measuring import telling
from core.text import one_line
from tui.keys import bindings
from tui.screens.overlay import Overlay
from tui.screens.start.summary import (
    Found,
    SeenRows,
    Start,
    StartPlan,
    StartRows,
    analysis_job,
    card_lines,
    find_flaw,
    find_warnings,
    hint_keys,
)
from tui.shell import shell_of
from tui.widgets.forms.ask_bar import AnswerKeys
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

#: The answers of a card; None where the user goes back.
Answer = Literal["start", "rows", "options", "former"]
#: Columns of the card and of its frame.
_WIDTH, _FRAME = 92, 6
#: Seconds between two polls of an analysis by another part of the app.
LOOK_SECONDS = 0.25

#: Finds the rows of a run elsewhere in the app; None if the card must analyze them itself.
Look = Callable[[Start], SeenRows | None]
#: Estimates memory and time of a run, in a thread.
Planner = Callable[[Start, Analysis | None, int | None, bool], StartPlan]


class StartCard(Overlay[Answer]):
    """Summary of a run before it starts; unknown facts are filled in later without moving a line.

    Args:
        start: The run.
        look: Finds its rows elsewhere in the app.
        planner: Estimates its memory and time.
        is_settled: The configuration is complete; otherwise a start waits for :meth:`show` with a settled one.
        choose_preset: Opens the presets, which change the configuration below the card.
    """

    DEFAULT_CSS = style_of("StartCard")
    SCOPE = "start"
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("start")]

    def __init__(
        self,
        start: Start,
        look: Look,
        planner: Planner,
        *,
        is_settled: bool = True,
        choose_preset: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.start = start
        self.found = Found()
        self._look, self._planner = look, planner
        self._is_settled, self._choose_preset = is_settled, choose_preset
        self._waits_to_start = False
        self._is_text = False
        self._typed = AnswerKeys()
        self._box, self._block = Vertical(), TextBlock()
        self._job: AnalysisJob | None = None
        self._seen: SeenRows | None = None
        self._hints: list[str] = []

    def compose(self) -> ComposeResult:
        """A single block of lines, with the facts known so far."""
        self._block.show(self._content(min(_WIDTH, round(0.98 * self.app.size.width)) - _FRAME))
        with self._box:
            yield self._block

    def on_mount(self) -> None:
        """Start to find out the missing facts."""
        self.set_interval(LOOK_SECONDS, self._look_again)
        self._find()
        self.call_after_refresh(self._typed.painted)

    def on_unmount(self) -> None:
        """End the analysis."""
        self._end_job()

    def on_resize(self) -> None:
        """Cut the lines to the new width."""
        self.call_after_refresh(self._show)

    def on_key(self, event: events.Key) -> None:
        """Accept enter right after the key that opened the card, but not at the end of a typed word."""
        opener = [key.strip() for key in shell_of(self).keys["app.start"].keys.split(",")]
        if self._typed.is_read:
            counts = (event.is_printable and event.key not in opener) or event.key == "enter"
            if counts and not self._typed.is_answer(event.key in self.active_bindings, event.time):
                event.stop()
                event.prevent_default()
            return
        if event.is_printable and event.key not in opener:
            self._is_text = True
        if self._is_text and event.key != "escape":
            event.stop()
            event.prevent_default()

    def show(self, start: Start, *, is_settled: bool = True) -> None:
        """Show the run again after a change of its configuration."""
        changed = start.config != self.start.config
        self.start, self._is_settled = start, is_settled
        if changed and self.is_mounted:
            self._find()
        self._show()
        if is_settled and self._waits_to_start and not self.found.rows.refusal:
            self.dismiss("start")

    # Facts.

    def _find(self) -> None:
        """Look up all facts again; the old ones stay on the screen until then."""
        self._end_job()
        goes_on = self.start.continuation is not None
        self._seen = seen = None if goes_on else self._look(self.start)
        self.found = replace(self.found, rows=self._known_rows(seen), plan=None)
        if seen is None and not goes_on:
            self._analyze()
        self._check_base()
        self._work_out(seen.analysis if seen is not None else None)
        self._show()

    def _known_rows(self, seen: SeenRows | None) -> StartRows:
        if seen is None:
            return StartRows()
        if seen.refusal:
            return StartRows(refusal=seen.refusal)
        if seen.analysis is not None:
            return StartRows.analyzed(seen.analysis)
        return StartRows.counted(seen.count, self.start.config, seen.progress)

    def _look_again(self) -> None:
        """Poll the app for the rows, until its analysis is over."""
        before = self._seen
        if before is None or before.is_over or (seen := self._look(self.start)) is None or seen == before:
            return
        self._seen = seen
        self.found = replace(self.found, rows=self._known_rows(seen))
        if seen.analysis is not None or seen.count != before.count:
            self._work_out(seen.analysis)
        self._show()

    @work(exclusive=True, group="start-rows")
    async def _analyze(self) -> None:
        """Analyze the rows in a job of the card."""
        start = self.start
        self._job = job = await asyncio.to_thread(analysis_job, start.config)

        def report(progress: JobProgress) -> None:
            self.call_later(self._progressed, job, progress)

        try:
            analysis = await asyncio.to_thread(job.run, report)
            rows = StartRows.analyzed(analysis)
        except JobCancelledError:
            return
        except JobDiedError as error:
            # A crash of the job says nothing about the rows.
            rows = StartRows(progress=f"✗ {error}")
        except UserError as error:
            rows = StartRows(refusal=str(error))
        if job is self._job:
            self._know(rows=rows)
            if rows.is_exact:
                self._work_out(analysis)

    def _progressed(self, job: AnalysisJob, progress: JobProgress) -> None:
        if job is self._job and not self.found.rows.is_exact:
            share = f" {progress.share:.0%}" if progress.share is not None else ""
            known = self.found.rows
            if progress.activity == "reading" and progress.total:
                known = StartRows.counted(progress.total, self.start.config)
            self._know(rows=replace(known, progress=f"{progress.activity}{share} …"))

    def _end_job(self) -> None:
        if self._job is not None:
            self._job.close()
            self._job = None

    @work(exclusive=True, group="start-base")
    async def _check_base(self) -> None:
        """Check the files of the base model."""
        config = self.start.config
        flaw = await asyncio.to_thread(find_flaw, config)
        if config == self.start.config:
            self._know(flaw=flaw)

    @work(exclusive=True, group="start-plan")
    async def _work_out(self, analysis: Analysis | None) -> None:
        """Work out memory, time and warnings."""
        config, used = self.start.config, self.found.rows.used
        worker = get_current_worker()
        # First a rough bound, because measuring the model takes seconds.
        for measures in (False, True):
            with telling(is_wanted=lambda: not worker.is_cancelled):
                plan = await asyncio.to_thread(self._planner, self.start, analysis, used, measures)
            if config == self.start.config:
                self._know(plan=plan)
            if not plan.is_rough:
                break
        # Warnings come last: they matter less than memory and time, and may wait for the driver.
        with suppress(UserError):
            warnings = await asyncio.to_thread(find_warnings, config, used)
            if config == self.start.config:
                self._know(warnings=warnings)

    # Display.

    def _know(self, **facts: Any) -> None:
        """Show facts that have been found out."""
        self.found = replace(self.found, **facts)
        self._show()

    def _show(self) -> None:
        # The answer may arrive after the card has been left.
        if not self.is_mounted or self._is_left:
            return
        shell, box = shell_of(self), self._box
        if (width := box.content_size.width) > 0:
            self._block.show(self._content(width))
        if box.border_title != self.start.title:
            box.border_title = Content(one_line(self.start.title, 60))
        if (hints := list(hint_keys(self.start, self.found.rows))) != self._hints:
            self._hints = hints
            box.border_subtitle = Content(shell.keys.hints(hints))

    def _content(self, width: int) -> Content:
        shell = shell_of(self)
        lines = card_lines(self.start, self.found, shell.keys, width, shell.clock())
        if self._waits_to_start and not self.found.rows.refusal:
            back = shell.keys["start.back"].display
            lines[-1] = Content.styled(f"◌ starts as soon as the preset is chosen; {back} takes it back", "$near")
        return Content("\n").join(lines)

    # Actions.

    def action_begin(self) -> None:
        """Start the run once its configuration is complete. Without usable rows nothing starts; the card shows why."""
        if self.found.rows.refusal:
            return
        if self._is_settled:
            self.dismiss("start")
        else:
            self._waits_to_start = True
            self._show()

    def action_back(self) -> None:
        """Cancel a pending start, or leave the card."""
        if self._waits_to_start:
            self._waits_to_start = False
            self._show()
        else:
            self.dismiss(None)

    def action_presets(self) -> None:
        """Choose another preset."""
        if self.start.has_form and self._choose_preset is not None:
            self._choose_preset()

    def action_go(self, where: Answer) -> None:
        """Leave the card for the rows, the options, or the former configuration."""
        if f"start.{where}" in self._hints:
            self.dismiss(where)
