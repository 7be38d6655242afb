"""Page of a download from a hub; no connection is made before the user agrees."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.content import Content

from core.hub.job import FetchPlan, fetch_job, hub_host
from core.hub_uri import HubEntry
from core.jobs.job import JobProgress
from core.jobs.running import RunningJob
from core.text import one_line, sanitize
from core.units import format_bytes
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.screens.job import progress_text

#: Bytes from which the size needs a question of its own.
LARGE = 100_000_000
#: Bytes per second, before any was measured.
_PACE = 5e6


class FetchPage(JobPage[JobProgress, FetchPlan]):
    """A download, with the question before it; ``enter``, which may still be down from the prompt before, agrees to
    nothing.

    Args:
        entry: The entry to download.
        why: The reason for the download, as a sentence.
        take: Uses what has been downloaded.
        asks_size: Always ask for confirmation of the size, however small.
    """

    width = 72
    yes = "y"
    takes = "use it"
    is_done_at_end = True

    def __init__(self, entry: HubEntry, why: str, take: Callable[[], object], *, asks_size: bool = False) -> None:
        super().__init__(RunningJob("download", one_line(str(entry), 60)), "Download")
        self._entry, self._why, self._take = entry, why, take
        self._least_asked = 0 if asks_size else LARGE
        self._fetch = fetch_job(entry, self._confirm)
        self._plan: FetchPlan | None = None
        self._agreed = threading.Event()

    @property
    def keeps(self) -> str:
        """The parts of it that are kept if it is ended now."""
        return "what has come is kept, and a later download goes on with it"

    @property
    def question(self) -> str:
        """The question about its size, while it is open."""
        return "download it" if self._plan is not None and not self._agreed.is_set() else ""

    def run(self, tell: Callable[[JobProgress], None]) -> FetchPlan:
        """Ask for the size, and download."""
        self._tell = tell
        tell(JobProgress(f"asking {hub_host()}"))
        return self._fetch.run(tell)

    def close(self) -> None:
        """End it; what has come is kept."""
        self._fetch.close()
        self._agreed.set()

    def agree(self) -> None:
        """Download."""
        self._agreed.set()

    def take(self) -> None:
        """Use what has been downloaded."""
        self._take()

    def _confirm(self, plan: FetchPlan) -> bool:
        """Ask about a large download; called in the thread of the download."""
        self.job.expected = plan.remaining / _PACE
        if plan.remaining >= self._least_asked:
            self._plan = plan
            self._tell(JobProgress("waiting for an answer"))
            self._agreed.wait()
        return True

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """The question before any connection is made, that about its size, the progress, or the end."""
        job, plan = self.job, self._plan
        if job.stage == "asked":
            return Content.assemble(
                f"{one_line(self._why, 400)}\n\n",
                "It can be downloaded from ",
                (hub_host(), "bold"),
                ", which then sees your address, what you ask for and, only if it demands one, your token.",
            )
        if job.result is not None:
            return Content(f"{self._entry} is on this machine.")
        if plan is not None and self.question:
            files = "1 file" if plan.files == 1 else f"{plan.files} files"
            here = plan.bytes - plan.remaining
            rest = f"; {format_bytes(here)} are here already" if here else ""
            return Content(sanitize(f"{self._entry} is {files}, {format_bytes(plan.bytes)}{rest}.\n{plan.reason}"))
        text = Content.assemble((f"{self._entry}\n\n", "bold"), progress_text(job, glyphs))
        progress = job.progress
        if progress is None or progress.done is None or progress.total is None:
            return text
        return text + Content(f"\n{format_bytes(progress.done)} of {format_bytes(progress.total)}")
