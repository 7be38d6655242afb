"""Controller of the API server, which lets other programs use a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App

from core.errors import UserError
from tui.bridge import Result
from tui.main_screen import Desktop
from tui.state import ServingView

if TYPE_CHECKING:
    from core.runs.record.store import Run
    from core.serve.job import ServeJob
    from core.serve.options import ServerAddress
    from tui.screens.serving import ServeScreen

    MakeServeJob = Callable[[str, Callable[[ServerAddress], None]], ServeJob]


class Serving:
    """Controller of the API server. There is at most one, in a helper process that ends with the app.

    Args:
        app: The app, for its messages and threads.
        desktop: The screens, notices and header, and the state, which has the server.
    """

    def __init__(self, app: App[str], desktop: Desktop) -> None:
        self._app, self._desktop, self._state = app, desktop, desktop.state
        self.make_job: MakeServeJob | None = None
        """Creates the job; None for the real one, which is imported when it is needed."""
        self._job: ServeJob | None = None

    def request(self, target: Run | Path | str) -> None:
        """Serve a model, or show the running server."""
        if self._state.serving is None or self._state.serving.error is not None:
            self._start(target)
        self._open()

    def _start(self, target: Run | Path | str) -> None:
        path = os.fspath(target if isinstance(target, (str, Path)) else target.path)
        name = Path(path).name
        self._state.serving = ServingView(name)
        self._desktop.show_header()
        if self.make_job is None:
            from core.serve.job import serve_job

            self.make_job = serve_job
        job: ServeJob = self.make_job(path, lambda address: self._post(job, address=address))
        self._job = job
        self._app.run_worker(partial(self._serve, job), thread=True, group="serve")

    def _serve(self, job: ServeJob) -> None:
        """Run the server; blocks until it ends."""
        from core.jobs.job import JobCancelledError

        try:
            job.run(lambda at: self._post(job, progress=at.activity))
        except JobCancelledError:
            self._post(job, is_over=True)
        except UserError as error:
            self._post(job, error=error)

    def _post(self, job: ServeJob, **news: Any) -> None:
        # News of a closed server are dropped.
        if job is self._job:
            with suppress(RuntimeError):  # the app has ended
                self._app.post_message(Result(partial(self._changed, **news)))

    def _changed(
        self,
        *,
        address: ServerAddress | None = None,
        progress: str = "",
        error: UserError | None = None,
        is_over: bool = False,
    ) -> None:
        """Show news of the server: its address once clients can connect, its progress, or its end."""
        view = self._state.serving
        if view is None:
            return
        if address is not None:
            view.address = address
        view.progress = progress
        if error is not None:
            view.error, self._job = error, None
        if is_over:
            self._state.serving = self._job = None
        self._desktop.show_header()
        if (screen := self._screen) is not None:
            screen.show(view)
        elif error is not None:
            self._desktop.warn("The model is no longer served", str(error))

    def _open(self) -> None:
        from tui.screens.serving import STOP, ServeScreen

        view = self._state.serving
        if view is None or self._desktop.is_covered:
            return

        def answered(answer: str | None) -> None:
            if answer == STOP:
                self.end()
                self._desktop.tell("The model is no longer served; its memory is free.")
            elif self._state.serving is not None and self._state.serving.error is not None:
                self._state.serving = None
                self._desktop.show_header()

        self._desktop.open(ServeScreen(view), answered)

    @property
    def _screen(self) -> ServeScreen | None:
        from tui.screens.serving import ServeScreen

        return self._desktop.find_screen(ServeScreen)

    def end(self) -> None:
        """End a running server, and update the header."""
        self.close()
        self._desktop.show_header()

    def close(self) -> None:
        """End a running server."""
        job, self._job, self._state.serving = self._job, None, None
        if job is not None:
            job.close()
