"""The screen that follows a job: what it takes, its progress, and its result, each as a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Literal, Protocol, TypeVar

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
from tui.screens.progress import Progressed
from tui.shell import shell_of
from tui.widgets.text_block import TextBlock

ProgressType = TypeVar("ProgressType")
ResultType = TypeVar("ResultType")
AnswerType = TypeVar("AnswerType")
AnswerType_co = TypeVar("AnswerType_co", covariant=True)


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


@dataclass
class _Ended(Message, Generic[ResultType]):
    """The job has ended: with a result, or with the reason for which there is none."""

    result: ResultType | None = None
    error: UserError | None = None


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
        self._has_left = False

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
        self._has_left = True
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
        def tell(progress: ProgressType) -> None:
            if self._has_left:
                raise JobCancelledError
            self.post_from_thread(Progressed(progress))

        try:
            self.post_from_thread(_Ended(self._page.run(tell)))
        except JobCancelledError:
            return
        except UserError as error:
            self.post_from_thread(_Ended(error=error))

    @on(Progressed)
    def _progressed(self, message: Progressed[ProgressType]) -> None:
        self._state = replace(self._state, progress=message.progress)
        self._show()

    @on(_Ended)
    def _has_ended(self, message: _Ended[ResultType]) -> None:
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
