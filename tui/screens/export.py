"""Screens of an export: kind, weights and directory with their cost; then the progress and the result."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.content import Content
from textual.worker import get_current_worker

from core.errors import UserError
from core.export.request import ExportRequest, Kind, Quant
from core.jobs.running import RunningJob
from core.paths import shown_path, user_path, working_directory
from core.runs.record.sentences import brief_id
from core.text import one_line
from core.units import format_bytes, format_duration
from tui.glyphs import GlyphSet
from tui.jobs import NOTHING, JobPage
from tui.screens.box import OverlayBox
from tui.screens.dialogs import error_text
from tui.screens.job import progress_text
from tui.screens.overlay import Overlay
from tui.widgets.forms.inputs import PathInput
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock, TextBlock

if TYPE_CHECKING:
    from core.export.job import ExportProgress
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


class ExportScreen(Overlay["ExportPlan"]):
    """The choices of an export; returns its plan.

    Args:
        run: The run.
        step: The step of a checkpoint; None for the result, or the newest checkpoint.
        is_on: A run is live, which an export slows down.
    """

    DEFAULT_CSS = style_of("ExportScreen")
    HELP = "export"

    def __init__(self, run: Run, step: int | None = None, *, is_on: bool = False) -> None:
        super().__init__()
        self._run, self._step, self._is_on = run, step, is_on
        self._request = ExportRequest(run.path, "gguf" if run.trains_adapter else "merged", step)
        self._field = 0
        self._planned: Planned | None = None

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
        """Choose, begin or leave; other keys scroll the box."""
        if isinstance(self.focused, PathInput) or not self._choose(event.key):
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
        elif key == "enter" and self._opens_directory:
            self._edit()
        elif key == "enter":
            self._begin()
        elif key in ("escape", "q"):
            self.dismiss()
        else:
            return False
        return True

    @property
    def _opens_directory(self) -> bool:
        """True if ``enter`` opens the directory under the cursor, as the export cannot begin."""
        planned = self._planned
        return _FIELDS[self._field] == "directory" and planned is not None and not planned.can_begin

    def _begin(self) -> None:
        if self._planned is not None and self._planned.can_begin:
            self.dismiss(self._planned.plan)

    # Display.

    def _show(self) -> None:
        self.query_one("#export-text", TextBlock).show(self._fields())
        self.query_one(OverlayBox).show_keys(self._keys())

    def _keys(self) -> str:
        """The current keys, for the border."""
        if self.has_class("-editing"):
            return "tab complete  enter use it  esc cancel"
        can_begin = self._planned is not None and self._planned.can_begin
        enter = "  enter export" if can_begin else "  enter change" if self._opens_directory else ""
        return f"↑ ↓ field  ← → change{enter}  esc leave"

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
            lines.append(Content.styled("A run is live: an export takes memory and time from it.", "$near"))
        return Content("\n").join(lines)

    def _takes(self) -> Content:
        """The cost of the planned export, or the reason why it cannot be made."""
        planned = self._planned
        if planned is None:
            return Content.styled("looking at what the run has trained …", "$muted")
        if planned.plan is None or planned.error is not None:
            return error_text(planned.error) if planned.error is not None else Content("")
        plan = planned.plan
        what = f"{plan.trained.label}: {plan.size_in_words}" if plan.largest else plan.trained.label
        if plan.largest and plan.peak is not None and plan.peak > 2 * plan.largest:
            what += f", and {format_bytes(plan.peak)} on the disk while it is made"
        if (reason := plan.unverified) is not None:
            return Content.assemble(f"{one_line(what, 400)}.\n", (f"{reason.message} {reason.hint}", "$near"))
        proof = "" if self._request.kind == "card" else " Once it is written, it is compared with the trained model."
        return Content(one_line(f"{what}.{proof}", 400))


class ExportPage(JobPage["ExportProgress", "ExportResult"]):
    """An export: its files, the verdict of their proof, and the command lines that use them.

    Args:
        run: The id of the run.
        form: The type of the weights, or the kind of the export.
        result: The export, if it was made before.
    """

    #: Keys that copy a command line, in their order in the border.
    _COPIES: ClassVar[dict[str, str]] = {"l": "llama-server", "v": "vLLM", "o": "Ollama", "c": "curl"}

    def __init__(self, run: str, form: str, result: ExportResult | None = None) -> None:
        about = f"{one_line(brief_id(run), 60)} as {form}"
        super().__init__(RunningJob("export", about, expected=None), f"Export {about}")
        if result is not None:
            self.job.end(result)

    def outcome(self) -> str:
        """The verdict."""
        return self.job.result.verdict if self.job.result is not None else ""

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002
        """The files and the proof."""
        return _result(self.job.result, self.copies()) if self.job.result is not None else Content("")

    def numbers(self) -> Content:
        """The figures of the proof, and remarks."""
        from core.export.card import agreement_rows

        result = self.job.result
        if result is None:
            return Content("")
        lines = _facts(agreement_rows(result.agreement)) if result.agreement is not None else []
        return Content("\n").join([*lines, *(Content(one_line(note, 400)) for note in result.notes)])

    def copies(self) -> Mapping[str, tuple[str, str]]:
        """The command lines that use the files."""
        lines = self.job.result.commands if self.job.result is not None else {}
        return {key: (name, lines[name]) for key, name in self._COPIES.items() if name in lines}


class ExportJobPage(ExportPage):
    """An export that is made: its progress, and the files once they are there.

    Args:
        plan: The export as planned.
    """

    loss = "deletes the unfinished file"

    def __init__(self, plan: ExportPlan) -> None:
        from core.export.job import export_job

        super().__init__(plan.trained.run.id, plan.request.weights or plan.request.kind)
        self._export, self._target = export_job(plan), plan.target
        self._written = ""

    @property
    def keeps(self) -> str:
        """The parts of it that are kept if it is ended now."""
        return f"the files stay in {shown_path(self._target)}, unproven" if self._written else NOTHING

    def run(self, tell: Callable[[ExportProgress], None]) -> ExportResult:
        """Export; progress counts estimated seconds."""

        def told(progress: ExportProgress) -> None:
            if progress.total is not None:
                self.job.expected = progress.total
            if progress.written is not None and not self._written:
                self._written = _largest_file(progress.written)
            tell(progress)

        return self._export.run(told)

    def close(self) -> None:
        """End its processes."""
        self._export.close()

    def text(self, room: int, glyphs: GlyphSet) -> Content:
        """The file, as soon as it is there; before it the progress, after it the proof."""
        if self.job.result is not None:
            return super().text(room, glyphs)
        if not self._written:
            return progress_text(self.job, glyphs)
        head = Content.assemble((f"written: {self._written}, unproven", "$near bold"), f"; checking, {self.job.left}\n")
        place = Content.styled(f"{shown_path(self._target)}\n\n", "$muted")
        return Content.assemble(head, place, progress_text(self.job, glyphs))


def _largest_file(directory: Path) -> str:
    """The largest file of a directory with its size, by which people know an export."""
    sizes: list[tuple[int, str]] = []
    with suppress(OSError):
        sizes = [(file.stat().st_size, file.name) for file in directory.iterdir() if file.is_file()]
    size, name = max(sizes, default=(0, directory.name))
    return f"{one_line(name, 100)} {format_bytes(size)}"


def _result(result: ExportResult, copies: Mapping[str, tuple[str, str]]) -> Content:
    """The verdict in a sentence, the files, and the command lines."""
    styles = {"proven": ("✓ ", "$ok bold"), "unproven": ("! ", "$near bold"), "failed": ("✗ ", "$limit bold")}
    verdict = one_line(result.verdict, 300)
    head = (
        Content.assemble(styles[result.proof], (verdict, "bold"))
        if verdict
        else Content.styled("✓ written", "$ok bold")
    )
    facts = [
        ("directory", shown_path(result.path)),
        *(("file", f"{one_line(file.name, 100)}  {format_bytes(file.bytes)}") for file in result.files[:12]),
        ("in all", f"{format_bytes(result.bytes)} in {format_duration(result.seconds)}"),
        *((f"{key} {name}", line) for key, (name, line) in copies.items()),
    ]
    return Content("\n").join([head, Content(""), *_facts(facts)])


def _facts(rows: Sequence[tuple[str, str]]) -> list[Content]:
    """Aligned lines of name and text."""
    width = max(len(name) for name, _ in rows)
    return [Content.assemble((f"{name:<{width}}", "$muted"), f"  {one_line(text, 600)}") for name, text in rows]
