"""Jobs on screens: messages for their progress and end, and the screen that follows a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message

from core.errors import UserError
from core.jobs.job import JobCancelledError
from tui.glyphs import GlyphSet
from tui.screens.box import OverlayBox
from tui.screens.overlay import Overlay
from tui.shell import shell_of
from tui.widgets.charts.bars import bar
from tui.widgets.text_block import TextBlock

ProgressType = TypeVar("ProgressType")
ResultType = TypeVar("ResultType")
AnswerType = TypeVar("AnswerType")
AnswerType_co = TypeVar("AnswerType_co", covariant=True)

_BAR_CELLS = 40


@dataclass
class Progressed(Message, Generic[ProgressType]):
    """A screen's job has made progress."""

    progress: ProgressType

    def can_replace(self, message: Message) -> bool:
        """True for older progress."""
        return isinstance(message, Progressed)


@dataclass
class Ended(Message, Generic[ResultType]):
    """A screen's job has ended with a result or an error."""

    result: ResultType | None = None
    error: UserError | None = None


def follow(screen: Overlay[Any], run: Callable[[Callable[[ProgressType], None]], ResultType]) -> None:
    """Run a job in a thread, and post its progress and end to a screen. A canceled job posts no end.

    Args:
        screen: The screen. Once it has been left, the next progress report cancels the job.
        run: The job, called with a callback for its progress.
    """

    def progressed(progress: ProgressType) -> None:
        # A popped screen keeps its parent, and a screen of a closing app keeps running for a moment.
        if not (screen.is_running and screen.is_attached):
            raise JobCancelledError
        screen.post_message(Progressed(progress))

    def work() -> None:
        try:
            ended = Ended(run(progressed))
        except JobCancelledError:
            return
        except UserError as error:
            ended = Ended(error=error)
        if screen.is_attached:
            screen.post_message(ended)

    screen.run_worker(work, thread=True, group="job")


def progress_bar(share: float, glyphs: GlyphSet) -> Content:
    """A bar of 40 cells.

    Args:
        share: Completed share, from 0 to 1.
        glyphs: The glyphs to draw with.
    """
    full, empty = bar(share, _BAR_CELLS, glyphs)
    return Content.assemble((full, "$primary"), (empty, "$muted"))


@dataclass(frozen=True)
class JobState(Generic[ProgressType, ResultType]):
    """State of a job: not started, running, or ended."""

    stage: Literal["asked", "on", "ended"] = "asked"
    progress: ProgressType | None = None
    """The newest progress; None before the first."""
    result: ResultType | None = None
    error: UserError | None = None
    """The error of a job that ended without a result."""


class JobPage(Protocol[ProgressType, ResultType, AnswerType_co]):
    """A job with the texts of its screen."""

    title: str
    """The title of the screen."""
    width: int
    """Columns of the screen's box."""
    takes: str
    """A few words for the key that accepts the result."""

    def run(self, tell: Callable[[ProgressType], None]) -> ResultType:
        """Run the job, in a thread.

        Args:
            tell: Callback for the progress; it raises :class:`JobCancelledError` once the screen has been left.

        Raises:
            UserError: If there is no result.
            JobCancelledError: If the job was closed.
        """

    def close(self) -> None:
        """Cancel the job if it is running."""

    def text(self, state: JobState[ProgressType, ResultType], room: int, glyphs: GlyphSet) -> Content:
        """The text of the screen.

        Args:
            state: The state of the job.
            room: Columns of a line.
            glyphs: The glyphs to draw with.
        """

    def answer(self, result: ResultType) -> AnswerType_co | None:
        """The screen's return value for a result; None if there is nothing to accept."""


class JobOverlay(Overlay[AnswerType | None], Generic[ProgressType, ResultType, AnswerType]):
    """A screen that shows the state of a job."""

    def __init__(self) -> None:
        super().__init__()
        self._state: JobState[ProgressType, ResultType] = JobState()

    @on(Progressed)
    def _progressed(self, message: Progressed[ProgressType]) -> None:
        self._state = replace(self._state, progress=message.progress)
        self._show()

    @on(Ended)
    def _has_ended(self, message: Ended[ResultType]) -> None:
        self._state = replace(self._state, stage="ended", result=message.result, error=message.error)
        self._show()

    def _show(self) -> None:
        """Show the state."""
        raise NotImplementedError


class JobScreen(JobOverlay[ProgressType, ResultType, AnswerType]):
    """Screen of a job: enter starts it, leaving cancels it, and accepting returns the page's answer.

    Args:
        page: The job with its texts.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "go_on", show=False),
        Binding("escape", "dismiss(None)", show=False),
        Binding("q", "close", show=False),
    ]

    def __init__(self, page: JobPage[ProgressType, ResultType, AnswerType]) -> None:
        super().__init__()
        self._page = page

    def compose(self) -> ComposeResult:
        """A scrolling text; the keys are in the border, where they stay visible."""
        yield OverlayBox(TextBlock(), title=self._page.title, width=self._page.width)

    def on_mount(self) -> None:
        """Show the introduction."""
        self._show()

    def on_resize(self) -> None:
        """Wrap the text for the new width."""
        self._show()

    def on_unmount(self) -> None:
        """Cancel a running job."""
        self._page.close()

    @property
    def _answer(self) -> AnswerType | None:
        result = self._state.result
        return None if result is None else self._page.answer(result)

    def action_go_on(self) -> None:
        """Start the job, or accept the result of an ended job and close."""
        if self._state.stage == "asked":
            self._state = replace(self._state, stage="on")
            self._show()
            follow(self, self._page.run)
        elif self._state.stage == "ended":
            self.dismiss(self._answer)

    def action_close(self) -> None:
        """Close the screen of a job that has ended."""
        if self._state.stage == "ended":
            self.dismiss(None)

    def _show(self) -> None:
        box = self.query_one(OverlayBox)
        box.query_one(TextBlock).show(self._page.text(self._state, box.room, shell_of(self).glyphs))
        takes = f"enter {self._page.takes}  " if self._answer is not None else ""
        ended = f"{takes}j k scroll  esc close"
        box.show_keys({"asked": "enter begin  esc leave", "on": "esc cancel", "ended": ended}[self._state.stage])
