"""Jobs on screens: their progress and end as messages, and the screen that follows one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from textual import on, work
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
    """The job of a screen has made progress."""

    progress: ProgressType

    def can_replace(self, message: Message) -> bool:
        """Newer progress replaces older."""
        return isinstance(message, Progressed)


@dataclass
class Ended(Message, Generic[ResultType]):
    """The job of a screen has ended: with a result, or with the reason for which there is none."""

    result: ResultType | None = None
    error: UserError | None = None


def follow(screen: Overlay[Any], run: Callable[[Callable[[ProgressType], None]], ResultType]) -> None:
    """Do a job, and post its progress and its end to a screen; in a thread. A job that was closed has no end.

    Args:
        screen: The screen. When it has been left, the next progress gives the job up.
        run: Does the job: called with a function for its progress.
    """

    def progressed(progress: ProgressType) -> None:
        # A screen that was popped keeps its parent, and one of an app that ends keeps running for a moment.
        if not (screen.is_running and screen.is_attached):
            raise JobCancelledError
        screen.post_message(Progressed(progress))

    try:
        result = run(progressed)
    except JobCancelledError:
        return
    except UserError as error:
        screen.post_from_thread(Ended(error=error))
    else:
        screen.post_from_thread(Ended(result))


def progress_bar(share: float, glyphs: GlyphSet) -> Content:
    """A bar of 40 cells.

    Args:
        share: Share that is done, from 0 to 1.
        glyphs: Glyphs to draw it with.
    """
    full, empty = bar(share, _BAR_CELLS, glyphs)
    return Content.assemble((full, "$primary"), (empty, "$muted"))


@dataclass(frozen=True)
class JobState(Generic[ProgressType, ResultType]):
    """State of a job: asked for, under way, or ended."""

    stage: Literal["asked", "on", "ended"] = "asked"
    progress: ProgressType | None = None
    """The newest progress; None before the first."""
    result: ResultType | None = None
    error: UserError | None = None
    """Why there is no result, of a job that has ended."""


class JobPage(Protocol[ProgressType, ResultType, AnswerType_co]):
    """A job, and what its screen says of it."""

    @property
    def title(self) -> str:
        """The title of the screen."""

    @property
    def width(self) -> int:
        """Columns of the screen's box."""

    @property
    def takes(self) -> str:
        """What enter does with a result that is of use, in a few words."""

    def run(self, tell: Callable[[ProgressType], None]) -> ResultType:
        """Do the job; in a thread.

        Args:
            tell: Called with the progress; it raises :class:`JobCancelledError` once the screen has been left.

        Raises:
            UserError: If there is no result.
            JobCancelledError: If it was closed meanwhile.
        """

    def close(self) -> None:
        """Give the job up, if it is on."""

    def text(self, state: JobState[ProgressType, ResultType], room: int, glyphs: GlyphSet) -> Content:
        """The text of the screen.

        Args:
            state: How far the job is.
            room: Columns of a line.
            glyphs: The glyphs to draw with.
        """

    def answer(self, result: ResultType) -> AnswerType_co | None:
        """What the screen returns of a result; None where there is nothing to be taken from it."""


class JobScreen(Overlay[AnswerType | None], Generic[ProgressType, ResultType, AnswerType]):
    """A job on a screen of its own: it begins with enter, ends with the screen, and returns what is taken of it.

    Args:
        page: The job, and what is said of it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "go_on", show=False),
        Binding("escape", "dismiss(None)", show=False),
        Binding("q", "close", show=False),
    ]

    def __init__(self, page: JobPage[ProgressType, ResultType, AnswerType]) -> None:
        super().__init__()
        self._page = page
        self._state: JobState[ProgressType, ResultType] = JobState()

    def compose(self) -> ComposeResult:
        """A text, which scrolls; the keys are in the border, where they are always seen."""
        yield OverlayBox(TextBlock(), title=self._page.title, width=self._page.width)

    def on_mount(self) -> None:
        """Say what it takes, before anything is done."""
        self._show()

    def on_resize(self) -> None:
        """Wrap for the width."""
        self._show()

    def on_unmount(self) -> None:
        """End a job that is on."""
        self._page.close()

    @property
    def _answer(self) -> AnswerType | None:
        result = self._state.result
        return None if result is None else self._page.answer(result)

    def action_go_on(self) -> None:
        """Begin; of an ended job, take what it found and close."""
        if self._state.stage == "asked":
            self._state = replace(self._state, stage="on")
            self._show()
            self._run()
        elif self._state.stage == "ended":
            self.dismiss(self._answer)

    def action_close(self) -> None:
        """Close the screen of a job that has ended."""
        if self._state.stage == "ended":
            self.dismiss(None)

    @work(thread=True, group="job")
    def _run(self) -> None:
        follow(self, self._page.run)

    @on(Progressed)
    def _progressed(self, message: Progressed[ProgressType]) -> None:
        self._state = replace(self._state, progress=message.progress)
        self._show()

    @on(Ended)
    def _has_ended(self, message: Ended[ResultType]) -> None:
        self._state = replace(self._state, stage="ended", result=message.result, error=message.error)
        self._show()

    def _show(self) -> None:
        box = self.query_one(OverlayBox)
        box.query_one(TextBlock).show(self._page.text(self._state, box.room, shell_of(self).glyphs))
        takes = f"enter {self._page.takes}  " if self._answer is not None else ""
        box.show_keys(
            {"asked": "enter begin  esc leave", "on": "esc cancel", "ended": f"{takes}j k scroll  esc close"}[
                self._state.stage
            ]
        )
