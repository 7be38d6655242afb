"""Controller of jobs: exports, evaluations, downloads and others, which go on while the app is used."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.notifications import SeverityLevel

from core.text import one_line
from tui.jobs import NOTHING
from tui.main_screen import Desktop

if TYPE_CHECKING:
    from tui.jobs import JobPage
    from tui.screens.job import JobScreen

    AnyPage = JobPage[Any, Any]

#: Seconds from which the end of a job whose view is closed is told, and from which it calls for attention.
_TELLS_SECONDS, _CALLS_SECONDS = 3.0, 60.0


class Jobs:
    """Controller of jobs. They end with the app; one that has ended stays listed until its result has been seen.

    Args:
        app: The app, for its threads.
        desktop: The screens, notices and header, and the state, which has the jobs.
    """

    def __init__(self, app: App[Any], desktop: Desktop) -> None:
        self._app, self._desktop = app, desktop
        self._pages: list[AnyPage] = []
        self._told: set[AnyPage] = set()

    def begin(self, page: AnyPage) -> None:
        """Begin a job, in a thread."""
        self.follow(page)
        work = partial(page.job.run, page.run, partial(self.changed, page))
        self._app.run_worker(work, thread=True, group="job")

    def follow(self, page: AnyPage) -> None:
        """List a job that something else runs, which tells by :meth:`changed`."""
        page.job.begin()
        self._pages.append(page)
        self._list()

    def changed(self, page: AnyPage) -> None:
        """Show news of a job soon; for any thread."""
        if page not in self._told:
            self._told.add(page)
            with suppress(RuntimeError):  # the app has ended
                self._app.call_later(self._show, page)

    def _show(self, page: AnyPage) -> None:
        self._told.discard(page)
        if page not in self._pages:
            return
        view = self._view_of(page)
        if page.job.is_over:
            self._ended(page, view)
        elif view is not None:
            view.show()
        self._desktop.show_header()

    def _ended(self, page: AnyPage, view: JobScreen | None) -> None:
        job = page.job
        if job.stage == "canceled":
            self._forget(page)
            if view is not None:
                view.dismiss()
            # Not of a question that was answered with no, nor of an analysis, which begins again by itself.
            if page.keeps and not page.question:
                self._desktop.tell(one_line(f"{job.title} was canceled: {page.keeps}.", 300), seconds=6)
            return
        page.has_ended()
        sentence = one_line(str(job.error) if job.error is not None else page.outcome(), 300)
        if job.seconds >= _CALLS_SECONDS:
            self._desktop.call_for_attention(f"{job.title} has {'failed' if job.error else 'ended'}", sentence)
        if view is None:
            is_told = (job.seconds >= _TELLS_SECONDS or job.error is not None) and not page.is_in_sight()
            if not is_told or "app.jobs" not in page.shown_by:
                self._forget(page)
            if is_told:
                mark, end = ("✗", "has failed") if job.error is not None else ("✓", "is done")
                keys = ", then ".join(self._desktop.keys[name].display for name in page.shown_by)
                text = f"{mark} {one_line(job.title, 100)} {end}. {sentence} Press {keys}."
                severity: SeverityLevel = "error" if job.error is not None else "information"
                self._desktop.tell(" ".join(text.split()), severity=severity, seconds=10)
        elif page.is_done_at_end and job.error is None:
            view.dismiss()
            page.take()
        elif (screen := page.result_screen()) is not None:
            view.dismiss()
            self._desktop.open(screen, lambda _: self._left(page))
        else:
            view.show()

    # Views.

    def open(self, page: AnyPage) -> None:
        """Show a job; one that has not begun can be begun there."""
        from tui.screens.job import JobScreen

        if page.show_in_pane():
            self._left(page)
        else:
            self._desktop.open(page.result_screen() or JobScreen(page), lambda _: self._left(page))

    def show(self) -> None:
        """Show the job, or a list of them to choose from."""
        from tui.screens.choice import Choice, ChoiceDialog

        pages = list(self._pages)
        if self._desktop.is_covered:
            return
        if len(pages) == 1:
            self.open(pages[0])
        elif not pages:
            self._desktop.tell("No job is running. Exports, evaluations, downloads and self-tests are jobs.")
        else:
            choices = [
                Choice(str(place), str(place), one_line(page.job.title, 60), page.job.state)
                for place, page in enumerate(pages[:9], 1)
            ]
            self._desktop.open(
                ChoiceDialog("Jobs", "A number shows a job. They go on meanwhile.", *choices, is_harmless=True),
                lambda answer: self.open(pages[int(answer) - 1]) if answer else None,
            )

    def _view_of(self, page: AnyPage) -> JobScreen | None:
        from tui.screens.job import JobScreen

        views = [screen for screen in self._app.screen_stack if isinstance(screen, JobScreen)]
        return next((view for view in views if view.page is page), None)

    def _left(self, page: AnyPage) -> None:
        if page.job.is_over:
            self._forget(page)
        elif page.question:
            self.cancel(page)

    # Ends.

    def cancel(self, page: AnyPage) -> None:
        """End a job before it is done."""
        page.job.cancel()
        page.close()

    def _forget(self, page: AnyPage) -> None:
        with suppress(ValueError):
            self._pages.remove(page)
        self._list()

    def _list(self) -> None:
        self._desktop.state.jobs = [page.job for page in self._pages]
        self._desktop.show_header()

    def losses(self) -> list[str]:
        """Sentences about running jobs that are lost with the app."""
        return [
            f"{one_line(page.job.title, 100)} is running ({page.job.state}). Leaving cancels it"
            f"{f' and {page.loss}' if page.keeps == NOTHING else f'; {page.keeps}'}."
            for page in self._pages
            if page.job.stage == "on" and page.keeps
        ]

    def close(self) -> None:
        """End all jobs."""
        for page in self._pages:
            self.cancel(page)
