"""The list of the chat templates, and the description of the one under the cursor."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content
from textual.widgets.option_list import Option

from core.template.preview import Preview
from core.text import one_line
from core.units import format_count
from tui.screens.template.template_entries import FILE, OWN, TemplateEntry, TemplateSet
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.lists.mask_view import TokenCell, TokenPart
from tui.widgets.strips import fit

_NARROW, _WIDE = 18, 44


class TemplateList(ChoiceList):
    """A line a template: whether it is in force, its name, whether it suits the row; its look where there is room."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.is_wide = False
        self._templates: TemplateSet | None = None
        self._previews: Mapping[str, Preview] = {}
        self._pointed_at: TemplateEntry | None = None

    @property
    def current(self) -> TemplateEntry | None:
        """The template under the cursor."""
        place = self.highlighted
        return self._templates.entries[place] if self._templates is not None and place is not None else None

    def show(self, templates: TemplateSet, previews: Mapping[str, Preview], at: str | None = None) -> None:
        """Show the templates; the cursor goes to an entry, or stays.

        Args:
            templates: The templates to choose from.
            previews: Previews of the row by id, as far as they are known.
            at: The id of the entry.
        """
        self._templates, self._previews = templates, previews
        place = self.highlighted or 0
        if at is not None:
            place = next((place for place, entry in enumerate(templates.entries) if entry.id == at), 0)
        self.clear_options()
        self.add_options([Option(self._prompt(entry)) for entry in templates.entries])
        self.highlighted = place

    def show_anew(self, *entries: TemplateEntry | None) -> None:
        """Update the lines of some entries."""
        for place, entry in enumerate(self._templates.entries if self._templates is not None else ()):
            if entry in entries:
                self.replace_option_prompt_at_index(place, self._prompt(entry))

    def mark_cursor(self) -> None:
        """Put the pointer before the entry under the cursor, which marks it without color too."""
        before, self._pointed_at = self._pointed_at, self.current
        self.show_anew(before, self._pointed_at)

    def move(self, rows: int) -> None:
        """Move the cursor by a number of templates."""
        if self._templates is not None:
            self.highlighted = max(0, min((self.highlighted or 0) + rows, len(self._templates.entries) - 1))

    def _prompt(self, entry: TemplateEntry) -> Content:
        width = (_WIDE if self.is_wide else _NARROW) - 6
        preview = self._previews.get(entry.id)
        is_refused = preview is not None and bool(preview.problem)
        mark = "●" if self._templates is not None and self._templates.in_force == entry.id else " "
        pointer = "▸" if entry is self._pointed_at else " "
        line = Content.assemble(
            (f"{pointer}{mark} ", "$primary bold"),
            (fit(entry.title, width), "$muted" if is_refused else "$foreground"),
            (" ✗" if is_refused else "  ", "$limit bold"),
        )
        if not self.is_wide:
            return line
        return Content.assemble(line, "\n   ", (fit(one_line(entry.about, 200), width), "$muted"))


def head(templates: TemplateSet, current: TemplateEntry | None) -> Content:
    """The heading: the template in force and its origin, and a description of the one under the cursor."""
    entry = templates.entry(templates.in_force) if templates.in_force is not None else None
    if entry is None:
        text = Content.styled("✗ template.name and template.file are both set; choose one template.", "$limit")
    else:
        by = {OWN: entry.about, FILE: "by template.file"}.get(entry.id, "by template.name")
        text = Content.assemble(("in force: ", "$muted"), (entry.title, "bold"), (f", {by}", "$muted"))
    if current is not None:
        about = "The template that comes with the model." if current.id == OWN else current.about
        text = Content.assemble(text, "\n", (one_line(about, 300), "$muted"))
    if templates.error is not None:
        text = Content.assemble(text, "\n", (one_line(f"! {templates.error}", 300), "$near"))
    return text


def token_parts(preview: Preview, limit: int) -> list[TokenPart]:
    """The parts of a row for display, token by token.

    Args:
        preview: The row, rendered by a template.
        limit: ``train.max_length``, the truncation length in tokens.
    """
    label = f"train.max_length = {format_count(limit)}"
    return [
        TokenPart(
            [TokenCell(token.text, token.learned, token.special, token.prompt) for token in part.tokens],
            part.cut,
            label,
            f"{part.answer} answer" if part.answer else "",
        )
        for part in preview.rows
    ]


def problem(preview: Preview) -> Content:
    """The reason why a row has no preview by a template; empty where it has one."""
    if not preview.problem:
        return Content("")
    known = preview.line is not None and f"line {preview.line}" not in preview.problem
    place = f"Line {preview.line}: " if known else ""
    return Content.styled(one_line(f"✗ {place}{preview.problem}", 500), "$limit")
