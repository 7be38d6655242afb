"""Screen of an export: kind, weights and directory with their cost, then the progress and the result."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from textual import events, on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.worker import get_current_worker

from core.errors import UserError
from core.export.request import ExportRequest, Kind, Quant
from core.jobs.job import JobProgress
from core.paths import shown_path, user_path, working_directory
from core.text import one_line, sanitize
from core.units import format_bytes, format_duration
from tui.screens.box import OverlayBox
from tui.screens.job import JobOverlay, follow, progress_bar
from tui.shell import shell_of
from tui.widgets.forms.inputs import PathInput
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock, TextBlock

if TYPE_CHECKING:
    from core.export.job import ExportJob
    from core.export.plan import ExportPlan
    from core.export.result import ExportResult
    from core.runs.record.store import Run

#: Kinds in the order of the screen, with their purpose.
_ABOUT: dict[Kind, str] = {
    "gguf": "a file for llama.cpp, LM Studio, Jan and others",
    "ollama": "a GGUF file and its Modelfile, for Ollama",
    "merged": "a whole model for Transformers, vLLM and others",
    "adapter": "PEFT's directory, to be used with the base",
    "card": "a README of what was trained, and how it was measured",
}
_KINDS = tuple(_ABOUT)
_FIELDS = ("kind", "weights", "directory")
#: Columns of a field's name.
_NAME = 11


@dataclass
class Planned:
    """An export as planned, or the reason why it cannot be made."""

    request: ExportRequest
    plan: ExportPlan | None = None
    error: UserError | None = None

    @property
    def can_begin(self) -> bool:
        """True if the export can be made."""
        return self.plan is not None and self.error is None


class ExportScreen(JobOverlay[JobProgress, "ExportResult", None]):
    """Export of a run: the choices, the progress, and the verified result.

    Args:
        run: The run.
        step: The step of a checkpoint; None for the result, or the newest checkpoint.
        is_on: A run is live, which an export slows down.
    """

    DEFAULT_CSS = style_of("ExportScreen")

    def __init__(self, run: Run, step: int | None = None, *, is_on: bool = False) -> None:
        super().__init__()
        self._run, self._step, self._is_on = run, step, is_on
        self._request = ExportRequest(run.path, "gguf" if run.trains_adapter else "merged", step)
        self._field = 0
        self._planned: Planned | None = None
        self._job: ExportJob | None = None
        self._is_leaving = False

    @property
    def known_keys(self) -> Container[str]:
        """Keys with a function on this screen."""
        return {*self.active_bindings, "enter", "escape", "q", "h", "l", "left", "right", "tab", "shift+tab"}

    def compose(self) -> ComposeResult:
        """The fields, progress or result, and an input for the directory."""
        line = PathInput(placeholder="the directory to make; empty: in the home, named after the run")
        text = HangingBlock(id="export-text")
        yield OverlayBox(text, line, title=f"Export {one_line(self._run.id, 60)}", width=96)

    def on_mount(self) -> None:
        """Plan the default export."""
        self._plan()

    def on_unmount(self) -> None:
        """Cancel a running export, which leaves no files."""
        if self._job is not None:
            self._job.close()

    # Choices.

    @property
    def _weights(self) -> Quant | None:
        """The type of the weights: the chosen type, or the default of the plan."""
        plan = self._planned.plan if self._planned is not None else None
        return (self._request if plan is None else plan.request).weights

    def _change(self, request: ExportRequest) -> None:
        self._request, self._planned = request, None
        self._plan()

    def _plan(self) -> None:
        self._show()
        self._find_plan(self._request)

    @work(thread=True, exclusive=True, group="plan")
    def _find_plan(self, request: ExportRequest) -> None:
        from core.export.plan import plan_export

        worker = get_current_worker()
        found: Planned | None = None
        try:
            plan = plan_export(request)
            found = Planned(request, plan)
            plan.check()
        except UserError as error:
            # A directory that already exists is still shown.
            found = Planned(request, found.plan if found is not None else None, error)
        if not worker.is_cancelled:
            self.post_call(self._has_planned, found)

    def _has_planned(self, planned: Planned) -> None:
        if planned.request == self._request:
            self._planned = planned
            self._show()

    def _cycle(self, by: int) -> None:
        """Take the next value of the field under the cursor."""
        request, field = self._request, _FIELDS[self._field]
        if field == "kind":
            kind = _KINDS[(_KINDS.index(request.kind) + by) % len(_KINDS)]
            self._change(replace(request, kind=kind, quant=None))
        elif field == "weights" and request.quants and (weights := self._weights) is not None:
            quants: tuple[Quant, ...] = request.quants
            self._change(replace(request, quant=quants[(quants.index(weights) + by) % len(quants)]))
        elif field == "directory":
            self._edit()

    def _edit(self) -> None:
        """Open the input of the directory."""
        line = self.query_one(PathInput)
        line.value = "" if self._request.out is None else str(self._request.out)
        line.cursor_position = len(line.value)
        self.add_class("-editing")
        self.set_focus(line)
        self._show()

    @on(PathInput.Submitted)
    def _submitted(self, message: PathInput.Submitted) -> None:
        message.stop()
        typed = message.value.strip()
        self._close_input()
        out: Path | None = (working_directory() / user_path(typed)).absolute() if typed else None
        self._change(replace(self._request, out=out))

    @on(PathInput.Cancelled)
    def _cancelled(self, message: PathInput.Cancelled) -> None:
        message.stop()
        message.prevent_default()  # the screen stays
        self._close_input()
        self._show()

    def _close_input(self) -> None:
        self.remove_class("-editing")
        self.set_focus(self.query_one(OverlayBox))

    # Keys.

    def on_key(self, event: events.Key) -> None:
        """Choose, begin, cancel or leave; other keys scroll the box."""
        if isinstance(self.focused, PathInput):
            return
        key = event.key
        if self._state.stage == "ended":
            if key not in ("escape", "enter", "q"):
                return
            self.dismiss()
        elif self._job is not None:
            if key != "escape":
                return
            self._cancel()
        elif not self._choose(key):
            return
        event.stop()
        event.prevent_default()

    def _choose(self, key: str) -> bool:
        """Handle a key of the fields; returns False for an unknown key."""
        if key in ("j", "down", "tab", "k", "up", "shift+tab"):
            self._field = (self._field + (1 if key in ("j", "down", "tab") else -1)) % len(_FIELDS)
            self._show()
        elif key in ("l", "right", "space", "h", "left"):
            self._cycle(-1 if key in ("h", "left") else 1)
        elif key == "enter":
            self._begin()
        elif key in ("escape", "q"):
            self.dismiss()
        else:
            return False
        return True

    def _cancel(self) -> None:
        """Cancel on the second press, because an export may have taken an hour."""
        if not self._is_leaving:
            self._is_leaving = True
            self._show()
            return
        self.notify("The export was broken off; nothing of it is left.", markup=False)
        self.dismiss()

    # The export.

    def _begin(self) -> None:
        if self._planned is None or self._planned.plan is None or not self._planned.can_begin:
            return
        from core.export.job import export_job

        self._job = export_job(self._planned.plan)
        self._show()
        follow(self, self._job.run)

    # Display.

    def _show(self) -> None:
        self.set_class(self._state.error is not None, "-alarm")
        self.query_one("#export-text", TextBlock).show(self._text())
        self.query_one(OverlayBox).show_keys(self._keys())

    def _keys(self) -> str:
        """The current keys, for the border."""
        if self._state.stage == "ended":
            return "j k scroll  esc close"
        if self._job is not None:
            return "esc cancel"
        if self.has_class("-editing"):
            return "tab complete  enter use it  esc leave it as it is"
        can_begin = self._planned is not None and self._planned.can_begin
        return f"↑ ↓ field  ← → change{'  enter export' if can_begin else ''}  esc leave"

    def _text(self) -> Content:
        if self._state.stage == "ended":
            return _error(self._state.error) if self._state.error is not None else _result(self._state.result)
        return self._fields() if self._job is None else self._working()

    def _fields(self) -> Content:
        request = self._request
        weights = self._weights or "as they were trained"
        place = "in the home, named after the run" if request.out is None else shown_path(request.out)
        plan = self._planned.plan if self._planned is not None else None
        if plan is not None:
            place = shown_path(plan.target)
        values = (f"{request.kind}: {_ABOUT[request.kind]}", weights, one_line(place, 300))
        lines = []
        for number, (name, value) in enumerate(zip(_FIELDS, values, strict=True)):
            is_chosen = number == self._field
            lines.append(
                Content.assemble(
                    ("▸ " if is_chosen else "  ", "$primary bold"),
                    (f"{name:<{_NAME}}", "bold" if is_chosen else "$muted"),
                    "  ",
                    value,
                )
            )
        lines += [Content(""), self._takes()]
        if self._is_on:
            lines.append(Content.styled("A run is on: an export takes memory and time from it.", "$near"))
        return Content("\n").join(lines)

    def _takes(self) -> Content:
        """The cost of the planned export, or the reason why it cannot be made."""
        planned = self._planned
        if planned is None:
            return Content.styled("looking at what the run has trained …", "$muted")
        if planned.plan is None or planned.error is not None:
            return _error(planned.error)
        plan = planned.plan
        what = f"{plan.trained.label}: {plan.size_in_words}" if plan.largest else plan.trained.label
        if plan.largest and plan.peak is not None and plan.peak > 2 * plan.largest:
            what += f", and {format_bytes(plan.peak)} on the disk while it is made"
        if (reason := plan.unverified) is not None:
            return Content.assemble(f"{one_line(what, 400)}.\n", (f"{reason.message} {reason.hint}", "$near"))
        proof = "" if self._request.kind == "card" else " It is compared with the trained model before it is kept."
        return Content(one_line(f"{what}.{proof}", 400))

    def _working(self) -> Content:
        progress = self._state.progress
        share = progress.share if progress is not None else None
        lines = [progress_bar(share or 0.0, shell_of(self).glyphs) + (f" {share:4.0%}" if share is not None else "")]
        lines.append(Content(f"{progress.activity if progress is not None else 'starting the export'} …"))
        if self._is_leaving:
            lines.append(Content.styled("esc again breaks it off; nothing of it is left then.", "$near"))
        return Content("\n").join(lines)


def _error(error: UserError | None) -> Content:
    if error is None:
        return Content("")
    text = Content(sanitize(error.message))
    return Content.assemble(text, "\n", (sanitize(error.hint), "$muted")) if error.hint else text


def _result(result: ExportResult | None) -> Content:
    """The written files, and their agreement with the trained model."""
    if result is None:
        return Content("")
    from core.export.card import agreement_rows

    head = ("✓ verified", "$ok bold") if result.verified else ("written, not verified", "$near bold")
    if result.kind == "card":
        head = ("written", "$ok bold")
    lines = [
        Content.assemble(head, f" · {format_bytes(result.bytes)} in {format_duration(result.seconds)}"),
        Content(""),
    ]
    lines += _facts(
        [
            ("directory", shown_path(result.path)),
            *(("file", f"{one_line(file.name, 100)}  {format_bytes(file.bytes)}") for file in result.files[:12]),
        ]
    )
    if result.agreement is not None:
        lines += [Content(""), *_facts(agreement_rows(result.agreement))]
    lines += [Content(one_line(note, 400)) for note in result.notes]
    return Content("\n").join(lines)


def _facts(rows: Sequence[tuple[str, str]]) -> list[Content]:
    """Aligned lines of name and text."""
    width = max(len(name) for name, _ in rows)
    return [Content.assemble((f"{name:<{width}}", "$muted"), f"  {one_line(text, 300)}") for name, text in rows]
