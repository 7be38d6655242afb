"""The chat templates to look at: which one is in force, each with a row seen through it and its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from core.template.preview import Preview
from core.template.settings import MaskSettings
from core.text import one_line
from tui.datasets.plan import TokenPlan
from tui.datasets.summary import counted, spaced
from tui.datasets.view import DatasetView
from tui.keys import KeyTable, bindings, yields_to_text
from tui.screens.overlay import Overlay
from tui.screens.template.template_entries import (
    FILE,
    OWN,
    ShownRow,
    TemplateEntry,
    TemplateSet,
    load_templates,
    preview_entry,
    row_for,
)
from tui.shell import shell_of
from tui.widgets.forms.ask_bar import AskBar, takes_text
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.lists.mask_view import MaskView, TokenCell, TokenPart
from tui.widgets.lists.source_view import SourceView
from tui.widgets.strips import fit
from tui.widgets.text_block import TextBlock

#: Columns from which row and source stand side by side, and the list says what each template looks like.
WIDE = 120


@dataclass
class TemplatesLoaded(Message):
    """Templates and tokenizer have been read."""

    templates: TemplateSet


@dataclass
class RowRead(Message):
    """A row to show the templates with has been read."""

    wanted: int
    row: ShownRow


@dataclass
class TemplatePreviewed(Message):
    """A row has been shown through a template."""

    entry: TemplateEntry
    row: ShownRow
    preview: Preview


class TemplateView(Overlay[None]):
    """Shows the templates; what is done with the one under the cursor is up to the screen.

    Args:
        plan: What the configuration says about templates and tokens.
        view: The dataset whose rows are shown; None where none is open.
        index: The row to begin with.
    """

    DEFAULT_CSS = """
    TemplateView {
        background: $background;
        & > #template-box {
            height: 100%; width: 100%; padding: 0 1; background: $background;
            border: round $border-focus; border-title-style: bold; border-subtitle-color: $muted;
        }
        & #template-head { max-height: 4; }
        & #template-note { height: auto; max-height: 3; }
        & #template-body { height: 1fr; layout: horizontal; }
        & #template-list { width: 18; height: 100%; max-height: 100%; }
        & #template-parts { width: 1fr; height: 100%; layout: vertical; }
        & .template-part {
            height: 1fr; padding: 0 0 0 1;
            border-top: solid $border; border-left: solid $border; border-title-color: $muted;
            &:focus-within { border-top: solid $border-focus; border-title-color: $foreground; }
        }
        & #template-row { height: 3fr; }
        & #template-source { height: 2fr; }
        & #template-problem { height: auto; max-height: 5; }
        &.-wide #template-list { width: 44; }
        &.-wide #template-parts { layout: horizontal; }
        &.-wide #template-row { width: 1fr; height: 100%; }
        &.-wide #template-source { width: 1fr; height: 100%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("template")]
    AUTO_FOCUS = "#template-list"

    def __init__(self, plan: TokenPlan, view: DatasetView | None, index: int) -> None:
        super().__init__()
        self.plan = plan
        self.templates: TemplateSet | None = None
        """What can be chosen, once it has been read."""
        self.row: ShownRow | None = None
        """The conversation that is shown."""
        self._view, self._index = view, index
        self.previews: dict[str, Preview] = {}
        """The row through each of them, by id, as far as that is known."""
        self._said_of: TemplateEntry | None = None
        self._pointed_at: TemplateEntry | None = None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where something is being written, the keys that begin it are text."""
        if yields_to_text(action, self.keys) and takes_text(self.focused):
            return False
        return super().check_action(action, parameters)

    def compose(self) -> ComposeResult:
        with Vertical(id="template-box"):
            yield TextBlock(id="template-head")
            with Container(id="template-body"):
                yield ChoiceList(id="template-list")
                with Container(id="template-parts"):
                    with Vertical(id="template-row", classes="template-part"):
                        yield TextBlock(id="template-problem")
                        yield MaskView(id="template-mask")
                    with Vertical(id="template-code", classes="template-part"):
                        yield SourceView(id="template-source")
            yield TextBlock(id="template-note")
            yield AskBar(id="template-ask")

    def on_mount(self) -> None:
        """Read what there is to choose from."""
        box = self.query_one("#template-box")
        box.border_title = "Chat template"
        hints = self.keys.hints([f"template.{name}" for name in ("use", "edit", "row", "part", "help", "back")])
        box.border_subtitle = Content(hints)
        self.mask_view.say("Reading the tokenizer …")
        self._load(self.plan)
        self._read_row(self._index)

    def on_resize(self, event: events.Resize) -> None:
        """Put row and source side by side where there is room for it."""
        was_wide = self.has_class("-wide")
        self.set_class(event.size.width >= WIDE, "-wide")
        if was_wide != self.has_class("-wide"):
            self._show_list()

    # Parts.

    @property
    def keys(self) -> KeyTable:
        """The keys as the user has them."""
        return shell_of(self).keys

    @property
    def options(self) -> ChoiceList:
        """The templates."""
        return self.query_one("#template-list", ChoiceList)

    @property
    def mask_view(self) -> MaskView:
        """The row through the template under the cursor."""
        return self.query_one("#template-mask", MaskView)

    @property
    def source_view(self) -> SourceView:
        """The source of the template under the cursor."""
        return self.query_one("#template-source", SourceView)

    @property
    def current(self) -> TemplateEntry | None:
        """The template under the cursor."""
        place = self.options.highlighted
        return self.templates.entries[place] if self.templates is not None and place is not None else None

    def say(self, text: str) -> None:
        """Say something below, until the cursor moves; empty says nothing."""
        style = "$limit" if text.startswith("✗") else "$foreground"
        self._said_of = self.current
        self.query_one("#template-note", TextBlock).show(Content.styled(one_line(text), style))

    # Reading. Workers are described, or Textual would do it with the repr of what they get, which is whole rows.

    @work(thread=True, exclusive=True, group="template-load", description="template-load")
    def _load(self, plan: TokenPlan) -> None:
        self.post_message(TemplatesLoaded(load_templates(plan)))

    @work(thread=True, exclusive=True, group="template-row", description="template-row")
    def _read_row(self, index: int) -> None:
        self.post_message(RowRead(index, row_for(self._view, index)))

    @on(TemplatesLoaded)
    def _loaded(self, message: TemplatesLoaded) -> None:
        self.templates = message.templates
        self.mask_view.say("Rendering the row …")
        self.show_again(message.templates.in_force or OWN)

    @on(RowRead)
    def _row_read(self, message: RowRead) -> None:
        if message.wanted == self._index:
            self.row = message.row
            self._refresh()

    def show_again(self, at: str) -> None:
        """Show the templates after a change to them, with the cursor on one."""
        self._show_list(at)
        self._refresh()

    def _refresh(self) -> None:
        """Show every template anew, the one under the cursor first."""
        self.previews.clear()
        self._show_current()
        if self.templates is not None and self.row is not None:
            current = self.current
            order = sorted(self.templates.entries, key=lambda entry: entry is not current)
            self._preview(order, self.row, self.templates.settings)

    @work(thread=True, exclusive=True, group="template-preview", description="template-preview")
    def _preview(self, entries: list[TemplateEntry], row: ShownRow, settings: MaskSettings | None) -> None:
        worker = get_current_worker()
        for entry in entries:
            if worker.is_cancelled:
                return
            self.post_message(TemplatePreviewed(entry, row, preview_entry(entry, row, settings)))

    @on(TemplatePreviewed)
    def _previewed(self, message: TemplatePreviewed) -> None:
        if message.row is not self.row or self.templates is None or message.entry not in self.templates.entries:
            return
        self.previews[message.entry.id] = message.preview
        place = self.templates.entries.index(message.entry)
        self.options.replace_option_prompt_at_index(place, self._prompt(message.entry))
        if message.entry == self.current:
            self._show_current()

    # What is shown.

    def _show_list(self, at: str | None = None) -> None:
        """Fill the list; the cursor goes to an entry, or stays."""
        if self.templates is None:
            return
        place = self.options.highlighted or 0
        if at is not None:
            place = next((place for place, entry in enumerate(self.templates.entries) if entry.id == at), 0)
        self.options.clear_options()
        self.options.add_options([Option(self._prompt(entry)) for entry in self.templates.entries])
        self.options.highlighted = place
        self._show_head()

    def _prompt(self, entry: TemplateEntry) -> Content:
        """An entry of the list: in force or not, its name, whether it suits the row, and what it looks like."""
        is_wide = self.has_class("-wide")
        width = (44 if is_wide else 18) - 6
        preview = self.previews.get(entry.id)
        is_refused = preview is not None and bool(preview.problem)
        mark = "●" if self.templates is not None and self.templates.in_force == entry.id else " "
        pointer = "▸" if entry is self._pointed_at else " "
        line = Content.assemble(
            (f"{pointer}{mark} ", "$primary bold"),
            (fit(entry.title, width), "$muted" if is_refused else "$foreground"),
            (" ✗" if is_refused else "  ", "$limit bold"),
        )
        if not is_wide:
            return line
        return Content.assemble(line, "\n   ", (fit(one_line(entry.about, 200), width), "$muted"))

    def _show_head(self) -> None:
        """Which template is in force, and where from."""
        templates = self.templates
        if templates is None:
            return
        entry = templates.entry(templates.in_force) if templates.in_force is not None else None
        if entry is None:
            text = Content.styled("✗ template.name and template.file are both set; choose one template.", "$limit")
        else:
            by = {OWN: entry.about, FILE: "by template.file"}.get(entry.id, "by template.name")
            text = Content.assemble(("in force: ", "$muted"), (entry.title, "bold"), (f", {by}", "$muted"))
        if (current := self.current) is not None:
            about = "The template that comes with the model." if current.id == OWN else current.about
            text = Content.assemble(text, "\n", (one_line(about, 300), "$muted"))
        if templates.error is not None:
            text = Content.assemble(text, "\n", (one_line(f"! {templates.error}", 300), "$near"))
        self.query_one("#template-head", TextBlock).show(text)

    @on(OptionList.OptionHighlighted)
    def _moved(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if self.current is not self._said_of:
            self.say("")
        self._mark_cursor()
        self._show_head()
        self._show_current()

    def _mark_cursor(self) -> None:
        """Put the pointer before the entry under the cursor, which is then told without color too."""
        before, self._pointed_at = self._pointed_at, self.current
        for place, entry in enumerate(self.templates.entries if self.templates is not None else ()):
            if entry is before or entry is self._pointed_at:
                self.options.replace_option_prompt_at_index(place, self._prompt(entry))

    def _show_current(self) -> None:
        """Row and source of the template under the cursor."""
        entry = self.current
        if entry is None:
            return
        preview = self.previews.get(entry.id)
        self.source_view.show(entry.source or "", preview.line if preview is not None else None)
        lines = counted(self.source_view.line_count, "line") if entry.source is not None else "no source"
        self._title("#template-code", entry.title, lines)
        if preview is not None and self.row is not None:
            self._show_preview(preview, self.row)

    def _show_preview(self, preview: Preview, row: ShownRow) -> None:
        limit = self.plan.max_length
        self.query_one("#template-problem", TextBlock).show(_problem(preview))
        label = f"train.max_length = {spaced(limit)}"
        cells = [
            TokenPart(
                [TokenCell(token.text, token.learned, token.special, token.prompt) for token in part.tokens],
                part.cut,
                label,
                f"{part.answer} answer" if part.answer else "",
            )
            for part in preview.rows
        ]
        self.mask_view.show(cells) if cells else self.mask_view.say("")
        known = self.templates is not None and self.templates.settings is not None
        counts = [counted(preview.tokens, "token"), f"{spaced(preview.learned)} learned"] if known and cells else []
        if not preview.problem and not preview.generation_prompt:
            counts.append("no generation prompt")
        where = f"row {spaced(row.index + 1)}" if row.index is not None else f"an example, as {row.reason}"
        self._title("#template-row", where, *counts)

    def _title(self, part: str, *words: str) -> None:
        text = " · ".join(one_line(word, 160) for word in words)
        self.query_one(part).border_title = Content(f"{text} ")

    # Keys.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the part that has the keys."""
        part = self._scrolled
        if part is not None:
            part.move(rows)
        elif self.templates is not None:
            place = (self.options.highlighted or 0) + rows
            self.options.highlighted = max(0, min(place, len(self.templates.entries) - 1))

    def action_move_page(self, direction: int) -> None:
        """A page up or down."""
        part = self._scrolled
        if part is not None:
            part.move_page(direction)
        else:
            self.action_move(direction * max(1, self.options.size.height // 2))

    def action_move_end(self, direction: int) -> None:
        """To the first or the last template or line."""
        self.action_move(direction * 10**6)

    @property
    def _scrolled(self) -> MaskView | SourceView | None:
        return next((part for part in (self.mask_view, self.source_view) if part.has_focus), None)

    def action_step_row(self, step: int) -> None:
        """Show the templates with the next row, or the one before."""
        if self._view is None:
            self.say("No data is open.")
            return
        index = self._index + step
        if 0 <= index < self._view.count:
            self._index = index
            self._read_row(index)


def _problem(preview: Preview) -> Content:
    if not preview.problem:
        return Content("")
    known = preview.line is not None and f"line {preview.line}" not in preview.problem
    place = f"Line {preview.line}: " if known else ""
    return Content.styled(one_line(f"✗ {place}{preview.problem}", 500), "$limit")
