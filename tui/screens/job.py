"""View of a job, which goes on without it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from core.jobs.running import RunningJob
from core.text import one_line
from core.units import format_duration
from tui.glyphs import GlyphSet
from tui.jobs import NOTHING, JobPage
from tui.screens.box import OverlayBox
from tui.screens.dialogs import error_text
from tui.screens.overlay import Overlay
from tui.shell import copy_text, shell_of
from tui.widgets.charts.bars import bar
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock

_BAR_CELLS = 40
#: Seconds of work from which canceling asks once more.
_ASKS_SECONDS = 60.0


def progress_text(job: RunningJob[Any, Any], glyphs: GlyphSet) -> Content:
    """A bar with the share and the time left, and the activity below.

    Args:
        job: The job.
        glyphs: The glyphs to draw with.
    """
    full, empty = bar(job.share, _BAR_CELLS, glyphs)
    activity = job.progress.activity if job.progress is not None else f"starting the {job.kind}"
    told = f" {job.share:4.0%}  {job.left}\n" if job.progress is not None else "\n"
    return Content.assemble((full, "$primary"), (empty, "$muted"), told, f"{one_line(activity, 120)} …")


class JobScreen(Overlay[None]):
    """View of a job: leaving it changes nothing for the job.

    Args:
        page: The job with its texts.
    """

    DEFAULT_CSS = style_of("JobScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", show=False),
        Binding("x", "cancel", show=False),
        Binding("d", "numbers", show=False),
    ]

    def __init__(self, page: JobPage[Any, Any]) -> None:
        super().__init__()
        self.page = page
        self._is_asked = self._has_numbers = False
        self._said = ""

    @property
    def help_name(self) -> str:
        """The name of the job's text for the help."""
        return self.page.help

    @property
    def known_keys(self) -> Container[str]:
        """Keys with a function on this screen."""
        return {*self.active_bindings, self.page.yes, "enter", *self._copies()}

    def _copies(self) -> Mapping[str, tuple[str, str]]:
        """Texts that can be copied: name and text by key."""
        error = self.page.job.error
        if error is not None:
            return {"y": ("the error", str(error))}
        return {key: (f"the line for {name}", line) for key, (name, line) in self.page.copies().items()}

    def compose(self) -> ComposeResult:
        """A scrolling text; the keys are in the border, where they stay visible."""
        yield OverlayBox(HangingBlock(), title=self.page.title, width=self.page.width)

    def on_mount(self) -> None:
        """Show the job."""
        self.show()

    def on_resize(self) -> None:
        """Wrap the text for the new width."""
        self.show()

    def on_key(self, event: events.Key) -> None:
        """Begin, agree, accept or copy."""
        page, stage = self.page, self.page.job.stage
        if (copied := self._copies().get(event.key)) is not None:
            what, text = copied
            self._said = copy_text(self, text, what)
            self.show()
            # The notice is the last line.
            self.call_after_refresh(self.query_one(OverlayBox).scroll_end, animate=False)
        elif event.key == page.yes and stage == "asked":
            shell_of(self).jobs.begin(page)
        elif event.key == page.yes and page.question:
            page.agree()
            self.show()
        elif event.key == "enter" and stage == "ended":
            self.dismiss()
            if page.can_take():
                page.take()
        else:
            return
        event.stop()

    def action_cancel(self) -> None:
        """End the job; asks once more if minutes of work would be lost."""
        page, job = self.page, self.page.job
        if job.stage != "on":
            return
        if job.seconds < _ASKS_SECONDS or page.keeps != NOTHING or self._is_asked:
            shell_of(self).jobs.cancel(page)
        else:
            self._is_asked = True
        self.show()

    def action_numbers(self) -> None:
        """Show the figures, or hide them."""
        self._has_numbers = not self._has_numbers
        self.show()

    def show(self) -> None:
        """Show the present state of the job."""
        if not self.query(OverlayBox) or self.page.job.stage == "canceled":
            # It is left, or about to be.
            return
        page, job = self.page, self.page.job
        self.set_class(job.error is not None, "-alarm")
        box, parts = self.query_one(OverlayBox), []
        if job.error is not None:
            parts.append(Content.assemble(("✗ ", "$limit bold"), error_text(job.error)))
            if job.progress is not None and page.keeps != NOTHING:
                parts += [Content(""), Content(f"{page.keeps[0].upper()}{page.keeps[1:]}.")]
        else:
            parts.append(page.text(box.room, shell_of(self).glyphs))
        numbers = page.numbers() if job.result is not None else Content("")
        if numbers.plain and self._has_numbers:
            parts += [Content(""), numbers]
        if self._is_asked and job.stage == "on" and not job.is_ending:
            lost = f"x again ends it: {format_duration(job.seconds)} of work are lost."
            parts += [Content(""), Content.styled(lost, "$near")]
        if self._said:
            parts += [Content(""), Content.styled(self._said, "$ok")]
        box.query_one(HangingBlock).show(Content("\n").join(parts))
        box.show_keys("  ".join(self._keys(has_numbers=bool(numbers.plain))))

    def _keys(self, *, has_numbers: bool) -> list[str]:
        """The keys with their functions, for the border."""
        page, stage = self.page, self.page.job.stage
        if stage == "asked":
            return [f"{page.yes} begin", "esc leave"]
        if self.page.job.is_ending:
            return ["canceling …", "esc leave"]
        if stage == "on":
            return (
                [f"{page.yes} {page.question}", "esc leave it"] if page.question else ["x cancel", "esc keep running"]
            )
        keys = [f"enter {page.takes}"] if page.can_take() else []
        keys += [f"{' '.join(copies)} copy"] if (copies := self._copies()) else []
        return [*keys, *(["d numbers"] if has_numbers else []), "j k scroll", "esc close"]
