"""The list of the parts of a row with their columns."""

from __future__ import annotations

from textual.content import Content
from textual.widgets.option_list import Option

from core.config.choices import ColumnRole
from core.text import one_line
from tui.datasets.summary import counted
from tui.screens.columns.column_plan import (
    FORMAT,
    KEY_ROLES,
    SPEAKER_ROLES,
    Choosable,
    ColumnChoice,
    ColumnPreview,
    ColumnSample,
    visible_roles,
)
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.strips import fit

_ROLE_WIDTH, _VALUE_WIDTH = 16, 22
_HINT = "Choose a column for user and one for assistant, or one for messages, or one for text."


class PartList(ChoiceList):
    """The format and, in groups, the parts with their columns."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._parts: list[Choosable | None] = []  # None for the title of a group

    @property
    def current(self) -> Choosable | None:
        """The part under the cursor; None while there is none."""
        place = self.highlighted
        return self._parts[place] if place is not None and place < len(self._parts) else None

    def show(
        self, sample: ColumnSample, choice: ColumnChoice, preview: ColumnPreview | None, at: Choosable | None
    ) -> None:
        """Show a choice, with the cursor on a part.

        Args:
            sample: The first rows and columns of the file.
            choice: The chosen format and columns.
            preview: The first rows as they are then read; None while they are being read.
            at: The part; the format where None, or where there is no such part.
        """
        parts: list[Choosable | None] = [FORMAT]
        options = [Option(_format_line(choice, preview, at == FORMAT))]
        for title, group in visible_roles(choice.columns):
            parts.append(None)
            options.append(Option(title, disabled=True))
            for role, about in group:
                parts.append(role)
                options.append(Option(_part_line(role, about, sample, choice, at == role)))
        place = parts.index(at) if at is not None and at in parts else 0
        if parts != self._parts:
            self._parts = parts
            self.clear_options()
            self.add_options(options)
        else:
            for index, option in enumerate(options):
                self.replace_option_prompt_at_index(index, option.prompt)
        if self.highlighted != place:
            self.highlighted = place

    def move(self, rows: int) -> None:
        """Move the cursor by a number of parts."""
        places = [place for place, part in enumerate(self._parts) if part is not None]
        if places:
            here = places.index(self.highlighted) if self.highlighted in places else 0
            self.highlighted = places[max(0, min(here + rows, len(places) - 1))]


def _format_line(choice: ColumnChoice, preview: ColumnPreview | None, at_cursor: bool) -> Content:
    known = preview.detection if preview is not None else None
    if choice.named is not None and known is not None:
        about = f"{known.format}, by the columns"
    elif known is not None:
        about = f"{known.format}: {known.reason}" if choice.wanted == "auto" else known.reason
    else:
        about = "" if preview is None else "not recognized"
    return _line("format", f"{choice.wanted} ▾", about, at_cursor, choice.wanted != "auto")


def _part_line(role: ColumnRole, about: str, sample: ColumnSample, choice: ColumnChoice, at_cursor: bool) -> Content:
    column = choice.columns.get(role)
    if column is None:
        return _line(role, "–", about, at_cursor, False)
    example = sample.example(column)
    if role in (*KEY_ROLES, *SPEAKER_ROLES):
        example = next((c.example for c in choice.candidates(role, sample) if c.value == column), about)
    return _line(role, f"{one_line(column, 100)} ▾", example, at_cursor, choice.by_hand)


def _line(name: str, value: str, about: str, at_cursor: bool, is_chosen: bool) -> Content:
    style = "bold $foreground" if is_chosen else "$muted"
    return Content.assemble(
        ("▸ " if at_cursor else "  ", "$primary bold"),
        (fit(name, _ROLE_WIDTH), "bold" if at_cursor else ""),
        (fit(value, _VALUE_WIDTH), style),
        ("  " + about, "$muted"),
    )


def summary(preview: ColumnPreview, is_named: bool) -> Content:
    """The number of rows that can be used, or the reason why none can be read."""
    if preview.problem is not None:
        text = Content.styled(one_line(f"✗ {preview.problem.message}", 400), "$limit bold")
        hint = one_line(preview.problem.hint if is_named else _HINT, 200)
        return Content.assemble(text, ("\n  " + hint, "$muted")) if hint else text
    count = f"{preview.used} of the first {counted(preview.total, 'row')} can be used"
    mark, style = ("✓", "$ok") if preview.used == preview.total else ("!", "$near")
    text = Content.styled(f"{mark} {count}", f"{style} bold")
    if preview.warning:
        text = Content.assemble(text, (f" · {one_line(preview.warning, 300)}", "$near"))
    if preview.detection is not None and not is_named:
        reason = one_line(f"{preview.detection.format}: {preview.detection.reason}", 300)
        text = Content.assemble(text, (f"\n{reason}", "$muted"))
    return text
