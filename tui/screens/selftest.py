"""Screen of the self-test: an introduction, the progress of each check, and the results."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from textual.content import Content

from core.errors import UserError
from core.jobs.running import RunningJob
from core.selftest.job import SelfTestProgress, selftest_job
from core.selftest.report import LABELS, SUBJECTS, Check, Report, Result, Subject, device_line, write_report
from core.text import one_line
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.screens.job import progress_text

#: Styles of the results.
_STYLES: dict[Result, str] = {"pass": "$success", "fail": "$error bold", "not applicable": "$muted"}
_ABOUT = (
    "Proves on this device that training is right: eight checks, an estimated four minutes on a card, and five on two "
    "cores. Nothing leaves this machine. Do not train while it runs."
)
#: Seconds of all checks on two cores, estimated.
_SECONDS = 300.0
#: Columns of a check's title.
_TITLE = 15


@dataclass(frozen=True)
class Made:
    """A finished self-test: its report, and the report's path or the reason why it was not written."""

    report: Report
    place: str = ""
    reason: str = ""


class SelfTestPage(JobPage[SelfTestProgress, Made]):
    """Page of the self-test."""

    width = 112
    help = "selftest"

    def __init__(self) -> None:
        super().__init__(RunningJob("self-test", expected=_SECONDS), "Self-test")
        self._test = selftest_job()

    def run(self, tell: Callable[[SelfTestProgress], None]) -> Made:
        """Run the checks, and write the report."""
        report = self._test.run(tell)
        try:
            return Made(report, str(write_report(report)))
        except UserError as error:
            return Made(report, reason=str(error))

    def close(self) -> None:
        """End the processes of the checks."""
        self._test.close()

    def outcome(self) -> str:
        """The summary of the report."""
        return self.job.result.report.summary() if self.job.result is not None else ""

    def text(self, room: int, glyphs: GlyphSet) -> Content:
        """The introduction, or the checks with their results so far."""
        if self.job.stage == "asked":
            return _about(room)
        checks = _checks(self.job.progress or SelfTestProgress(), self.job.result, room)
        return checks if self.job.is_over else Content.assemble(checks, "\n\n", progress_text(self.job, glyphs))


def _about(room: int) -> Content:
    """The introduction, with the claim of each check."""
    lines = [Content(_ABOUT), Content("")]
    for item in SUBJECTS:
        first, *rest = textwrap.wrap(item.proves, max(room - _TITLE, 20))
        lines.append(Content.assemble((f"{item.title:<{_TITLE}}", "bold"), first))
        lines += [Content(" " * _TITLE + line) for line in rest]
    return Content("\n").join(lines)


def _checks(progress: SelfTestProgress, made: Made | None, room: int) -> Content:
    """A line for each check, then the verdict and the path of the report."""
    done = {check.name: check for check in progress.checks}
    device = device_line(made.report.device) if made is not None else one_line(progress.device, 100) or "…"
    lines = [Content(device), Content("")]
    for item in SUBJECTS:
        check = done.get(item.name)
        # A single line each until the end, so that the box keeps its height.
        lines.append(_waiting(item, progress) if check is None else _done(check, item, room, whole=made is not None))
    if made is not None:
        where = f"To attach to a bug report, without names and paths: {made.place}"
        if not made.place:
            where = f"The report was not written. {made.reason}"
        lines += [Content(""), Content.styled(made.report.summary(), "bold"), Content(one_line(where, 600))]
    return Content("\n").join(lines)


def _waiting(item: Subject, progress: SelfTestProgress) -> Content:
    """The line of a running or pending check."""
    if progress.current is None or progress.current.name != item.name:
        return Content.styled(f"      {item.title}", "$muted")
    counted = f" {progress.done} of {progress.total}" if progress.done is not None and progress.total else ""
    return Content.assemble(
        ("now   ", "$primary bold"), (f"{item.title:<{_TITLE}}", "bold"), " " * 8, f"{progress.activity}{counted}"
    )


def _done(check: Check, item: Subject, room: int, *, whole: bool) -> Content:
    """The lines of a finished check: result, seconds, and detail, which is wrapped or cut."""
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
