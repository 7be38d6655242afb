"""Screen of the chat template: choose from a list with a preview of a row, or edit a file."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.worker import get_current_worker

from core.atomic import write_atomic
from core.errors import UserError
from core.template.preview import Preview
from core.template.sandboxed import check_template
from core.template.settings import MaskSettings
from core.text import one_line
from core.units import format_count
from tui.datasets.plan import TokenPlan
from tui.datasets.summary import counted
from tui.datasets.view import DatasetView
from tui.files import edit_text
from tui.keys import KeyTable, bindings, yields_to_text
from tui.screens.overlay import Overlay
from tui.screens.template.template_entries import (
    FILE,
    OWN,
    ShownRow,
    TemplateEntry,
    TemplateList,
    TemplateSet,
    file_entry,
    head,
    load_templates,
    preview_entry,
    problem,
    row_for,
    token_parts,
)
from tui.shell import shell_of
from tui.widgets.forms.ask_bar import AskBar, takes_text
from tui.widgets.lists.mask_view import MaskView
from tui.widgets.lists.source_view import SourceView
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

#: Minimum columns for row and source side by side, with a description of each template in the list.
WIDE = 120
SUFFIXES = (".jinja", ".j2", ".txt")


class TemplateScreen(Overlay[None]):
    """Screen of the chat templates; saves the choice to the configuration in the app.

    Args:
        plan: The configuration's options for templates and tokens.
        view: The dataset to preview; None if none is open.
        index: The first row to preview.
    """

    DEFAULT_CSS = style_of("TemplateScreen")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("template")]
    SCOPE = "template"
    AUTO_FOCUS = "#template-list"

    def __init__(self, plan: TokenPlan, view: DatasetView | None, index: int) -> None:
        super().__init__()
        self.plan = plan
        self.templates: TemplateSet | None = None
        """The templates to choose from, once they have been read."""
        self.row: ShownRow | None = None
        """The conversation in the preview."""
        self._view, self._index = view, index
        self.previews: dict[str, Preview] = {}
        """Previews of the row by template id, as far as they are known."""
        self._said_of: TemplateEntry | None = None
        self._draft: str | None = None
        """Edited text that could not be written to its file."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Block actions whose keys are text while an input has the focus."""
        if yields_to_text(action, self.keys) and takes_text(self.focused):
            return False
        return super().check_action(action, parameters)

    def compose(self) -> ComposeResult:
        with Vertical(id="template-box"):
            yield TextBlock(id="template-head")
            with Container(id="template-body"):
                yield TemplateList(id="template-list")
                with Container(id="template-parts"):
                    with Vertical(id="template-row", classes="template-part"):
                        yield TextBlock(id="template-problem")
                        yield MaskView(id="template-mask")
                    with Vertical(id="template-code", classes="template-part"):
                        yield SourceView(id="template-source")
            yield TextBlock(id="template-note")
            yield AskBar(id="template-ask")

    def on_mount(self) -> None:
        """Read the templates."""
        box = self.query_one("#template-box")
        box.border_title = "Chat template"
        hints = self.keys.hints([f"template.{name}" for name in ("use", "edit", "row", "part", "help", "back")])
        box.border_subtitle = Content(hints)
        self.mask_view.say("Reading the tokenizer …")
        self._load(self.plan)
        self._read_row(self._index)

    def on_resize(self, event: events.Resize) -> None:
        """Put row and source side by side if there is room."""
        was_wide = self.has_class("-wide")
        self.set_class(event.size.width >= WIDE, "-wide")
        self.choices.is_wide = self.has_class("-wide")
        if was_wide != self.has_class("-wide"):
            self._show_list()

    # Parts of the screen.

    @property
    def keys(self) -> KeyTable:
        """The key table with the user's changes."""
        return shell_of(self).keys

    @property
    def choices(self) -> TemplateList:
        """The list of the templates."""
        return self.query_one("#template-list", TemplateList)

    @property
    def ask_bar(self) -> AskBar:
        """The ask bar for paths."""
        return self.query_one("#template-ask", AskBar)

    @property
    def mask_view(self) -> MaskView:
        """The row, rendered by the template under the cursor."""
        return self.query_one("#template-mask", MaskView)

    @property
    def source_view(self) -> SourceView:
        """The source of the template under the cursor."""
        return self.query_one("#template-source", SourceView)

    @property
    def current(self) -> TemplateEntry | None:
        """The template under the cursor."""
        return self.choices.current

    def say(self, text: str) -> None:
        """Show a message at the bottom until the cursor moves; an empty text clears it."""
        style = "$limit" if text.startswith("✗") else "$foreground"
        self._said_of = self.current
        self.query_one("#template-note", TextBlock).show(Content.styled(one_line(text), style))

    # Reading. Workers get a description because Textual's default is the repr of their arguments: whole rows.

    @work(thread=True, exclusive=True, group="template-load", description="template-load")
    def _load(self, plan: TokenPlan) -> None:
        self.post_call(self._loaded, load_templates(plan))

    @work(thread=True, exclusive=True, group="template-row", description="template-row")
    def _read_row(self, index: int) -> None:
        self.post_call(self._row_read, index, row_for(self._view, index))

    def _loaded(self, templates: TemplateSet) -> None:
        self.templates = templates
        self.mask_view.say("Rendering the row …")
        self.show_again(templates.in_force or OWN)

    def _row_read(self, index: int, row: ShownRow) -> None:
        if index == self._index:
            self.row = row
            self._refresh()

    def show_again(self, at: str) -> None:
        """Show the changed templates, with the cursor on an entry."""
        self._show_list(at)
        self._refresh()

    def _refresh(self) -> None:
        """Render the previews again, starting at the cursor."""
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
            self.post_call(self._previewed, entry, row, preview_entry(entry, row, settings))

    def _previewed(self, entry: TemplateEntry, row: ShownRow, preview: Preview) -> None:
        if row is not self.row or self.templates is None or entry not in self.templates.entries:
            return
        self.previews[entry.id] = preview
        self.choices.show_anew(entry)
        if entry == self.current:
            self._show_current()

    # Display.

    def _show_list(self, at: str | None = None) -> None:
        """Fill the list; the cursor goes to an entry, or stays."""
        if self.templates is not None:
            self.choices.show(self.templates, self.previews, at)
            self._show_head()

    def _show_head(self) -> None:
        if self.templates is not None:
            self.query_one("#template-head", TextBlock).show(head(self.templates, self.current))

    @on(OptionList.OptionHighlighted)
    def _moved(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        if self.current is not self._said_of:
            self.say("")
        self.choices.mark_cursor()
        self._show_head()
        self._show_current()

    def _show_current(self) -> None:
        """Show row and source of the template under the cursor."""
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
        self.query_one("#template-problem", TextBlock).show(problem(preview))
        cells = token_parts(preview, self.plan.max_length)
        self.mask_view.show(cells) if cells else self.mask_view.say("")
        known = self.templates is not None and self.templates.settings is not None
        counts = (
            [counted(preview.tokens, "token"), f"{format_count(preview.learned)} learned"] if known and cells else []
        )
        if not preview.problem and not preview.generation_prompt:
            counts.append("no generation prompt")
        where = f"row {format_count(row.index + 1)}" if row.index is not None else f"an example, as {row.reason}"
        self._title("#template-row", where, *counts)

    def _title(self, part: str, *words: str) -> None:
        text = " · ".join(one_line(word, 160) for word in words)
        self.query_one(part).border_title = Content(f"{text} ")

    # Keys.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the focused part."""
        part = self._scrolled
        if part is not None:
            part.move(rows)
        else:
            self.choices.move(rows)

    def action_move_page(self, direction: int) -> None:
        """Move the cursor by a page, or scroll."""
        part = self._scrolled
        if part is not None:
            part.move_page(direction)
        else:
            self.action_move(direction * max(1, self.choices.size.height // 2))

    def action_move_end(self, direction: int) -> None:
        """Go to the first or last template or line."""
        self.action_move(direction * 10**6)

    @property
    def _scrolled(self) -> MaskView | SourceView | None:
        return next((part for part in (self.mask_view, self.source_view) if part.has_focus), None)

    def action_step_row(self, step: int) -> None:
        """Preview the templates with the next or previous row."""
        if self._view is None:
            self.say("No data is open.")
            return
        index = self._index + step
        if 0 <= index < self._view.count:
            self._index = index
            self._read_row(index)

    # Choice.

    def take(self) -> None:
        """Set the template under the cursor in the configuration, and go back."""
        self.action_use()

    @work(exclusive=True, group="template-use", description="template-use")
    async def action_use(self) -> None:
        """Set the template under the cursor in the configuration, and go back."""
        entry = self.current
        if entry is None or self.templates is None:
            return
        if entry.source is None and entry.id != OWN:
            self.say(f"✗ {entry.problem}")
            return
        if entry.source is not None and (error := await _refused(entry.source)) is not None:
            self.say(f"✗ {error}")
            return
        # First, so that the dialog of a failure is on the panes.
        self.dismiss(None)
        self._put_in_force(entry)

    def _put_in_force(self, entry: TemplateEntry, *, is_told: bool = True) -> None:
        title = "The model's own" if entry.id == OWN else entry.title
        notice = entry.problem or f"{title} is the chat template."
        shell_of(self).configuration.choose_options(entry.values, notice if is_told else "")

    # Editing.

    async def action_edit(self) -> None:
        """Edit a template's file in place, or a copy of a built-in template, after asking for its path."""
        entry = self.current
        if entry is None:
            return
        if self._draft is None and entry.path is not None:
            self._edit_file(entry.path)
        elif self._draft is None and entry.source is None:
            self.say(f"✗ {entry.problem}")
        else:
            await self.ask_bar.converse(self._edit_copy(entry))

    async def _edit_copy(self, entry: TemplateEntry) -> None:
        """Ask for a file, then write the unsaved draft there, or edit a copy of the template."""
        bar, directory = self.ask_bar, self.plan.directory
        given = await bar.ask_path("save the copy as", entry.file_name, base=directory, suffixes=SUFFIXES)
        if given is None:
            return
        path = given if given.suffix else given.with_suffix(".jinja")
        if os.path.isdir(path):
            self.say(f"✗ {path} is a directory. Give the file a name.")
            return
        if os.path.exists(path):
            as_it_is = {"u": "edit it as it is"} if self._draft is None else {}
            key = await bar.ask_key(f"{path.name} exists already.", {**as_it_is, "r": "replace it"})
            if key == "u":
                self._edit_file(path)
            if key != "r":
                return
        current = self.current
        if self._draft is not None:
            self._write(self._draft, path)
        elif current is not None and current.source is not None:
            self._edit(current.source, path)

    def _edit_file(self, path: Path) -> None:
        """Read a file again, because another program may have changed it, and edit it."""
        found = file_entry(path)
        if found.source is None:
            self.say(f"✗ {found.problem}")
        else:
            self._edit(found.source, path)

    def _edit(self, source: str, path: Path) -> None:
        """Suspend the app for the editor; the result is written to the file, and used if it is valid."""
        try:
            with self.app.suspend():
                after = edit_text(source.encode("utf-8", "replace").decode(), path.name)
        except SuspendNotSupported:
            self.say(
                "✗ This terminal cannot be lent to an editor. Edit the file in another terminal, and set template.file."
            )
            return
        except UserError as error:
            self.say(f"✗ {error}")
            return
        if after is None:
            self.say("The editor failed; nothing has changed.")
        elif after != source:
            self._write(after, path)
        elif os.path.exists(path) and not self._is_in_force(path):
            self._take(after, path)
        else:
            self.say("Nothing has changed.")

    def _is_in_force(self, path: Path) -> bool:
        templates = self.templates
        file = templates.entry(FILE) if templates is not None and templates.in_force == FILE else None
        return file is not None and file.path == path

    def _write(self, text: str, path: Path) -> None:
        try:
            write_atomic(path, text, mode=0o644)
        except (OSError, UnicodeEncodeError) as error:
            self._draft = text
            reason = error.strerror if isinstance(error, OSError) else "it is not valid Unicode"
            again = self.keys["template.edit"].display
            self.say(f"✗ {path} cannot be written: {reason}. Your text is kept; {again} saves it elsewhere.")
            return
        self._draft = None
        self._take(text, path)

    @work(exclusive=True, group="template-use", description="template-take")
    async def _take(self, text: str, path: Path) -> None:
        """List the file as a template, and put it in force if it is valid Jinja."""
        error = await _refused(text)
        templates = self.templates
        if templates is None:
            return
        entry = file_entry(path, text)
        others = [other for other in templates.entries if other.id != FILE]
        entries = (*others[:1], entry, *others[1:])
        shown = one_line(path.name, 60)
        if error is not None:
            is_used = self._is_in_force(path)
            self.templates = replace(templates, entries=entries)
            self.show_again(FILE)
            rest = "" if is_used else ", and not used until it is fixed"
            again = self.keys["template.edit"].display
            self.say(f"✗ {error.message} It is saved in {shown}{rest}; {again} opens it again.")
            return
        self.templates = replace(templates, entries=entries, in_force=FILE)
        self.show_again(FILE)
        self._put_in_force(entry, is_told=False)
        self.say(f"✓ {shown} is saved and is the chat template.")


async def _refused(source: str) -> UserError | None:
    """The reason why a template cannot be used; None if it can."""
    try:
        await asyncio.to_thread(check_template, source)
    except UserError as error:
        return error
    return None
