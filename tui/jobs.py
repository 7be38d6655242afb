"""Jobs of the app, with the texts of their views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic

from textual.content import Content
from textual.screen import Screen

from core.jobs.job import ProgressType, ResultType
from core.jobs.running import RunningJob
from core.text import one_line
from tui.glyphs import GlyphSet

#: Nothing is kept of a job that is ended before it is done.
NOTHING = "nothing of it is kept"


class JobPage(Generic[ProgressType, ResultType]):
    """A job with the texts of its view; one class for each kind of job.

    Args:
        job: Its progress and end.
        title: The title of its view.
    """

    width: ClassVar[int] = 96
    """Columns of the view's box."""
    takes: ClassVar[str] = ""
    """A few words for the key that accepts the result; empty if there is nothing to accept."""
    yes: ClassVar[str] = "enter"
    """The key that begins it, and agrees to its question."""
    is_done_at_end: ClassVar[bool] = False
    """True if its view, where it is open, closes at the end, and the result is accepted."""
    loss: ClassVar[str] = "loses its work"
    """The effect of leaving the app while it runs, if nothing of it is kept."""
    help: ClassVar[str] = "job"
    """The name of its text for the help."""
    shown_by: ClassVar[Sequence[str]] = ("app.jobs",)
    """The keys that show its result, by their ids; a job with keys of its own is not listed after its end."""

    def __init__(self, job: RunningJob[ProgressType, ResultType], title: str) -> None:
        self.job, self.title = job, one_line(title, 80)

    @property
    def keeps(self) -> str:
        """The parts of it that are kept if it is ended now; empty if nothing is lost, as it begins again by itself."""
        return NOTHING

    @property
    def question(self) -> str:
        """A few words for the key that agrees to a question of the running job; empty if there is none."""
        return ""

    def run(self, tell: Callable[[ProgressType], None]) -> ResultType:
        """Run the job, in a thread.

        Args:
            tell: Callback for the progress; it raises :class:`core.jobs.job.JobCancelledError` once it is canceled.

        Raises:
            UserError: If there is no result.
            JobCancelledError: If it was canceled.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the processes of the job."""

    def agree(self) -> None:
        """Agree to the question."""

    def has_ended(self) -> None:
        """React to the end of the job, in the app's thread."""

    def is_in_sight(self) -> bool:
        """True if something besides a view shows its end."""
        return False

    def can_take(self) -> bool:
        """True if there is a result to accept."""
        return bool(self.takes) and self.job.result is not None

    def take(self) -> None:
        """Accept the result."""

    def text(self, room: int, glyphs: GlyphSet) -> Content:
        """The text of the view.

        Args:
            room: Columns of a line.
            glyphs: The glyphs to draw with.
        """
        raise NotImplementedError

    def numbers(self) -> Content:
        """Figures of the result, behind a key; empty if there are none."""
        return Content("")

    def copies(self) -> Mapping[str, tuple[str, str]]:
        """Texts that can be copied: name and text by key."""
        return {}

    def outcome(self) -> str:
        """The result in a sentence."""
        return ""

    def result_screen(self) -> Screen[None] | None:
        """A screen of the result; None if it is shown by :meth:`text`."""
        return None

    def show_in_pane(self) -> bool:
        """Show the job in a pane instead of a view; returns False if it has none."""
        return False
