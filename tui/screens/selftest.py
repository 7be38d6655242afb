"""The screen of the self-test: what it takes, its progress by check, and the table at its end."""

from __future__ import annotations

import textwrap
from collections.abc import Container
from dataclasses import dataclass

from textual import events, on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from core.errors import UserError
from core.selftest.checks import SUBJECTS, Check, Result, Subject
from core.selftest.job import Progress, SelfTest, SelfTestCancelledError
from core.selftest.report import LABELS, Report, device_line, write_report
from core.text import one_line
from tui.screens.overlay import Overlay
from tui.screens.progress import Progressed
from tui.widgets.text_block import TextBlock

#: Styles of the results.
_STYLES: dict[Result, str] = {"pass": "$success", "fail": "$error bold", "not applicable": "$muted"}
_ABOUT = (
    "Proves on this device that training is right: seven checks, about three minutes on a card and five on two cores. "
    "Nothing leaves this machine. While it is on, no run should be."
)


#: Columns of a check's title.
_TITLE = 15


@dataclass
class Ended(Message):
    """The self-test has ended: with a report, and where it was written or why it could not be; or with the reason for
    which there is none."""

    report: Report | None = None
    place: str = ""
    reason: str = ""


class SelfTestScreen(Overlay[None]):
    """The self-test: a question, then progress, then the table."""

    DEFAULT_CSS = """
    SelfTestScreen { align: center middle; background: $background 60%; }
    SelfTestScreen > VerticalScroll {
        width: 112; max-width: 98%; height: auto; max-height: 94%; padding: 1 2;
        border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        background: $surface; scrollbar-size-vertical: 1;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._job: SelfTest | None = None
        self._progress = Progress()
        self._ended: Ended | None = None

    @property
    def known_keys(self) -> Container[str]:
        """The keys that do something here."""
        return {"enter", "escape", "q", "j", "k", "down", "up", "pageup", "pagedown"}

    def compose(self) -> ComposeResult:
        """A text, which scrolls; the keys are in the border, where they are always seen."""
        with VerticalScroll() as box:
            box.border_title = Content("Self-test")
            yield TextBlock()

    def on_mount(self) -> None:
        """Say what it takes, before anything is done."""
        self._show()

    def on_resize(self) -> None:
        """Wrap for the width."""
        self._show()

    def on_unmount(self) -> None:
        """End the processes of a self-test that is on."""
        if self._job is not None:
            self._job.close()

    def on_key(self, event: events.Key) -> None:
        """Begin, leave, or scroll."""
        box = self.query_one(VerticalScroll)
        scroll = {
            "j": box.scroll_down,
            "down": box.scroll_down,
            "k": box.scroll_up,
            "up": box.scroll_up,
            "pagedown": box.scroll_page_down,
            "pageup": box.scroll_page_up,
        }
        if event.key in scroll:
            scroll[event.key](animate=False)
        elif event.key == "enter" and self._job is None:
            self._begin()
        elif event.key == "escape" or (event.key in ("q", "enter") and self._ended is not None):
            # Leaving the screen closes the job, and with it its processes.
            self.dismiss()
        else:
            return
        event.stop()

    def _begin(self) -> None:
        self._job = SelfTest()
        self._show()
        self._run(self._job)

    @work(thread=True, group="selftest")
    def _run(self, job: SelfTest) -> None:
        try:
            report = job.run(lambda progress: self.post_from_thread(Progressed(progress)))
        except SelfTestCancelledError:
            return
        except UserError as error:
            self.post_from_thread(Ended(reason=str(error)))
            return
        try:
            self.post_from_thread(Ended(report, str(write_report(report))))
        except UserError as error:
            self.post_from_thread(Ended(report, reason=str(error)))

    @on(Progressed)
    def _progressed(self, message: Progressed[Progress]) -> None:
        self._progress = message.progress
        self._show()

    @on(Ended)
    def _has_ended(self, message: Ended) -> None:
        self._ended = message
        self._show()

    def _show(self) -> None:
        room = min(112, self.app.size.width * 98 // 100) - 7
        self.query_one(TextBlock).show(self._text(room))
        keys = "j k scroll  esc close"
        if self._ended is None:
            keys = "enter begin  esc leave" if self._job is None else "esc cancel"
        self.query_one(VerticalScroll).border_subtitle = Content(keys)

    def _text(self, room: int) -> Content:
        if self._job is None:
            lines = [Content(_ABOUT), Content("")]
            for item in SUBJECTS:
                first, *rest = textwrap.wrap(item.proves, max(room - _TITLE, 20))
                lines.append(Content.assemble((f"{item.title:<{_TITLE}}", "bold"), first))
                lines += [Content(" " * _TITLE + line) for line in rest]
            return Content("\n").join(lines)
        if self._ended is not None and self._ended.report is None:
            return Content.assemble(("The self-test was not made. ", "bold"), one_line(self._ended.reason, 600))
        checks = {check.name: check for check in self._progress.checks}
        lines = [Content(one_line(self._progress.device, 100) or "…"), Content("")]
        if self._ended is not None and self._ended.report is not None:
            lines[0] = Content(device_line(self._ended.report.device))
        for item in SUBJECTS:
            check = checks.get(item.name)
            if check is None:
                lines.append(self._waiting(item))
            else:
                # Until the end a line each, so that the box stays where it is.
                lines.append(_done(check, item, room, whole=self._ended is not None))
        if self._ended is not None and self._ended.report is not None:
            lines += [Content(""), Content.styled(self._ended.report.summary(), "bold")]
            where = f"To attach to a bug report, without names and paths: {self._ended.place}"
            if not self._ended.place:
                where = f"The report was not written. {self._ended.reason}"
            lines.append(Content(one_line(where, 600)))
        return Content("\n").join(lines)

    def _waiting(self, item: Subject) -> Content:
        """The line of a check that is at work or to come."""
        progress = self._progress
        if progress.current is None or progress.current.name != item.name:
            return Content.styled(f"      {item.title}", "$muted")
        counted = f" {progress.done} of {progress.total}" if progress.done is not None and progress.total else ""
        return Content.assemble(
            ("now   ", "$primary bold"), (f"{item.title:<{_TITLE}}", "bold"), " " * 8, f"{progress.activity}{counted}"
        )


def _done(check: Check, item: Subject, room: int, *, whole: bool) -> Content:
    """The lines of a check that is done: its result, seconds and detail, which wraps in its column or is cut."""
    head = Content.assemble(
        (f"{LABELS[check.result]:<4}  ", _STYLES[check.result]),
        (f"{item.title:<{_TITLE}}", "bold"),
        (f"{check.seconds:>4.0f} s  ", "$muted"),
    )
    width = max(room - len(head), 20)
    if not whole:
        cut = check.detail if len(check.detail) <= width else check.detail[: width - 1] + "…"
        return head + cut
    first, *rest = textwrap.wrap(check.detail, width, break_on_hyphens=False) or [""]
    return Content("\n").join([head + first, *(Content(" " * len(head) + line) for line in rest)])
